"""One answer for a recording: the commonest of its segments' answers."""

from collections.abc import Sequence

DECIMALS = 4  # of a log-probability in nats


def elect(texts: Sequence[str], log_probs: Sequence[float]) -> int:
    """The segment with the most probable instance of the commonest answer; among equally common ones, the most probable.

    texts, log_probs (in nats): of each segment's answer, at least one; among equally probable ones the first is taken. The
    decimals of `generations.jsonl` count, so that an answer is the same there, in `ask` and in an export.
    """
    return max(range(len(texts)), key=lambda i: (texts.count(texts[i]), round(log_probs[i], DECIMALS), -i))


def by_recording(rows: list[dict]) -> list[dict]:
    """One row for each question, in the order of the first segments, from the rows of generations of one seed.

    The answers to its own and to other patients' ECGs are elected over the segments; the rest is the first segment's.
    """
    segments: dict[str, list[dict]] = {}
    for row in rows:
        segments.setdefault(row["id"], []).append(row)
    return [
        of_question[0]
        | {"answer": _elected(of_question, "answer", "log_prob")}
        | {"answer_to_other_ecg": _elected(of_question, "answer_to_other_ecg", "log_prob_to_other_ecg")}
        for of_question in (sorted(group, key=lambda row: row["segment"]) for group in segments.values())
    ]


def _elected(rows: list[dict], answer: str, log_prob: str) -> str:
    texts = [row[answer] for row in rows]
    return texts[elect(texts, [row[log_prob] for row in rows])]
