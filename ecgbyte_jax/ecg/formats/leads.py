"""The names and units that files give to leads."""

import re
from collections.abc import Sequence
from pathlib import Path

from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.errors import RecordError

UNITS = {"mV": 1.0, "uV": 1e-3, "V": 1e3}  # in mV
_UNIT_NAMES = {"mv": "mV", "uv": "uV", "µv": "uV", "μv": "uV", "v": "V"}  # both signs of micro
_CANONICAL = {name.upper(): name for name in LEADS}
# 'Lead I', 'LEAD_I', 'MDC_ECG_LEAD_V1', 'I (mV)', 'V1 [uV]', 'V1_uV', and 'Lead I (Einthoven)' of DICOM.
_LEAD = re.compile(
    r"(?:(?:MDC|ECG|EKG|Lead|Ableitung)[\s_.:-]*)*(?P<lead>I{1,3}|aV[RLF]|V[1-6])(?:\s*\(Einthoven\))?"
    r"(?:[\s_,/]*[(\[]\s*(?P<unit>[^)\]]*?)\s*[)\]]|[\s_,/]+(?P<bare>[muµμ]V))?",
    re.ASCII | re.IGNORECASE,
)


def name_leads(path: Path, columns: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names, units or "") of columns; leads in their usual spelling, other names as they are."""
    names: list[str] = []
    units: list[str] = []
    for column in columns:
        match = _LEAD.fullmatch(column.strip())
        unit = (match["unit"] or match["bare"] or "") if match else ""
        if unit and unit.lower() not in _UNIT_NAMES:
            raise RecordError(f"{path}: column {column!r} has the unit {unit!r}, one of {tuple(UNITS)} expected")
        name = _CANONICAL[match["lead"].upper()] if match else column.strip()
        if name in LEADS and name in names:
            raise RecordError(f"{path}: columns {columns[names.index(name)]!r} and {column!r} are both lead {name}; keep one")
        names.append(name)
        units.append(_UNIT_NAMES.get(unit.lower(), ""))
    return tuple(names), tuple(units)


def millivolts(path: Path, lead: str, unit: str) -> float:
    """How many mV a unit of a lead is; raises RecordError for one that is no voltage."""
    name = _UNIT_NAMES.get(unit.strip().lower(), "")
    if not name:
        raise RecordError(f"{path}: lead {lead} has the unit {unit!r}, one of {tuple(UNITS)} expected")
    return UNITS[name]
