"""Users' own recordings, whatever file they are in and whatever their leads are called, completed to twelve leads.

Axes: L leads, N samples.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.ecg.formats.content import EXPECTED, kind_of
from ecgbyte_jax.ecg.formats.dicom import read_dicom
from ecgbyte_jax.ecg.formats.edf import read_edf
from ecgbyte_jax.ecg.formats.leads import name_leads
from ecgbyte_jax.ecg.formats.machine import read_machine
from ecgbyte_jax.ecg.formats.matlab import read_matlab
from ecgbyte_jax.ecg.formats.table import Reader, read_csv, read_npy, read_table
from ecgbyte_jax.ecg.headers import HIGHEST_RATE, LOWEST_RATE
from ecgbyte_jax.ecg.plausible import LIMB, check_limb_leads, check_plausible
from ecgbyte_jax.ecg.records import LEADS, Record, read_record
from ecgbyte_jax.errors import RecordError


@dataclass(frozen=True, eq=False)
class Own:
    """A recording with the twelve leads, and what its user should know, a sentence each.

    notes: what came from the file (unit, rate), which leads were computed, and what is doubtful.
    """

    record: Record
    notes: tuple[str, ...]


def read_own(path: str | Path, sample_rate: float = 0.0, leads: Sequence[str] = (), units: str = "") -> Own:
    """Reads a recording of any format that `content.kind_of` knows, or a WFDB record.

    Three formats say little about themselves: samples in CSV, NPY and MATLAB files are in `units` (mV, uV, V) at `sample_rate`
    Hz. A CSV file has one column per lead, separated by commas, semicolons or tabs, named by its header, or by `leads` if the
    header is absent or only counts columns; decimal commas need semicolons or tabs. An NPY or MATLAB array is [leads, samples]
    or [samples, leads], named by `leads`. A rate of 0 is taken from a time column; time columns must match the rate and are
    dropped. Units of "" are those in the leads' names, 'I (uV)', or mV; given ones must match the names'. All other formats,
    WFDB among them, take rate, leads and units from the file. Of the limb leads two of I, II and III suffice; the others are
    computed. Of a patient nothing is kept.

    Raises RecordError, with what to do, if rate, leads, units or numbers are missing, contradictory, ambiguous or implausible,
    and ConfigError if a library for the format is not installed.
    """
    path = Path(path)
    notes: list[str] = []
    if not path.name:
        raise RecordError(f"{path}: a folder found, {EXPECTED} expected")
    stem = wfdb_stem(path)
    if stem and not os.path.isfile(f"{stem}.hea"):
        raise RecordError(f"{path}: no such recording; {EXPECTED} expected")
    kind = "wfdb" if stem else kind_of(path)
    table = _table_reader(kind)
    if table:
        record = read_table(path, sample_rate, tuple(leads), units, table, notes)
    elif sample_rate or leads:
        about = "its header" if stem else "the file"
        raise RecordError(f"{path}: {about} gives rate and leads; omit --sample_rate and --leads")
    else:
        record = read_record(stem) if stem else _read_described(path, kind, notes)
        record = Record(record.signal, record.sample_rate, name_leads(path, record.leads)[0])
    if not np.isfinite(record.signal).all():
        raise RecordError(f"{path}: values that are not finite (NaN) found; remove or fill them first")
    notes += check_limb_leads(record, path)
    record = _complete(record, notes)
    notes += check_plausible(record, path)
    return Own(record, tuple(notes))


def wfdb_stem(path: Path) -> Path | None:
    """The WFDB record that a path names, with or without .hea, .dat or .mat; None for a file of another format."""
    if path.suffix == ".hea":
        return path.with_suffix("")
    if path.suffix in (".dat", ".mat") and os.path.isfile(path.with_suffix(".hea")):
        return path.with_suffix("")
    return None if os.path.isfile(path) else path


def _table_reader(kind: str) -> Reader | None:
    """For a format whose files do not say their rate and units."""
    match kind:
        case "csv":
            return read_csv
        case "npy":
            return read_npy
        case "mat":
            return read_matlab
    return None


def _read_described(path: Path, kind: str, notes: list[str]) -> Record:
    """A file that says what is in it; raises RecordError if its rate cannot be one."""
    match kind:
        case "dicom":
            record = read_dicom(path, notes)
        case "edf":
            record = read_edf(path)
        case "muse" | "sierra" | "aecg" | "scp":
            record = read_machine(path, kind, notes)
    if not LOWEST_RATE <= record.sample_rate <= HIGHEST_RATE:
        raise RecordError(f"{path}: sample rate {record.sample_rate:g} Hz found, {LOWEST_RATE:g} to {HIGHEST_RATE:g} expected")
    return record


def _complete(record: Record, notes: list[str]) -> Record:
    """Adds missing limb leads if two of I, II and III are there, in float32 mV, with a note of how."""
    absent = [name for name in LIMB if name not in record.leads]
    given = [name for name in ("I", "II", "III") if name in record.leads][:2]
    if not absent or len(given) < 2 or not {*LEADS[6:]} <= {*record.leads}:
        return record
    potentials = np.linalg.inv([LIMB[name] for name in given]) @ record.signal[[record.leads.index(name) for name in given]]
    computed = np.array([LIMB[name] for name in absent]) @ potentials
    law = "II = I + III, aVR = -(I + II) / 2, aVL = I - II / 2, aVF = II - I / 2"
    notes.append(f"{', '.join(absent)} are computed from {given[0]} and {given[1]}: {law}")
    return Record(np.concatenate([record.signal, computed.astype(np.float32)]), record.sample_rate, (*record.leads, *absent))
