"""PTB-XL's labels (Wagner et al. 2020): 5 diagnostic superclasses, 23 subclasses, or all 71 SCP-ECG statements.

As in its benchmark (Strodthoff et al. 2021) a statement counts where it is listed, whatever its likelihood, and a recording
without any label of the set is left out.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ecgbyte_jax.corpora.example import Example, Rejected
from ecgbyte_jax.corpora.labels.questions import Labelled, ask
from ecgbyte_jax.corpora.ptbxl import DATABASE, STATEMENTS, read_database
from ecgbyte_jax.corpora.source import SignalSource
from ecgbyte_jax.corpora.tables import read_csv
from ecgbyte_jax.errors import CorpusError

LABEL_SETS = {"superclasses": "diagnostic_class", "subclasses": "diagnostic_subclass", "statements": ""}  # and their columns
# Of classes that are not statements themselves, whose description names them; the file has only their codes.
_CLASSES = {
    "MI": "myocardial infarction",
    "STTC": "ST/T change",
    "CD": "conduction disturbance",
    "HYP": "hypertrophy",
    "_AVB": "AV block",
    "LAFB/LPFB": "left anterior or posterior fascicular block",
    "ISCA": "ischemia in anterior leads",
    "ISCI": "ischemia in inferior leads",
}


def read_statements(
    root: Path, sample_rate: int, label_set: str, question_types: tuple[str, ...]
) -> Iterator[Example | Rejected]:
    """Yields questions of the given types (all if empty) about the labels of every recording, in file order.

    label_set: one of `LABEL_SETS`. Raises CorpusError like `read_database`, or without scp_statements.csv.
    """
    names = _read_names(root / STATEMENTS, label_set)
    about = _read_rows(root / DATABASE)
    recordings: list[Labelled] = []
    seen: set[SignalSource] = set()
    for id, item in read_database(root, sample_rate):
        if isinstance(item, Rejected):
            yield item
            continue
        codes, age, sex = about.get(id, (None, -1, ""))
        if codes is None or item.record in seen:
            reason = "scp_codes: a dictionary of statements expected" if codes is None else "its recording is in an earlier row"
            yield Rejected(id, str(root / DATABASE), reason)
            continue
        seen.add(item.record)
        known = tuple(dict.fromkeys(names[code] for code in codes if code in names))
        unknown = tuple(f"SCP-ECG {code}" for code in codes if code not in names) if label_set == "statements" else ()
        if not known and not unknown:
            yield Rejected(id, str(root / DATABASE), f"no label of the set {label_set!r}")
        else:
            patient, split, fold = item.patient, item.split, item.stratum.fold
            recordings.append(Labelled(id, patient, split, item.record, known + unknown, age, sex, unknown, fold))
    choices = tuple(dict.fromkeys(names.values())) if label_set == "superclasses" else ()
    yield from ask(recordings, question_types, choices)


def _read_names(path: Path, label_set: str) -> dict[str, str]:
    """The name of each statement's label in a set; statements that are in none of its classes are left out."""
    if not path.is_file():
        raise CorpusError(f"data.root: no {STATEMENTS} in '{path.parent}', which names PTB-XL's statements")
    rows = [
        row
        for _, row in read_csv(path, {"", "description", "diagnostic_class", "diagnostic_subclass"})
        if isinstance(row, dict)
    ]
    described = {row[""]: row["description"].strip() for row in rows}
    column = LABEL_SETS[label_set]
    classes = {row[""]: row[column] if column else row[""] for row in rows}
    return {code: _CLASSES.get(label) or described.get(label) or label for code, label in classes.items() if label}


def _read_rows(path: Path) -> dict[str, tuple[list[str] | None, int, str]]:
    """ecg_id -> (statements, age, sex) of its first row; None for statements that cannot be read, -1 for an unknown age."""
    about: dict[str, tuple[list[str] | None, int, str]] = {}
    for _, row in read_csv(path, {"ecg_id", "scp_codes", "age", "sex"}):
        if isinstance(row, dict):
            sex = {"0": "male", "1": "female"}.get(row["sex"], "")
            about.setdefault(row["ecg_id"], (_codes(row["scp_codes"]), _age(row["age"]), sex))
    return about


def _codes(text: str) -> list[str] | None:
    try:
        codes = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return [*codes] if isinstance(codes, dict) and all(isinstance(code, str) and code.strip() for code in codes) else None


def _age(text: str) -> int:
    """Years; the data set writes 300 for all above 89."""
    age = int(text.partition(".")[0]) if re.fullmatch(r"\d{1,3}(\.0)?", text, re.ASCII) else -1
    return age if age < 300 else -1
