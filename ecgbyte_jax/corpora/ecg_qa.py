"""ECG-QA (Oh et al. 2023) on PTB-XL: questions about single recordings."""

import json
from collections.abc import Iterator
from pathlib import Path

from ecgbyte_jax.corpora.example import SPLITS, Example, Rejected
from ecgbyte_jax.corpora.ptbxl import read_database
from ecgbyte_jax.errors import CorpusError, ExampleError

_FIELDS = {"question_type", "question", "answer", "ecg_id", "sample_id"}
_WHERE_TO_GET = (
    "ECG-QA (CC BY 4.0) is the folder 'ecgqa' of https://github.com/Jwoo5/ecg-qa; set --config.data.ecgqa_root to it"
)


def read_questions(
    root: Path, ptbxl_root: Path, sample_rate: int, wording: str, question_types: tuple[str, ...], split: str
) -> Iterator[Example | Rejected]:
    """The questions of the given types, in the order of the files.

    wording: "template" or "paraphrased"; split: "official" takes ECG-QA's own, "folds" the folds of PTB-XL (1-8
    train, 9 valid, 10 test). Several answers are joined by one space, as published. Raises CorpusError where a folder
    is missing or a setting unknown.
    """
    folder = root / "ptbxl" / wording
    if wording not in ("template", "paraphrased") or split not in ("official", "folds"):
        raise CorpusError(
            f"data.wording {wording!r} and data.split {split!r} found; template or paraphrased, official or folds wanted"
        )
    if not folder.is_dir():
        raise CorpusError(f"data.ecgqa_root: no folder '{folder}'. {_WHERE_TO_GET}")
    recordings = dict(read_database(ptbxl_root, sample_rate))
    for official in SPLITS:
        for path in sorted((folder / official).glob("*.json")):
            for index, row in enumerate(_rows(path)):
                if isinstance(row, Rejected):
                    yield row
                elif not isinstance(row, dict) or row.get("question_type") in (None, *question_types):
                    yield _example(row, path, index, recordings, official if split == "official" else None)


def _rows(path: Path) -> list:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return [Rejected(f"{path.parent.name}/{path.stem}", str(path), f"not readable as JSON, none of its questions: {error}")]
    return (
        rows
        if isinstance(rows, list)
        else [Rejected(f"{path.parent.name}/{path.stem}", str(path), "a list of questions wanted")]
    )


def _example(row: object, path: Path, index: int, recordings: dict, split: str | None) -> Example | Rejected:
    """One question; `split` None takes the recording's own."""
    id = f"{path.parent.name}/{path.stem}/{index}"
    if not isinstance(row, dict) or not set(row) >= _FIELDS:
        return Rejected(id, str(path), f"entry {index}: an object with the fields {sorted(_FIELDS)} wanted")
    ecg_ids, answers, question = row["ecg_id"], row["answer"], row["question"]
    if not (isinstance(ecg_ids, list) and len(ecg_ids) == 1):
        return Rejected(id, str(path), f"entry {index}: ecg_id {ecg_ids!r} found, a list of one id wanted")
    if not (isinstance(question, str) and isinstance(answers, list) and all(isinstance(a, str) for a in answers)):
        return Rejected(id, str(path), f"entry {index}: question and answers are not texts")
    found = recordings.get(str(ecg_ids[0]))
    if found is None:
        return Rejected(id, str(path), f"entry {index}: ecg_id {ecg_ids[0]} is not in PTB-XL's database")
    if isinstance(found, Rejected):
        return Rejected(id, found.file, found.reason)
    try:
        return Example(id, found.patient, split or found.split, found.record, question, " ".join(answers))
    except ExampleError as error:
        return Rejected(id, str(path), f"entry {index}: {error}")
