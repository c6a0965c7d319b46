"""Writes a recording in the formats of ECG machines: by the libraries' writers, or by hand from the formats' descriptions.

`steps`: int16 [L, N] in units of STEP microvolts. All have a patient's name, birth date or both, which no reader may show.
"""

import base64
import struct
from binascii import crc_hqx
from pathlib import Path

import edfio
import numpy as np
import wfdb
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid
from scipy.io import savemat

from ecgbyte_jax.ecg.records import LEADS

STEP = 1.25  # microvolts
NAME = "Mustermann"
_WAVEFORMS = UID("1.2.840.10008.5.1.4.1.1.9.1.1")  # 12-lead ECG Waveform Storage
# Numbers of leads in section 3 of SCP-ECG.
_SCP_LEADS = {"I": 1, "II": 2, "III": 61, "aVR": 62, "aVL": 63, "aVF": 64} | {f"V{n}": n + 2 for n in range(1, 7)}


def write_wfdb(path: Path, steps, rate, leads=LEADS) -> Path:
    how = {"fmt": ["16"] * len(leads), "adc_gain": [1000 / STEP] * len(leads), "baseline": [0] * len(leads)}
    units = ["mV"] * len(leads)
    wfdb.wrsamp(path.name, rate, units, list(leads), d_signal=steps.T.astype(np.int64), write_dir=str(path.parent), **how)
    return path


def write_csv(path: Path, steps, rate, leads=LEADS) -> Path:
    rows = [",".join(["time (s)", *(f"{lead} (uV)" for lead in leads)])]
    rows += [",".join([f"{i / rate:.6f}", *(f"{value * STEP:g}" for value in row)]) for i, row in enumerate(steps.T)]
    path.write_text("\n".join(rows) + "\n")
    return path


def code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def waveform(steps, rate, leads=LEADS, originality="ORIGINAL", unit="uV", meanings=True) -> Dataset:
    group = Dataset()
    group.WaveformOriginality, group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = originality, *steps.shape
    group.SamplingFrequency, group.WaveformBitsAllocated, group.WaveformSampleInterpretation = rate, 16, "SS"
    group.ChannelDefinitionSequence = []
    for lead in leads:
        channel = Dataset()
        number = _SCP_LEADS.get(lead, 99)
        source = code(f"5.6.3-9-{number}", "SCPECG", f"Lead {lead}") if meanings else code(f"2:{number}", "MDC", "channel")
        channel.ChannelSourceSequence = [source]
        channel.ChannelSensitivity, channel.ChannelSensitivityCorrectionFactor, channel.ChannelBaseline = STEP, 1, 0
        channel.ChannelSensitivityUnitsSequence = [code(unit, "UCUM", unit)]
        channel.ChannelSampleSkew, channel.WaveformBitsStored = 0, 16
        group.ChannelDefinitionSequence.append(channel)
    group.WaveformData = np.ascontiguousarray(steps.T, "<i2").tobytes()
    group["WaveformData"].VR = "OW"
    return group


def write_dicom(path: Path, steps, rate, leads=LEADS, groups=None, syntax=ExplicitVRLittleEndian) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = _WAVEFORMS, generate_uid(), syntax
    file = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID, file.Modality = _WAVEFORMS, meta.MediaStorageSOPInstanceUID, "ECG"
    file.PatientName, file.PatientBirthDate = f"{NAME}^Max", "19500101"
    groups = [waveform(steps, rate, leads)] if groups is None else groups
    if groups:
        file.WaveformSequence = groups
    file.save_as(path, enforce_file_format=True)
    return path


def write_edf(path: Path, steps, rate, leads=LEADS, unit="uV", also=()) -> Path:
    digital, physical = (-32768, 32767), (-32768 * STEP, 32767 * STEP)
    signals = [
        edfio.EdfSignal.from_digital(
            row.astype(np.int16),
            rate,
            label=f"ECG {lead}",
            physical_dimension=unit,
            physical_range=physical,
            digital_range=digital,
        )
        for lead, row in zip(leads, steps)
    ]
    edfio.Edf([*also, *signals], patient=edfio.Patient(name=NAME), data_record_duration=0.2).write(path)
    return path


