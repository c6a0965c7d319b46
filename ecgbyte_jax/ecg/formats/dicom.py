"""DICOM files with the waveform of an ECG (PS3.3, C.10.9).

Axes: L leads, N samples.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ecgbyte_jax.ecg.formats.leads import millivolts, name_leads
from ecgbyte_jax.ecg.formats.library import reading, require
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.errors import RecordError

if TYPE_CHECKING:
    from pydicom import Dataset

_WHAT = "DICOM"
_TAGS = ["Modality", "WaveformSequence"]  # all that is read: nothing of the patient
# The last number of a channel's code in SCP-ECG's scheme ('5.6.3-9-61') and in that of MDC ('2:61').
_CODES = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"} | {n + 2: f"V{n}" for n in range(1, 7)}
_LINEAR = ("SB", "UB", "SS", "US", "SL", "UL")  # the other kinds of samples are companded audio


def read_dicom(path: Path, notes: list[str]) -> Record:
    """Reads the recorded waveform, not the beats that were derived from it, and adds to `notes` if there are others.

    Raises RecordError, and ConfigError without pydicom.
    """
    require(path, _WHAT, "pydicom")
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info
    from pydicom.waveforms.numpy_handler import multiplex_array

    with reading(path, _WHAT):
        syntax = read_file_meta_info(path).TransferSyntaxUID
        if syntax.is_deflated or not syntax.is_little_endian:
            raise RecordError(
                f"{path}: transfer syntax '{syntax.name}' found, one in little endian that is not deflated expected"
            )
        dataset = dcmread(path, specific_tags=_TAGS)
        if not dataset.get("WaveformSequence"):
            modality = str(dataset.get("Modality", ""))[:16]
            raise RecordError(f"{path}: DICOM of modality {modality!r} without a waveform found, an ECG expected")
        number = _choose(path, dataset.WaveformSequence, notes)
        group = dataset.WaveformSequence[number]
        if group.WaveformSampleInterpretation not in _LINEAR:
            raise RecordError(
                f"{path}: samples of kind {group.WaveformSampleInterpretation!r} found, one of {_LINEAR} expected"
            )
        steps = multiplex_array(dataset, number, as_raw=True)  # [N, L]
        _check_padding(path, group, steps)
        names = _names(path, group)
        channels = group.ChannelDefinitionSequence
        rows = [_scale(path, name, channel, row) for name, channel, row in zip(names, channels, steps.T, strict=True)]
        return Record(np.stack(rows), float(group.SamplingFrequency), names)


def _choose(path: Path, groups: "list[Dataset]", notes: list[str]) -> int:
    """The number of the recorded group with most leads, and of those the longest."""
    recorded = [i for i, group in enumerate(groups) if group.get("WaveformOriginality") != "DERIVED"]
    if not recorded:
        raise RecordError(f"{path}: derived waveforms alone found (median beats), a recorded one expected")
    chosen = max(
        recorded, key=lambda i: (len({*_names(path, groups[i])} & {*LEADS}), int(groups[i].NumberOfWaveformSamples), -i)
    )
    if len(recorded) > 1:
        notes.append(f"waveform {chosen + 1} of {len(groups)} is read, which has most leads and is longest")
    return chosen


def _names(path: Path, group: "Dataset") -> tuple[str, ...]:
    """Leads by the meaning of each channel's code, or by the code."""
    names = []
    for channel in group.ChannelDefinitionSequence:
        source = channel.ChannelSourceSequence[0]
        meaning, code = str(source.get("CodeMeaning", "")), str(source.get("CodeValue", ""))
        number = code.replace(":", "-").rpartition("-")[2]
        by_code = _CODES.get(int(number), meaning) if number.isdecimal() and number.isascii() else meaning
        names.append(meaning if name_leads(path, [meaning])[0][0] in LEADS else by_code)
    return name_leads(path, names)[0]


def _check_padding(path: Path, group: "Dataset", steps: np.ndarray) -> None:
    padding = group.get("WaveformPaddingValue")
    if padding is not None:
        value = np.frombuffer(padding, steps.dtype)[0] if isinstance(padding, bytes) else padding
        if (steps == value).any():
            raise RecordError(f"{path}: missing samples (padding of {value})")


def _scale(path: Path, name: str, channel: "Dataset", steps: np.ndarray) -> np.ndarray:
    """float32 [N] in mV; what is not a lead may have another unit, and stays in steps."""
    if name not in LEADS:
        return steps.astype(np.float32)
    if "ChannelSensitivity" not in channel or not channel.get("ChannelSensitivityUnitsSequence"):
        raise RecordError(f"{path}: lead {name} has no sensitivity and unit, so its millivolts are unknown")
    if abs(float(channel.get("ChannelSampleSkew") or 0)) >= 1:
        raise RecordError(
            f"{path}: lead {name} is {float(channel.ChannelSampleSkew):g} samples late, leads of the same time expected"
        )
    unit = millivolts(path, name, str(channel.ChannelSensitivityUnitsSequence[0].CodeValue))
    step = float(channel.ChannelSensitivity) * float(channel.get("ChannelSensitivityCorrectionFactor") or 1)
    if not step:
        raise RecordError(f"{path}: lead {name} has a sensitivity of 0, so its millivolts are unknown")
    return ((steps * step + float(channel.get("ChannelBaseline") or 0)) * unit).astype(np.float32)
