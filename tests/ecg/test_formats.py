"""Files of ECG machines: the same recording in each gives the same signal; what cannot be read is refused in one line."""

import os
import zlib

import edfio
import numpy as np
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian
from scipy.io import savemat

from ecgbyte_jax.ecg.formats import library
from ecgbyte_jax.ecg.formats.own import read_own
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.ecg.signal import clean
from ecgbyte_jax.ecg.synthetic import SAMPLE_RATE, random_heart, synthesize
from ecgbyte_jax.errors import ConfigError, EcgByteError, RecordError
from tests.ecg import files

RATE = int(SAMPLE_RATE)
# Files that say what is in them -> their writers.
SELF_DESCRIBED = {
    "record": files.write_wfdb,
    "a.csv": files.write_csv,
    "a.dcm": files.write_dicom,
    "a.edf": files.write_edf,
    "muse.xml": files.write_muse,
    "sierra.xml": files.write_sierra,
    "aecg.xml": files.write_aecg,
    "a.scp": files.write_scp,
}
MACHINES = [name for name in SELF_DESCRIBED if name not in ("record", "a.csv")]


@pytest.fixture(scope="module")
def steps() -> np.ndarray:
    """int16 [12, N] in which the limb leads follow Einthoven and Goldberger exactly."""
    rng = np.random.default_rng(0)
    signal = np.round(synthesize(random_heart(rng), rng) / files.STEP / 2).astype(np.int16)
    one, two = 2 * signal[0], 2 * signal[1]
    return np.stack([one, two, two - one, -(one + two) // 2, one - two // 2, two - one // 2, *signal[6:]])


def test_the_same_recording_in_every_format_gives_the_same_clean_signal(steps, tmp_path):
    known = Record((steps * files.STEP / 1000).astype(np.float32), SAMPLE_RATE, LEADS)
    read = {name: read_own(write(tmp_path / name, steps, RATE)) for name, write in SELF_DESCRIBED.items()}
    np.save(tmp_path / "a.npy", steps * files.STEP)
    read["a.npy"] = read_own(tmp_path / "a.npy", RATE, LEADS, "uV")
    read["5.mat"] = read_own(files.write_mat(tmp_path / "5.mat", steps, "5"), RATE, LEADS)
    for name, own in read.items():
        record = own.record
        assert record.sample_rate == SAMPLE_RATE and {*record.leads} == {*LEADS}, name
        order = [record.leads.index(lead) for lead in LEADS]
        np.testing.assert_allclose(record.signal[order], known.signal, rtol=0, atol=1e-6, err_msg=name)
        assert files.NAME not in repr(own.notes) + repr(record)
    cleaned = clean(known)
    for name in ("muse.xml", "a.edf"):  # the others differ in nothing that cleaning sees
        np.testing.assert_allclose(clean(read[name].record), cleaned, rtol=0, atol=1e-5, err_msg=name)
    assert any(note.startswith("III, aVR, aVL, aVF are computed from I and II") for note in read["muse.xml"].notes)


def test_a_format_is_found_by_content_and_not_by_the_ending(steps, tmp_path):
    for name in MACHINES:
        written = SELF_DESCRIBED[name](tmp_path / name, steps, RATE)
        for other in ("IM0001", "a.csv", "b.DAT"):
            read = read_own(written.rename(tmp_path / other)).record
            assert read.signal.shape == (12, steps.shape[1]), (name, other)
            written = tmp_path / other
        written.unlink()


def test_a_mat_file_beside_its_header_is_a_wfdb_record(steps, tmp_path):
    files.write_mat(tmp_path / "A0001.mat", steps)
    lines = [f"A0001.mat 16+24 {1000 / files.STEP:g}/mV 16 0 0 {row.sum() % 65536} 0 {lead}" for lead, row in zip(LEADS, steps)]
    (tmp_path / "A0001.hea").write_text("\n".join([f"A0001 12 {RATE} {steps.shape[1]}", *lines]) + "\n")
    with_header = read_own(tmp_path / "A0001.mat").record
    np.testing.assert_allclose(with_header.signal, steps * files.STEP / 1000, rtol=0, atol=1e-6)
    (tmp_path / "A0001.hea").unlink()
    with pytest.raises(RecordError, match="the leads' names are missing"):
        read_own(tmp_path / "A0001.mat", RATE)
    given = read_own(tmp_path / "A0001.mat", RATE, LEADS, "uV").record.signal  # in steps
    np.testing.assert_allclose(given * files.STEP, with_header.signal, rtol=0, atol=1e-6)


def test_a_real_dicom_file_gives_its_rhythm_and_not_the_median_beat(shared):
    own = read_own(shared / "data/formats/anonymous_ecg.dcm")
    assert own.record.signal.shape == (12, 10_000) and own.record.sample_rate == 1000 and own.record.leads == LEADS
    steps = own.record.signal / 0.00125
    assert np.abs(steps - np.round(steps)).max() < 1e-3 and own.notes == ()


def test_of_several_waveforms_the_recorded_one_with_most_leads_is_read(steps, tmp_path):
    beat = files.waveform(steps[:, :500], RATE, originality="DERIVED")
    pair = files.waveform(steps[:2], RATE, LEADS[:2])
    whole = files.waveform(steps, RATE, meanings=False)
    own = read_own(files.write_dicom(tmp_path / "a.dcm", steps, RATE, groups=[beat, pair, whole]))
    assert own.record.signal.shape == steps.shape and own.record.leads == LEADS
    assert own.notes == ("waveform 3 of 3 is read, which has most leads and is longest",)
    with pytest.raises(RecordError, match="derived waveforms alone"):
        read_own(files.write_dicom(tmp_path / "b.dcm", steps, RATE, groups=[beat]))


def test_units_are_those_of_the_file(steps, tmp_path):
    small = (steps // 25).astype(np.int16)  # as many nV as there were uV, as many mV as volts
    volts = files.waveform(steps, RATE, unit="mV")
    wrong = files.waveform(steps, RATE, unit="mm[Hg]")
    for path, message in (
        (files.write_dicom(tmp_path / "mV.dcm", steps, RATE, groups=[volts]), "looks like microvolts"),  # 300 mV and more
        (files.write_dicom(tmp_path / "mmHg.dcm", steps, RATE, groups=[wrong]), r"unit 'mm\[Hg\]', one of"),
        (files.write_edf(tmp_path / "mV.edf", steps, RATE, unit="mV"), "looks like microvolts"),
        (files.write_edf(tmp_path / "none.edf", steps, RATE, unit=""), "lead I has the unit ''"),
        (files.write_aecg(tmp_path / "mV.xml", steps, RATE, unit="mV"), "looks like microvolts"),
        (files.write_aecg(tmp_path / "none.xml", steps, RATE, unit=""), "lead I has no gain and unit"),
        (files.write_muse(tmp_path / "none.xml", steps, RATE, units="BITS"), "lead I has no gain and unit"),
        (files.write_edf(tmp_path / "small.edf", small // 25, RATE), "looks like volts"),
    ):
        with pytest.raises(RecordError, match=message) as caught:
            read_own(path)
        assert "\n" not in str(caught.value)
    millivolts = [files.waveform((steps // 1000).astype(np.int16), RATE, unit="mV")]
    assert np.abs(read_own(files.write_dicom(tmp_path / "b.dcm", steps, RATE, groups=millivolts)).record.signal).max() > 1


def test_leads_that_are_missing_late_or_of_two_rates_are_refused(steps, tmp_path):
    late = files.waveform(steps, RATE)
    late.ChannelDefinitionSequence[3].ChannelSampleSkew = 5
    padded = files.waveform(steps, RATE)
    padded.WaveformPaddingValue = int(steps[0, 7]).to_bytes(2, "little", signed=True)
    padded["WaveformPaddingValue"].VR = "OW"
    breath = edfio.EdfSignal(np.sin(np.arange(10 * 25)), 25, label="Resp", physical_dimension="L")
    slow = edfio.EdfSignal(np.sin(np.arange(10 * 25)), 25, label="V6", physical_dimension="uV")
    assert read_own(files.write_edf(tmp_path / "b.edf", steps, RATE, also=[breath])).record.leads == LEADS
    for path, message in (
        (files.write_dicom(tmp_path / "a.dcm", steps, RATE, groups=[late]), "lead aVR is 5 samples late"),
        (files.write_dicom(tmp_path / "b.dcm", steps, RATE, groups=[padded]), "missing samples"),
        (files.write_edf(tmp_path / "a.edf", steps[:11], RATE, LEADS[:11], also=[slow]), r"leads at \[25.0, 500.0\] Hz"),
        (files.write_edf(tmp_path / "c.edf", steps[:3], RATE, LEADS[:3]), r"leads \['aVR', .* are missing"),
        (files.write_scp(tmp_path / "a.scp", steps[:3], RATE, LEADS[:3]), "are missing"),
        (files.write_sierra(tmp_path / "a.xml", steps[:3], RATE, LEADS[:3]), "are missing"),
        (files.write_edf(tmp_path / "40.edf", steps, 40), "at 40 Hz a QRS complex is not recorded"),
    ):
        with pytest.raises(RecordError, match=message):
            read_own(path)
    with pytest.raises(RecordError, match="the file gives rate and leads; omit --sample_rate and --leads"):
        read_own(tmp_path / "b.edf", RATE)


BOMB = (
    b"""<?xml version="1.0"?><!DOCTYPE RestingECG [<!ENTITY a "haha"><!ENTITY b "&a;&a;&a;&a;">]><RestingECG>&b;</RestingECG>"""
)
OUTSIDE = b"""<!DOCTYPE RestingECG [<!ENTITY a SYSTEM "file:///etc/passwd">]><RestingECG>&a;</RestingECG>"""


@pytest.mark.parametrize(
    "content, message",
    [
        (b"%PDF-1.7\n", "a PDF found"),
        (b"", "an empty file found"),
        (b"PK\x03\x04" + bytes(100), "a ZIP archive found"),
        (b"\x1f\x8b" + bytes(100), "a gzip file found"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file found"),
        (b"MATLAB 7.3 MAT-file" + bytes(600), "a MATLAB 7.3 file"),
        (b"\xffBIOSEMI" + b" " * 600, "a BDF file found"),
        (b"what is this?", "a file without an ending found, which is not read"),
        (BOMB, "XML with entities found"),
        (OUTSIDE, "XML with entities found"),
        (b"<html><body>no ECG</body></html>", "XML of <html> found"),
        (b"<RestingECG", r"not readable as XML, or damaged \(ParseError\)"),
        (b"<RestingECG></RestingECG>", "MUSE XML: No rhythm waveform"),
        (b"<restingecgdata></restingecgdata>", "not readable as Philips XML"),
    ],
)
def test_what_is_no_ecg_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(RecordError, match=message) as caught:
        read_own(tmp_path / "a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("start, ending", [(b"", ".csv"), (b"<RestingECG>", ".xml"), (bytes(128) + b"DICM", ".dcm")])
def test_files_of_2_gb_are_refused_before_they_are_read(tmp_path, start, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(start)
    os.truncate(path, 2 << 30)
    with pytest.raises(RecordError, match="2147 MB found, at most"):
        read_own(path)


def test_files_that_inflate_without_end_are_refused(steps, tmp_path, monkeypatch):
    monkeypatch.setattr("ecgbyte_jax.ecg.formats.matlab._MOST_BYTES", 1 << 20)
    savemat(tmp_path / "a.mat", {"val": np.zeros((12, 100_000))}, do_compression=True)
    assert (tmp_path / "a.mat").stat().st_size < 20_000
    with pytest.raises(RecordError, match="more than 1 MB of variables found"):
        read_own(tmp_path / "a.mat", RATE, LEADS)
    files.write_dicom(tmp_path / "a.dcm", steps, RATE, syntax=DeflatedExplicitVRLittleEndian)
    with pytest.raises(RecordError, match="that is not deflated expected"):
        read_own(tmp_path / "a.dcm")


def test_a_dicom_image_is_refused(steps, tmp_path):
    with pytest.raises(RecordError, match="DICOM of modality 'ECG' without a waveform found"):
        read_own(files.write_dicom(tmp_path / "a.dcm", steps, RATE, groups=[]))


@pytest.mark.parametrize("name", MACHINES)
def test_a_truncated_file_is_refused(steps, tmp_path, name):
    path = SELF_DESCRIBED[name](tmp_path / name, steps, RATE)
    os.truncate(path, path.stat().st_size * 2 // 3)
    with pytest.raises(RecordError, match=r"damaged|not readable|truncated") as caught:
        read_own(path)
    assert files.NAME not in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_samples_of_scp_ecg_are_found_by_their_checksum(steps, tmp_path):
    path = files.write_scp(tmp_path / "a.scp", steps, RATE)
    content = bytearray(path.read_bytes())
    content[-1001] ^= 4
    path.write_bytes(content)
    with pytest.raises(RecordError, match="checksums do not match"):
        read_own(path)


def test_a_missing_library_is_named_with_its_extra(steps, tmp_path, monkeypatch):
    written = {name: SELF_DESCRIBED[name](tmp_path / name, steps, RATE) for name in MACHINES}
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    for path in written.values():
        with pytest.raises(ConfigError, match=r"not installed: pip install 'ecgbyte-jax\[formats\]'"):
            read_own(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MACHINES, "a.csv", "5.mat", "4.mat", "a.npy"])
def test_500_damaged_files_end_with_typed_errors_alone(steps, tmp_path, name):
    short, path = np.ascontiguousarray(steps[:, :300]), tmp_path / name
    if name == "a.npy":
        np.save(path, short)
    elif name.endswith(".mat"):
        files.write_mat(path, short, name[0])
    else:
        SELF_DESCRIBED[name](path, short, RATE)
    whole, rng = path.read_bytes(), np.random.default_rng(zlib.crc32(name.encode()))
    about = (RATE, LEADS, "uV") if name.endswith((".mat", ".npy")) else ()
    refused = 0
    for _ in range(500):
        path.write_bytes(damaged(whole, rng))
        try:
            read_own(path, *about)
        except EcgByteError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, with a part left out or repeated, or with a few other bytes, mostly in its first kilobyte."""
    changed = bytearray(content)
    first, second = sorted(int(place) for place in rng.integers(0, len(content), 2))
    match rng.integers(5):
        case 0:
            return content[:second]
        case 1:
            return content[:first] + content[first + int(rng.integers(1, 200)) :]
        case 2:
            return content[:second] + content[first:]
    for place in rng.integers(0, len(content) if rng.integers(3) == 0 else min(1000, len(content)), rng.integers(1, 9)):
        changed[place] = rng.integers(256)
    return bytes(changed)
