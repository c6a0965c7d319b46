"""One answer for a recording, as `ask` and the scores by recording elect it."""

from ecgbyte_jax.evaluate.votes import by_recording, elect


def test_most_segments_decide_and_then_the_surest():
    assert elect(["yes", "no", "no"], [-0.1, -2.0, -1.0]) == 2
    assert elect(["yes", "no"], [-0.1, -2.0]) == 0
    assert elect(["yes", "no"], [-1.0, -1.0]) == 0
    assert elect(["yes", "no"], [-1.00004, -1.00001]) == 0, "equal in the decimals of generations.jsonl"


def row(id: str, segment: int, answer: str, other: str, log_prob: float = -1.0, log_prob_other: float = -1.0) -> dict:
    answers = {"answer": answer, "answer_to_other_ecg": other, "commonest_answer": "c"}
    return {"id": id, "segment": segment, **answers, "log_prob": log_prob, "log_prob_to_other_ecg": log_prob_other}


def test_each_question_gets_one_vote_of_its_segments():
    rows = [
        row("1", 1, "no", "no", -3.0),
        row("2", 0, "yes", "no"),
        row("1", 0, "yes", "yes", -1.0, -5.0),
        row("1", 2, "no", "maybe", -2.0, -0.1),
    ]
    first, second = by_recording(rows)
    assert (first["id"], first["segment"], first["answer"], first["answer_to_other_ecg"]) == ("1", 0, "no", "maybe")
    assert (second["id"], second["answer"], second["answer_to_other_ecg"]) == ("2", "yes", "no")
