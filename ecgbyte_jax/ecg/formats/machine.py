"""Files of ECG machines that ecgdatakit reads: GE MUSE, Philips Sierra and HL7 aECG (XML), and SCP-ECG (EN 1064).

Axes: L leads, N samples.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from ecgbyte_jax.ecg.formats.leads import millivolts, name_leads
from ecgbyte_jax.ecg.formats.library import reading, require
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.errors import RecordError

if TYPE_CHECKING:
    from ecgdatakit import Lead, Parser

_NAMES = {"muse": "MUSE XML", "sierra": "Philips XML", "aecg": "HL7 aECG", "scp": "SCP-ECG"}


def read_machine(path: Path, kind: Literal["muse", "sierra", "aecg", "scp"], notes: list[str]) -> Record:
    """Reads the rhythm, not the median beat beside it, and adds to `notes` what is doubtful.

    Raises RecordError, and ConfigError without ecgdatakit.
    """
    what = _NAMES[kind]
    require(path, what, "ecgdatakit")
    from ecgdatakit import ChecksumWarning, ECGDataKitError

    parser = _parser(kind)
    with reading(path, what) as warned:
        try:
            found = parser.parse(path)
        except ECGDataKitError as error:  # its own words are about sections and leads alone
            words = " ".join(str(error).replace(f" in {path}", "").split())
            raise RecordError(f"{path}: not readable as {what}: {words[:200]}") from error
        if kind == "scp" and any(issubclass(warning.category, ChecksumWarning) for warning in warned):
            raise RecordError(f"{path}: damaged: its checksums do not match")
        notes += [f"{what}: {warning.message}" for warning in warned]
        leads = [lead for lead in found.leads if name_leads(path, [lead.label])[0][0] in LEADS]
        names = name_leads(path, [lead.label for lead in leads])[0]
        spans = {(len(lead.samples), lead.sampling_rate, lead.annotations.get("start_sample", "1")) for lead in leads}
        if len(spans) != 1:
            raise RecordError(
                f"{path}: leads of {len(spans)} lengths, rates or beginnings found, leads of the same time expected"
            )
        exact = found.raw_metadata.get("rhythm_time", {}).get("sampling_rate_exact")  # of an aECG; that of a lead is rounded
        rows = [_millivolts(path, name, lead) for name, lead in zip(names, leads)]
        return Record(np.stack(rows), float(exact or leads[0].sampling_rate), names)


def _parser(kind: str) -> "Parser":
    match kind:
        case "muse":
            from ecgdatakit.parsing.parsers.ge_muse_xml import GEMuseXMLParser

            return GEMuseXMLParser()
        case "sierra":
            from ecgdatakit.parsing.parsers.sierra_xml import SierraXMLParser

            return SierraXMLParser()
        case "aecg":
            from ecgdatakit.parsing.parsers.hl7_aecg import HL7aECGParser

            return HL7aECGParser()
    from ecgdatakit.parsing.parsers.scp_ecg import SCPECGParser

    return SCPECGParser()


def _millivolts(path: Path, name: str, lead: "Lead") -> np.ndarray:
    """float32 [N]; raises RecordError for a lead without gain and unit."""
    if not lead.resolution_unit or not lead.resolution:
        raise RecordError(f"{path}: lead {name} has no gain and unit, so its millivolts are unknown")
    values = lead.samples * lead.resolution + lead.offset if lead.is_raw else lead.samples
    return (values * millivolts(path, name, lead.resolution_unit)).astype(np.float32)
