"""ECG-Reasoning-Benchmark's scores (Oh et al. 2026, arXiv 2603.14326) by its rules for answers as texts, without a judge.

Axes: V conversations, P patients, M scores, R resamples of the patients.
"""

import re

import numpy as np

from ecgbyte_jax.evaluate.benchmarks.ecg_bench import Scores
from ecgbyte_jax.evaluate.intervals import draw

_STEPS = (
    "criterion_selection",
    "finding_identification",
    "lead_grounding",
    "wave_grounding",
    "measurement_grounding",
    "diagnostic_decision",
)
_GROUNDING = _STEPS[2:5]
SCORES = ("initial_diagnostic_question", *_STEPS, "final_diagnosis", "completion", "depth")
_LEAD = r"(?:iii|ii|i|avr|avl|avf|v[1-6])\b"
_LEADS = re.compile(rf"\bleads?\s+({_LEAD}(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+){_LEAD})*)")
_RANGE = re.compile(r"\[?\s*-?\d+\.?\d*\s*[^\d\s]*\s*-\s*-?\d+\.?\d*\s*[^\d\s]*\s*\]?")


def is_asked(row: dict) -> bool:
    """Whether a row of generations is of this benchmark: a table of one's own may have a field "reasoning" too."""
    about = row["meta"].get("reasoning")
    return isinstance(about, dict) and {"source", "loop", "turns"} <= about.keys()


def is_right(kind: str, reference: str, answer: str) -> bool:
    """Whether an answer is right, by the kind of its question.

    By "yes" or "no" at its start or end; as the criterion, also at the end of a sentence that says so, the one part where the
    published scorer's list of known sentences is longer; as the same set of leads; else word for word, a measured range with
    or without brackets. Capital letters and a last full stop make no difference.
    """
    reference, answer = reference.strip().lower(), answer.strip().strip(".").strip().lower()
    match kind:
        case "initial_diagnostic_question" | "finding_identification" | "diagnostic_decision":
            said = next((word for word in ("yes", "no") if re.match(rf"(\*\*)?{word}", answer) or _ends(answer, word)), "")
            return reference == (said or (answer if kind == "diagnostic_decision" else ""))
        case "criterion_selection":
            said = (
                re.sub(r"^.*\b(?:is|are|include|includes):? ", "", answer.strip("- "))
                if reference in answer
                else answer.strip("- ")
            )
            return reference.removeprefix("presence of ") == said.removeprefix("the ").removeprefix("presence of ")
        case "lead_grounding":
            return _leads(reference) == _leads(answer)
        case "measurement_grounding":
            found = _RANGE.match(answer)
            return reference == answer or bool(found and reference == f"[{found[0].strip('[] ')}]")
    return reference == answer


def _ends(answer: str, word: str) -> bool:
    return answer.endswith((word, f"**{word}**"))


def _leads(text: str) -> frozenset[str]:
    """The names after "lead" or "leads", or those that the text lists; with other words as well, no lead's."""
    if found := _LEADS.findall(text):
        return frozenset(name for phrase in found for name in re.findall(rf"\b{_LEAD}", phrase))
    return frozenset(part.strip("-: ") for part in re.split(r"[,;/\n]|\band\b", text))


def score(rows: list[dict], answer: str, resamples: int, seed: int) -> Scores:
    """The scores of conversations whose questions were asked after the reference answers to those before them.

    The accuracy of each kind of question; final_diagnosis: of the last decision; completion: the share of conversations whose
    steps after the first question are all right; depth: the mean share of a loop's four parts before the first wrong answer,
    over loops with a grounding. The last three are of conversations that were asked as a whole. rows: of generations, one for
    each question; answer: the field with the answer.
    """
    conversations: dict[str, list[dict]] = {}
    for row in rows:
        conversations.setdefault(row["meta"]["conversation"], []).append(row)
    names, groups = np.unique([talk[0]["patient"] for talk in conversations.values()], return_inverse=True)
    counts = np.array([_count(talk, answer) for talk in conversations.values()])  # [V, M, 2]
    by_patient = np.zeros((len(names), counts[0].size))
    np.add.at(by_patient, groups, counts.reshape(len(counts), -1))
    samples = np.concatenate([_ratio(drawn @ by_patient) for drawn in draw(len(names), resamples, seed)])
    whole = _ratio(by_patient.sum(axis=0)[None])[0]
    known = [place for place, value in enumerate(whole) if not np.isnan(value)]
    return Scores({SCORES[i]: float(whole[i]) for i in known}, {SCORES[i]: samples[:, i] for i in known})


def _count(talk: list[dict], answer: str) -> np.ndarray:
    """What is right and of how many, of each score: float64 [M, 2]."""
    found = dict.fromkeys(SCORES, (0.0, 0.0))
    talk = sorted(talk, key=lambda row: row["meta"]["turn"])
    loops: dict[int, list[tuple[str, bool]]] = {}
    for row in talk:
        kind = row["meta"]["question_type"]
        right = is_right(kind, row["reference"], row[answer])
        found[kind] = found[kind][0] + right, found[kind][1] + 1
        loops.setdefault(row["meta"]["reasoning"]["loop"], []).append((kind, right))
    steps = [step for loop, asked in sorted(loops.items()) if loop for step in asked]
    if len(talk) == talk[0]["meta"]["reasoning"]["turns"] and steps:
        found["completion"] = float(all(right for _, right in steps)), 1.0
        found["final_diagnosis"] = float(steps[-1][1]), 1.0
        grounded = [asked for loop, asked in loops.items() if any(kind in _GROUNDING for kind, _ in asked)]
        found["depth"] = sum(map(_depth, grounded)), float(len(grounded))
    return np.array([found[name] for name in SCORES], np.float64)


def _depth(asked: list[tuple[str, bool]]) -> float:
    """The share of a loop's four parts before its first wrong answer; the questions of its grounding are one part."""
    grounding, depth = sum(kind in _GROUNDING for kind, _ in asked), 0.0
    for kind, right in asked:
        if not right:
            break
        depth += 1 / grounding if kind in _GROUNDING else 1
    return depth / 4


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Scores float64 [R, M] of what is right and of how many, [R, 2 M]; NaN of none."""
    right, of = np.moveaxis(sums.reshape(len(sums), -1, 2), 2, 0)
    return np.divide(right, of, out=np.full(right.shape, np.nan), where=of > 0)
