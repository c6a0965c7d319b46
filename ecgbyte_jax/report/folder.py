"""What lies in a run's folder, read with care: only the evaluation must be there."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ecgbyte_jax.errors import ReportError

_BEST, _WORST, _RANDOM = 4, 3, 3
_ROW = {"id": str, "segment": int, "patient": str, "question": str, "reference": str, "answer": str}


@dataclass(frozen=True)
class Chosen:
    """One example for people: a row of generations.jsonl, why it was chosen, and how many of its words are right (F1, 0..1)."""

    row: dict
    why: str
    score: float

    @property
    def question_type(self) -> str:
        return question_type(self.row)


def question_type(row: dict) -> str:
    """What the corpus calls the kind of a row's question, "" where it does not."""
    meta = row.get("meta")
    return str(meta.get("question_type", "")) if isinstance(meta, dict) else ""


def read_evaluation(workdir: Path) -> tuple[dict, list[dict]]:
    """(results.json, the rows of generations.jsonl); raises ReportError, naming the file, where they are missing or damaged."""
    results = read_json(workdir / "eval" / "results.json")
    path = workdir / "eval" / "generations.jsonl"
    if results is None or not path.is_file():
        raise ReportError(f"{workdir}: no finished evaluation (eval/results.json) there to report on; add eval to --stage")
    rows = read_lines(path)
    for number, row in enumerate(rows, start=1):
        wrong = [name for name, kind in _ROW.items() if not isinstance(row.get(name), kind)]
        if wrong:
            raise ReportError(f"{path}, line {number}: field {wrong[0]!r} is missing or of another type; run eval again")
    if not isinstance(results.get("scores"), dict) or not rows:
        raise ReportError(f"{path.with_name('results.json')}: no scores, or no answers beside it; run eval again")
    return results, rows


def read_json(path: Path) -> dict | None:
    """A JSON object; None where there is no such file. Raises ReportError where it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReportError(f"{path}: not readable as JSON ({error}); make it again by its stage") from error
    if not isinstance(found, dict):
        raise ReportError(f"{path}: a JSON object wanted; make it again by its stage")
    return found


def read_lines(path: Path) -> list[dict]:
    """The whole lines of a JSONL file, none where there is no such file; a last line without its end is left out."""
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            found.append(json.loads(line))
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ReportError(f"{path}, line {number}: not readable as JSON ({error}); make it again by its stage") from error
        if not isinstance(found[-1], dict):
            raise ReportError(f"{path}, line {number}: a JSON object wanted; make it again by its stage")
    return found


def choose_examples(rows: list[dict], seed: int) -> list[Chosen]:
    """Ten of the evaluated rows: four of the best, three of the worst, three at random; fewer where there are fewer.

    Best and worst go by the words that answer and reference share, then by log-probability where it is told (the worst are
    those that the model was surest of), and take question types and patients in turn.
    """
    rows = first_seed(rows)
    scores = np.array([shared_words(row["reference"], row["answer"]) for row in rows])
    sure = np.array([float(row.get("log_prob") or 0.0) for row in rows])
    drawn = np.random.default_rng(seed).permutation(len(rows))
    taken: list[int] = []
    chosen = []
    for why, order, count in (
        ("best", drawn[np.lexsort((-sure[drawn], -scores[drawn]))], _BEST),
        ("worst", drawn[np.lexsort((-sure[drawn], scores[drawn]))], _WORST),
        ("random", drawn, _RANDOM),
    ):
        left = [int(i) for i in order if i not in taken]
        some = left[:count] if why == "random" else _in_turn(rows, scores, left, count)
        taken += some
        chosen += [Chosen(rows[i], why, float(scores[i])) for i in some]
    return chosen


def first_seed(rows: list[dict]) -> list[dict]:
    """Of several seeds' answers those of the first one."""
    return [row for row in rows if row.get("seed") == rows[0].get("seed")]


def _in_turn(rows: list[dict], scores: np.ndarray, order: list[int], count: int) -> list[int]:
    """The first `count` of `order`, those first whose question type and then whose patient is not there yet, among equals."""
    chosen: list[int] = []
    types: Counter[str] = Counter()
    patients: Counter[str] = Counter()
    equal = [i for i in order if order and scores[i] == scores[order[min(count, len(order)) - 1]]]
    better = [i for i in order[:count] if i not in set(equal)]
    while len(chosen) < count and (better or equal):
        pool = better or equal
        next_one = min(pool, key=lambda i: (types[question_type(rows[i])], patients[rows[i]["patient"]]))
        pool.remove(next_one)
        chosen.append(next_one)
        types[question_type(rows[next_one])] += 1
        patients[rows[next_one]["patient"]] += 1
    return chosen


def shared_words(reference: str, answer: str) -> float:
    """F1 of the words that two texts share, repeated ones as often as both have them; 0 where one is empty."""
    one, other = Counter(reference.split()), Counter(answer.split())
    shared = sum((one & other).values())
    return 2 * shared / (one.total() + other.total()) if shared else 0.0


def set_aside(path: Path) -> list[tuple[str, int]]:
    """(reason with its numbers and names left out, how many examples) of quarantine.jsonl, the commonest first."""
    reasons = Counter(re.sub(r"'[^']*'|\d+(\.\d+)?", "…", str(line.get("reason", ""))) for line in read_lines(path))
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
