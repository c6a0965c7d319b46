"""A run's files, read with care, and the examples that the report shows; only the evaluation must be there."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.errors import ReportError

_SHOWN = 12  # examples, at most
_ROW = {"id": str, "segment": int, "patient": str, "question": str, "reference": str, "answer": str}


@dataclass(frozen=True)
class Chosen:
    """An example to be shown: its row of generations, and how many of its words are right (F1, 0..1)."""

    row: dict
    score: float

    @property
    def question_type(self) -> str:
        """The corpus' name for the type of its question, or ""."""
        return question_type(self.row)

    @property
    def right(self) -> bool:
        """Whether the answer is the reference."""
        return is_right(self.row)


def is_right(row: dict) -> bool:
    """Whether a row's answer is its reference, but for spaces around them."""
    return row["answer"].strip() == row["reference"].strip()


def question_type(row: dict) -> str:
    """The corpus' name for the type of a row's question, "" where there is none."""
    meta = row.get("meta")
    return str(meta.get("question_type", "")) if isinstance(meta, dict) else ""


def read_evaluation(results_file: Path, generations_file: Path) -> tuple[dict, list[dict]]:
    """(results, rows of generations); raises ReportError, naming the file, where they are missing or damaged."""
    results = read_json(results_file)
    if results is None or not generations_file.is_file():
        missing = results_file if results is None else generations_file
        raise ReportError(f"{missing}: no such file, so no finished evaluation to report on; add eval to --stage")
    rows = read_lines(generations_file)
    for number, row in enumerate(rows, start=1):
        wrong = [name for name, kind in _ROW.items() if not isinstance(row.get(name), kind)]
        if wrong:
            raise ReportError(
                f"{generations_file}, line {number}: field {wrong[0]!r} is missing or of another type; run eval again"
            )
    scores = results.get("scores")
    if not isinstance(scores, dict) or not all(isinstance(row, dict) for row in scores.values()) or not rows:
        raise ReportError(f"{results_file}: no scores, or no answers beside it; run eval again")
    if results.get("ecg", "own") != "own":
        raise ReportError(f"{results_file}: asked with ecg {results['ecg']!r}, not with the ECGs that pictures would show")
    if "checkpoint_step" not in results:
        raise ReportError(f"{results_file}: no field 'checkpoint_step'; run eval again")
    return results, rows


def read_json(path: Path) -> dict | None:
    """A JSON object; None where there is no such file. Raises ReportError where it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReportError(f"{path}: not readable as JSON ({error}); run its stage again") from error
    if not isinstance(content, dict):
        raise ReportError(f"{path}: no JSON object found, one expected; run its stage again")
    return content


def read_lines(path: Path) -> list[dict]:
    """The complete lines of a JSONL file, none where there is no such file; an incomplete last line is left out."""
    if not path.is_file():
        return []
    lines = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            lines.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ReportError(f"{path}, line {number}: not readable as JSON ({error}); run its stage again") from error
        if not isinstance(lines[-1], dict):
            raise ReportError(f"{path}, line {number}: no JSON object found, one expected; run its stage again")
    return lines


def choose_examples(rows: list[dict], seed: int) -> list[Chosen]:
    """A right and a wrong answer of every question type, again and again up to twelve, by type; fewer where there are fewer.

    They are drawn at random among the questions, then the patients, that have come up least. Of more than six types the
    commonest six are shown.
    """
    rows = first_seed(rows)
    kinds = [kind for kind, _ in Counter(map(question_type, rows)).most_common(_SHOWN // 2)]
    drawn: dict[tuple[str, bool], list[dict]] = {(kind, right): [] for kind in kinds for right in (True, False)}
    for place in np.random.default_rng(seed).permutation(len(rows)):
        drawn.get((question_type(rows[place]), is_right(rows[place])), []).append(rows[place])
    questions: Counter[str] = Counter()
    patients: Counter[str] = Counter()
    chosen: list[dict] = []
    while len(chosen) < _SHOWN and any(drawn.values()):
        for left in list(filter(None, drawn.values()))[: _SHOWN - len(chosen)]:
            row = min(left, key=lambda row: (questions[row["question"]], patients[row["patient"]]))
            left.remove(row)
            questions[row["question"]] += 1
            patients[row["patient"]] += 1
            chosen.append(row)
    chosen.sort(key=lambda row: kinds.index(question_type(row)))
    return [Chosen(row, shared_words(row["reference"], row["answer"])) for row in chosen]


def first_seed(rows: list[dict]) -> list[dict]:
    """The rows of the first seed."""
    return [row for row in rows if row.get("seed") == rows[0].get("seed")]


def shared_words(reference: str, answer: str) -> float:
    """F1 of the words that two texts share, repeated words counted; 0 where either is empty."""
    expected, given = Counter(reference.split()), Counter(answer.split())
    shared = sum((expected & given).values())
    return 2 * shared / (expected.total() + given.total()) if shared else 0.0


def set_aside(path: Path) -> list[tuple[str, int]]:
    """(reason without its numbers and names, number of examples) of a quarantine file, the commonest first."""
    reasons = Counter(re.sub(r"'[^']*'|\d+(\.\d+)?", "…", str(line.get("reason", ""))) for line in read_lines(path))
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
