"""ECG-QA (Oh et al. 2023): questions about single recordings of PTB-XL or MIMIC-IV-ECG, or comparing two."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ecgbyte_jax.corpora.example import Example, Recording, Rejected, published_splits
from ecgbyte_jax.corpora.tables import parse_integer
from ecgbyte_jax.errors import CorpusError, ExampleError
from ecgbyte_jax.settings import SPLITS

PUBLISHED_TYPES = ("single-verify", "single-choose", "single-query")
QUESTION_TYPES = (
    *PUBLISHED_TYPES,
    "comparison_consecutive-verify",
    "comparison_consecutive-query",
    "comparison_irrelevant-verify",
    "comparison_irrelevant-query",
)
_WORDINGS = ("template", "paraphrased")
_FIELDS = {"question_type", "question", "answer", "ecg_id", "sample_id"}
_META = ("question_type", "template_id", "attribute_type", "attribute")
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
    """Yields the questions of the given types (all if empty), in file order.

    folder: ECG-QA's `ptbxl` or `mimic-iv-ecg`; recordings: with their ecg_id (PTB-XL's ecg_id, MIMIC's study_id); wording:
    "template" or "paraphrased"; split: "official" for ECG-QA's own, "folds" for that of the recordings. Several answers are
    joined by a space, as published. Raises CorpusError if a folder is missing, a setting unknown, or no question has one of the
    types.
    """
    if wording not in _WORDINGS or split not in ("official", "folds"):
        raise CorpusError(
            f"data.wording {wording!r} and data.split {split!r} found; template or paraphrased, official or folds expected"
        )
    _check_folder(folder, wording)
    by_id = dict(recordings)
    kinds: set[str] = set()
    for path, index, row in _entries(folder / wording, SPLITS):
        kinds.update({_kind(row)} if isinstance(_kind(row), str) else ())
        if isinstance(row, Rejected):
            yield row
        elif _is_asked_for(row, question_types):
            official = path.parent.name if split == "official" else None
            yield _example(f"{path.parent.name}/{path.stem}/{index}", row, path, index, by_id, official)
    _check_types(folder / wording, question_types, kinds)


def read_published_questions(
    folder: Path, recordings: Iterable[tuple[str, Recording | Rejected]], question_types: tuple[str, ...]
) -> Iterator[Example | Rejected]:
    """Yields the questions of the given types in both wordings with ECG-Byte's own split, in the order of file paths.

    As published, the split is drawn over all questions about single ECGs, usable or not. Raises CorpusError if a folder is
    missing or a file unreadable, since the draw depends on all of them.
    """
    for wording in _WORDINGS:
        _check_folder(folder, wording)
    by_id = dict(recordings)
    kinds = Counter(_kind(row) for _, _, row in _published_entries(folder) if isinstance(_kind(row), str))
    _check_types(folder, question_types, set(kinds))
    splits = iter(published_splits(sum(kinds[kind] for kind in PUBLISHED_TYPES)))
    for path, index, row in _published_entries(folder):
        split = next(splits) if _kind(row) in PUBLISHED_TYPES else None
        if (split and _kind(row) in question_types) or not isinstance(_kind(row), str):  # the latter are rejected
            id = "/".join([*path.parts[-3:-1], path.stem, str(index)])
            yield _example(id, row, path, index, by_id, split)


def _published_entries(folder: Path) -> Iterator[tuple[Path, int, Any]]:
    for wording in sorted(_WORDINGS):
        for path, index, row in _entries(folder / wording, sorted(SPLITS)):
            if isinstance(row, Rejected):
                raise CorpusError(f"{row.file}: {row.reason}; data.published_split is drawn over the questions of all files")
            yield path, index, row


def _entries(folder: Path, splits: Iterable[str]) -> Iterator[tuple[Path, int, Any]]:
    """(file, index, entry) of all files of one wording."""
    for split in splits:
        for path in sorted((folder / split).glob("*.json")):
            for index, row in enumerate(_rows(path)):
                yield path, index, row


def _check_folder(folder: Path, wording: str) -> None:
    if not (folder / wording).is_dir():
        raise CorpusError(f"data.ecgqa_root: no folder '{folder / wording}'. {_WHERE_TO_GET}")


def _check_types(folder: Path, question_types: tuple[str, ...], kinds: set[str]) -> None:
    """Raises CorpusError if there are questions, but none of the requested types."""
    if question_types and kinds and kinds.isdisjoint(question_types):
        raise CorpusError(
            f"data.question_types: {question_types} found, one of {sorted(kinds)} expected, the types in '{folder}'"
        )


def _kind(row: Any) -> Any:
    """The type of a question; None if the entry has none."""
    return row.get("question_type") if isinstance(row, dict) else None


def _is_asked_for(row: Any, question_types: tuple[str, ...]) -> bool:
    """Whether an entry has one of these types (any if empty), or no type at all and must be rejected."""
    return not question_types or _kind(row) in question_types or not isinstance(_kind(row), str)


def _rows(path: Path) -> list:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"), parse_int=parse_integer)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return [_rejected(path, f"not readable as JSON, none of its questions: {error}")]
    return rows if isinstance(rows, list) else [_rejected(path, "a list of questions expected")]


def _rejected(path: Path, reason: str) -> Rejected:
    """Rejects an entire file."""
    return Rejected(f"{path.parent.name}/{path.stem}", str(path), reason)


def _example(
    id: str, row: Any, path: Path, index: int, recordings: Mapping[str, Recording | Rejected], split: str | None
) -> Example | Rejected:
    """One question; `split` None uses that of the recordings."""
    try:
        ecg_ids, question, answer = _read_row(row)
        entries = [recordings.get(str(ecg_id)) for ecg_id in ecg_ids]
        unknown = [ecg_id for ecg_id, entry in zip(ecg_ids, entries) if entry is None]
        if unknown:
            raise ExampleError(f"ecg_id {unknown[0]!r} is not in the database of recordings")
        bad = next((entry for entry in entries if isinstance(entry, Rejected)), None)
        if bad:
            return Rejected(id, bad.file, bad.reason)
        shown = [entry for entry in entries if isinstance(entry, Recording)]
        splits = list(dict.fromkeys(recording.split for recording in shown))
        if split is None and len(splits) > 1:
            raise ExampleError(f"its ECGs are in different splits: {splits}")
        patients = list(dict.fromkeys(recording.patient for recording in shown))
        meta = {name: row[name] for name in _META if row.get(name) is not None} | (
            {"patients": patients} if len(patients) > 1 else {}
        )
        records = tuple(recording.record for recording in shown)
        strata = tuple(recording.stratum for recording in shown)
        return Example(id, patients[0], split or splits[0], records, question, answer, meta, strata=strata)
    except ExampleError as error:
        return Rejected(id, str(path), f"entry {index}: {error}")


def _read_row(row: Any) -> tuple[list, str, str]:
    """(ecg_ids, question, answer); raises ExampleError for anything else."""
    if not isinstance(row, dict) or not set(row) >= _FIELDS:
        raise ExampleError(f"an object with the fields {sorted(_FIELDS)} expected")
    ecg_ids, answers, question = row["ecg_id"], row["answer"], row["question"]
    if not (isinstance(ecg_ids, list) and len(ecg_ids) in (1, 2)):
        raise ExampleError(f"ecg_id {ecg_ids!r} found, a list of one id expected, or of two for a comparison")
    if not isinstance(row["question_type"], str):
        raise ExampleError(f"question_type {row['question_type']!r} found, a text expected")
    if not (isinstance(question, str) and isinstance(answers, list) and all(isinstance(a, str) for a in answers)):
        raise ExampleError("question and answers are not texts")
    return ecg_ids, question, " ".join(answers)