def write_muse(path: Path, steps, rate, leads=("I", "II", *LEADS[6:]), units="MICROVOLTS") -> Path:
    """With a median beat before the rhythm, as MUSE exports it."""

    def block(kind, rows):
        data = [
            f"<LeadData><LeadSampleCountTotal>{row.size}</LeadSampleCountTotal>"
            f"<LeadAmplitudeUnitsPerBit>{STEP}</LeadAmplitudeUnitsPerBit><LeadAmplitudeUnits>{units}</LeadAmplitudeUnits>"
            f"<LeadID>{lead}</LeadID><WaveFormData>\n{base64.encodebytes(row.astype('<i2').tobytes()).decode()}</WaveFormData></LeadData>"
            for lead, row in zip(leads, rows)
        ]
        head = f"<WaveformType>{kind}</WaveformType><SampleBase>{rate}</SampleBase><SampleExponent>0</SampleExponent>"
        return f"<Waveform>{head}{''.join(data)}</Waveform>"

    rows = [steps[LEADS.index(lead)] for lead in leads]
    patient = f"<PatientDemographics><PatientLastName>{NAME}</PatientLastName></PatientDemographics>"
    beat = block("Median", [row[: rate // 2] for row in rows])
    document = '<?xml version="1.0" encoding="ISO-8859-1"?>\n<!DOCTYPE RestingECG SYSTEM "restecg.dtd">\n'
    path.write_text(f"{document}<RestingECG>{patient}{beat}{block('Rhythm', rows)}</RestingECG>\n")
    return path


def write_sierra(path: Path, steps, rate, leads=LEADS) -> Path:
    data = base64.b64encode(np.ascontiguousarray(steps, "<i2").tobytes()).decode()
    duration = 1000 * steps.shape[1] / rate
    path.write_text(
        '<?xml version="1.0" encoding="UTF-16"?>\n<restingecgdata xmlns="http://www3.medical.philips.com">'
        "<documentinfo><documenttype>SierraECG</documenttype><documentversion>1.04</documentversion></documentinfo>"
        f"<patient><generalpatientdata><name><lastname>{NAME}</lastname></name></generalpatientdata></patient>"
        f"<dataacquisition><signalcharacteristics><samplingrate>{rate}</samplingrate><resolution>{STEP}</resolution>"
        "</signalcharacteristics></dataacquisition><waveforms>"
        f'<parsedwaveforms dataencoding="Base64" compression="Uncompressed" durationperchannel="{duration:g}" '
        f'numberofleads="{len(leads)}" leadlabels="{" ".join(leads)}">{data}</parsedwaveforms></waveforms></restingecgdata>\n',
        encoding="utf-16",
    )
    return path


def write_aecg(path: Path, steps, rate, leads=LEADS, unit="uV") -> Path:
    sequences = [
        f'<component><sequence><code code="MDC_ECG_LEAD_{lead.upper()}"/><value xsi:type="SLIST_PQ">'
        f'<origin value="0" unit="{unit}"/><scale value="{STEP}" unit="{unit}"/>'
        f"<digits>{' '.join(map(str, row))}</digits></value></sequence></component>"
        for lead, row in zip(leads, steps)
    ]
    time = (
        '<component><sequence><code code="TIME_ABSOLUTE"/><value xsi:type="GLIST_TS"><head value="20200101120000.000"/>'
        f'<increment value="{1 / rate}" unit="s"/></value></sequence></component>'
    )
    subject = f"<subjectDemographicPerson><name><family>{NAME}</family></name></subjectDemographicPerson>"
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n<AnnotatedECG xmlns="urn:hl7-org:v3" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><componentOf><timepointEvent><componentOf><subjectAssignment>'
        f"<subject><trialSubject>{subject}</trialSubject></subject></subjectAssignment></componentOf></timepointEvent></componentOf>"
        f'<component><series><code code="RHYTHM"/><component><sequenceSet>{time}{"".join(sequences)}</sequenceSet></component>'
        "</series></component></AnnotatedECG>\n"
    )
    return path


def write_scp(path: Path, steps, rate, leads=LEADS) -> Path:
    """Uncompressed (no section 2), sections 0, 1, 3 and 6 of EN 1064; every section ends with an even length."""
    samples = steps.shape[1]
    name = NAME.encode() + b"\0"
    bodies = {
        1: struct.pack("<BH", 0, len(name)) + name + struct.pack("<BHHBB", 5, 4, 1950, 1, 1) + struct.pack("<BH", 255, 0),
        3: bytes([len(leads), len(leads) << 3 | 4]) + b"".join(struct.pack("<IIB", 1, samples, _SCP_LEADS[n]) for n in leads),
        6: struct.pack("<HHBB", round(1000 * STEP), 1_000_000 // rate, 0, 0)
        + struct.pack("<H", 2 * samples) * len(leads)
        + np.ascontiguousarray(steps, "<i2").tobytes(),
    }
    bodies = {number: body + bytes(len(body) % 2) for number, body in bodies.items()}
    head = 16 + 10 * 12
    place, pointers, sections = 7 + head, [(0, head, 7)], []
    for number, body in bodies.items():
        length = 16 + len(body)
        pointers.append((number, length, place))
        sections.append(section(number, body, bytes(6)))
        place += length
    pointers += [(number, 0, 0) for number in range(12) if number not in {0, *bodies}]
    table = b"".join(struct.pack("<HII", *pointer) for pointer in pointers)
    content = section(0, table, b"SCPECG") + b"".join(sections)
    rest = struct.pack("<I", 6 + len(content)) + content
    path.write_bytes(struct.pack("<H", crc_hqx(rest, 0xFFFF)) + rest)
    return path


def section(number: int, body: bytes, reserved: bytes) -> bytes:
    rest = struct.pack("<HIBB", number, 16 + len(body), 13, 13) + reserved + body
    return struct.pack("<H", crc_hqx(rest, 0xFFFF)) + rest


def write_mat(path: Path, steps, version="4") -> Path:
    """As the challenges of PhysioNet (version 4, `val`) and of CPSC (version 5, `ECG.data`, compressed)."""
    if version == "4":
        savemat(path, {"val": steps.astype(np.int16)}, format="4")
    else:
        savemat(path, {"ECG": {"sex": "Male", "age": 70, "data": steps * STEP / 1000}}, do_compression=True)
    return path
