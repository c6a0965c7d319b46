"""CPSC 2018 (Liu et al. 2018), Chapman-Shaoxing-Ningbo (Zheng et al. 2020) and Georgia, as the PhysioNet challenges write them.

Beside each recording's leads its header holds the patient's age and sex, and its labels as SNOMED CT codes: `#Dx: 164889003`.
CPSC 2018's own release, without headers, is read too (`cpsc.py`).
"""

import csv
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from ecgbyte_jax.corpora.example import Example, Rejected, split_of, wfdb_record
from ecgbyte_jax.corpora.labels.cpsc import REFERENCE, read_first_release
from ecgbyte_jax.corpora.labels.questions import Labelled, ask
from ecgbyte_jax.corpora.tables import read_csv
from ecgbyte_jax.errors import CorpusError, ExampleError

CONDITIONS = "ConditionNames_SNOMED-CT.csv"  # of CSN


class ChallengeSet(NamedTuple):
    """The names of a set's recordings, which tell them from those of other sets, and where to get it."""

    names: re.Pattern[str]
    where_to_get: str


CPSC = ChallengeSet(
    re.compile(r"[AQ]\d{4}"),
    "CPSC 2018 (CC BY 4.0) is in training/cpsc_2018 and training/cpsc_2018_extra of "
    "https://physionet.org/content/challenge-2021/1.0.3/; set --config.data.root to a folder above its A0001.hea, or above the "
    "A0001.mat and REFERENCE.csv of its first release",
)
CSN = ChallengeSet(
    re.compile(r"JS\d{5}"),
    "Chapman-Shaoxing-Ningbo (CC BY 4.0) is at https://physionet.org/content/ecg-arrhythmia/1.0.0/; "
    "set --config.data.root to the folder that holds WFDBRecords",
)
GEORGIA = ChallengeSet(
    re.compile(r"E\d{5}"),
    "Georgia (CC BY 4.0) is in training/georgia of https://physionet.org/content/challenge-2021/1.0.3/; lay that folder, or a "
    "link to it, into data.root",
)


def read_challenge(root: Path, challenge: ChallengeSet, question_types: tuple[str, ...]) -> Iterator[Example | Rejected]:
    """Yields questions of the given types (all if empty) about every recording of the set in `root`, by name.

    Raises CorpusError if there is no recording.
    """
    recordings: list[Labelled] = []
    for item in read_labelled(root, challenge):
        if isinstance(item, Rejected):
            yield item
        else:
            recordings.append(item)
    yield from ask(recordings, question_types)


def read_labelled(root: Path, challenge: ChallengeSet) -> Iterator[Labelled | Rejected]:
    """Yields every recording of the set in `root`, by name, or what is wrong with it.

    The sets do not tell patients: a recording is one, and is split by a hash of its name (`split_of`). Early copies have
    abbreviations in place of codes; without headers CPSC 2018 is in its first release. A code without a name, here or in
    CSN's own table, is its own name. Raises CorpusError if there is no recording.
    """
    headers = [path for path in root.rglob("*.hea") if challenge.names.fullmatch(path.stem)]
    names = _read_names(root)
    if not headers and challenge is CPSC and (tables := sorted(root.rglob(REFERENCE))):
        yield from read_first_release(root, challenge.names, tables, names)
        return
    if not headers:
        raise CorpusError(f"data.root: no recording of this set in '{root}'. {challenge.where_to_get}")
    earlier: dict[str, Path] = {}
    for header in sorted(headers, key=lambda path: (path.stem, str(path))):
        try:
            if header.stem in earlier:
                raise ExampleError(f"a recording of this name is also at '{earlier[header.stem]}'")
            recording = _labelled(root, header, names)
            earlier[header.stem] = header
            yield recording
        except ExampleError as error:
            yield Rejected(header.stem, str(header), str(error))


def _read_names(root: Path) -> dict[str, str]:
    """The names of labels by code and abbreviation: the package's, and of codes that it does not know CSN's own."""
    with (files("ecgbyte_jax.corpora.labels") / "snomed_ct.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    names = {row[column]: row["name"] for row in rows for column in ("code", "abbreviation") if row[column]}
    for path in sorted(root.glob(CONDITIONS)):
        theirs = (row for _, row in read_csv(path, {"Full Name", "Snomed_CT"}) if not isinstance(row, str))
        names = {row["Snomed_CT"].strip(): row["Full Name"].strip() for row in theirs if row["Full Name"].strip()} | names
    return names


def _labelled(root: Path, header: Path, names: dict[str, str]) -> Labelled:
    fields = _comments(header)
    codes = [code.strip() for code in fields.get("dx", "").split(",")]
    codes = [code for code in dict.fromkeys(codes) if code and code != "Unknown"]
    if not codes:
        raise ExampleError("no diagnosis found, its codes expected in a line '#Dx: 164889003,...'")
    unnamed = tuple(f"SNOMED CT {code}" for code in codes if code not in names)
    labels = tuple(dict.fromkeys(names.get(code, f"SNOMED CT {code}") for code in codes))
    age, sex, patient = fields.get("age", ""), fields.get("sex", "").lower(), header.stem
    return Labelled(
        id=patient,
        patient=patient,
        split=split_of(patient),
        record=wfdb_record(root, str(header.relative_to(root))),
        labels=labels,
        age=int(age) if re.fullmatch(r"\d{1,3}", age, re.ASCII) else -1,
        sex=sex if sex in ("male", "female") else "",
        unnamed=unnamed,
    )


def _comments(header: Path) -> dict[str, str]:
    """What follows '#Name:' in a header's lines, by the name in lower case; raises ExampleError if it cannot be read."""
    try:
        lines = header.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ExampleError(f"cannot be read: {error.strerror}") from error
    found = (re.fullmatch(r"#\s*(\w+)\s*:\s*(.*?)\s*", line) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}
