"""ECG-QA (Oh et al. 2023): questions about recordings of PTB-XL or MIMIC-IV-ECG, single ones and two that are compared."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ecgbyte_jax.corpora.example import SPLITS, Example, Recording, Rejected
from ecgbyte_jax.errors import CorpusError, ExampleError

_FIELDS = {"question_type", "question", "answer", "ecg_id", "sample_id"}
_META = ("question_type", "template_id", "attribute_type")
_WHERE_TO_GET = (
    "ECG-QA (CC BY 4.0) is the folder 'ecgqa' of https://github.com/Jwoo5/ecg-qa; set --config.data.ecgqa_root to it"
)


def read_questions(
    folder: Path,
    recordings: Iterable[tuple[str, Recording | Rejected]],
    wording: str,
    question_types: tuple[str, ...],
    split: str,
) -> Iterator[Example | Rejected]:
    """The questions of the given types (none given: of all), in the order of the files.

    folder: ECG-QA's `ptbxl` or `mimic-iv-ecg`; recordings: with their ecg_id (PTB-XL's ecg_id, MIMIC's study_id); wording:
    "template" or "paraphrased"; split: "official" takes ECG-QA's own, "folds" that of the recordings. Several answers are
    joined by one space, as published. Raises CorpusError where a folder is missing or a setting unknown.
    """
    if wording not in ("template", "paraphrased") or split not in ("official", "folds"):
        raise CorpusError(
            f"data.wording {wording!r} and data.split {split!r} found; template or paraphrased, official or folds wanted"
        )
    if not (folder / wording).is_dir():
        raise CorpusError(f"data.ecgqa_root: no folder '{folder / wording}'. {_WHERE_TO_GET}")
    by_id = dict(recordings)
    for official in SPLITS:
        for path in sorted((folder / wording / official).glob("*.json")):
            for index, row in enumerate(_rows(path)):
                id = f"{path.parent.name}/{path.stem}/{index}"
                if isinstance(row, Rejected):
                    yield row
                elif not isinstance(row, dict) or not question_types or row.get("question_type") in (None, *question_types):
                    yield _example(id, row, path, index, by_id, official if split == "official" else None)


def _rows(path: Path) -> list:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return [_rejected(path, f"not readable as JSON, none of its questions: {error}")]
    return rows if isinstance(rows, list) else [_rejected(path, "a list of questions wanted")]


def _rejected(path: Path, reason: str) -> Rejected:
    """A whole file."""
    return Rejected(f"{path.parent.name}/{path.stem}", str(path), reason)


def _example(
    id: str, row: object, path: Path, index: int, recordings: Mapping[str, Recording | Rejected], split: str | None
) -> Example | Rejected:
    """One question; `split` None takes the recordings' own."""
    try:
        ecg_ids, question, answer = _read_row(row)
        found = [recordings.get(str(ecg_id)) for ecg_id in ecg_ids]
        unknown = [ecg_id for ecg_id, recording in zip(ecg_ids, found) if recording is None]
        if unknown:
            raise ExampleError(f"ecg_id {unknown[0]} is not in the database of recordings")
        bad = next((recording for recording in found if isinstance(recording, Rejected)), None)
        if bad:
            return Rejected(id, bad.file, bad.reason)
        splits = list(dict.fromkeys(recording.split for recording in found))
        if split is None and len(splits) > 1:
            raise ExampleError(f"its ECGs stand in different splits: {splits}")
        patients = list(dict.fromkeys(recording.patient for recording in found))
        meta = {name: row[name] for name in _META if name in row} | ({"patients": patients} if len(patients) > 1 else {})
        records = tuple(recording.record for recording in found)
        return Example(id, patients[0], split or splits[0], records, question, answer, meta)
    except ExampleError as error:
        return Rejected(id, str(path), f"entry {index}: {error}")


def _read_row(row: object) -> tuple[list, str, str]:
    """(ecg_ids, question, answer); raises ExampleError for anything else."""
    if not isinstance(row, dict) or not set(row) >= _FIELDS:
        raise ExampleError(f"an object with the fields {sorted(_FIELDS)} wanted")
    ecg_ids, answers, question = row["ecg_id"], row["answer"], row["question"]
    if not (isinstance(ecg_ids, list) and len(ecg_ids) in (1, 2)):
        raise ExampleError(f"ecg_id {ecg_ids!r} found, a list of one id wanted, or of two for a comparison")
    if not (isinstance(question, str) and isinstance(answers, list) and all(isinstance(a, str) for a in answers)):
        raise ExampleError("question and answers are not texts")
    return ecg_ids, question, " ".join(answers)
