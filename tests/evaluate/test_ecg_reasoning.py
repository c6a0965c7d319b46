"""ECG-Reasoning-Benchmark: its items as conversations, and its scores from hand-made answers."""

import json

import numpy as np
import pytest

from ecgbyte_jax.corpora.benchmarks.ecg_reasoning import read_reasoning
from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.corpora.example import Rejected
from ecgbyte_jax.errors import CorpusError
from ecgbyte_jax.evaluate.benchmarks.ecg_reasoning import is_right, score
from ecgbyte_jax.evaluate.intervals import draw
from ecgbyte_jax.evaluate.metrics import Scorers
from ecgbyte_jax.evaluate.results import make_results
from tests.evaluate.test_ecg_bench import row


def ask(kind: str, answer: str | list[str], options: tuple[str, ...] = ("Yes", "No")) -> dict:
    return {"question": f"{kind}?", "options": [*options], "answer": answer, "question_type": kind}


def item(ecg_id: str, source: str = "ptbxl", **more) -> dict:
    loops = [
        {
            "criterion_selection": ask(
                "criterion_selection", "Presence of premature beats", ("Presence of premature beats", "x")
            ),
            "finding_identification": ask("finding_identification", "Yes"),
            "ecg_grounding": [],
            "diagnostic_decision": ask("diagnostic_decision", "Further findings are required to confirm the diagnosis"),
        },
        {
            "criterion_selection": ask("criterion_selection", "Prolongation of the PR interval"),
            "finding_identification": ask("finding_identification", "Yes"),
            "ecg_grounding": [
                ask("lead_grounding", ["Lead V1", "Lead V2"], ("Lead V1", "Lead V2", "Lead V3")),
                ask("measurement_grounding", ["[230ms - 240ms]"]),
            ],
            "diagnostic_decision": ask("diagnostic_decision", "Yes"),
        },
    ]
    about = {"id": 0, "data_source": source, "ecg_id": ecg_id, "target_dx": "first_degree_av_block", "dx_label": True} | more
    return {
        "metadata": about,
        "data": {"initial_diagnostic_question": ask("initial_diagnostic_question", "Yes"), "reasoning": loops},
    }


@pytest.fixture
def root(tmp_path):
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 4, seed=0)
    (tmp_path / "mimic/files").mkdir(parents=True)
    return tmp_path


def read(root, *items: object) -> list:
    (root / "bench").mkdir(exist_ok=True)
    (root / "bench/ptbxl.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in items))
    return list(read_reasoning(root / "bench", root, 500))


def test_an_item_is_a_conversation_whose_history_has_no_options(root):
    examples = read(root, item("3"), item("41084804", "mimic_iv_ecg", subject_id="19729398"))
    first, *others = examples[:9]
    assert len(examples) == 18 and first.question == "initial_diagnostic_question? Options: Yes | No"
    assert {e.split for e in examples} == {"test"} and first.patient == "ptbxl 2"
    assert others[0].history == (("initial_diagnostic_question?", "Yes"),) and others[0].previous == first.id
    leads = others[5]
    assert (leads.answer, leads.meta["question_type"], leads.meta["reasoning"]["loop"]) == (
        "Lead V1, Lead V2",
        "lead_grounding",
        2,
    )
    assert leads.meta["reasoning"]["turns"] == 9
    assert str(examples[9].records[0]).endswith("files/p1972/p19729398/s41084804/41084804")


@pytest.mark.parametrize(
    "bad, reason",
    [
        (item("9"), "no recording: '9' is not in this set"),
        (item("1", "elsewhere"), "data_source 'elsewhere' found"),
        ({"metadata": {"data_source": "ptbxl", "ecg_id": "1"}}, "not an item of this benchmark: KeyError"),
        ([], "object"),
    ],
)
def test_an_item_that_cannot_be_asked_is_set_aside(root, bad, reason):
    rejected, *others = read(root, bad, item("1"))
    assert isinstance(rejected, Rejected) and reason in rejected.reason and len(others) == 9


def test_a_folder_without_items_says_where_to_get_them(tmp_path):
    with pytest.raises(CorpusError, match=r"no \.jsonl in .*huggingface"):
        list(read_reasoning(tmp_path, tmp_path, 500))


FURTHER = "Further findings are required to confirm the diagnosis"


@pytest.mark.parametrize(
    "kind, reference, answer, right",
    [
        ("initial_diagnostic_question", "Yes", "**Yes**, it does", True),
        ("initial_diagnostic_question", "No", "The answer is no.", True),
        ("finding_identification", "Yes", "It may be", False),
        ("diagnostic_decision", FURTHER, FURTHER.lower() + ".", True),
        ("diagnostic_decision", "Yes", FURTHER, False),
        ("criterion_selection", "Presence of premature beats", "Premature beats", True),
        ("criterion_selection", "Presence of premature beats", "The correct answer is: the presence of premature beats", True),
        ("criterion_selection", "Prolongation of the PR interval", "Progressive prolongation of the PR interval", False),
        ("lead_grounding", "Lead V1, Lead V2", "V2 and V1", True),
        ("lead_grounding", "Lead V1, Lead V2", "It is seen in leads V1, and V2.", True),
        ("lead_grounding", "Lead V1, Lead V2", "Lead V1", False),
        ("lead_grounding", "Lead I", "I see none", False),
        ("wave_grounding", "[1.12s - 1.24s]", "[1.12S - 1.24s]", True),
        ("wave_grounding", "[1.12s - 1.24s]", "It is [1.12s - 1.24s]", False),
        ("measurement_grounding", "[230ms - 240ms]", "230ms - 240ms", True),
        ("measurement_grounding", "Above 240ms", "above 240ms", True),
        ("measurement_grounding", "[230ms - 240ms]", "[220ms - 230ms]", False),
    ],
)
def test_answers_are_judged_by_the_kind_of_their_question(kind, reference, answer, right):
    assert is_right(kind, reference, answer) is right


def rows_of(examples: list, wrong: set[str]) -> list[dict]:
    """Right answers but to the named questions."""
    rows = [row(0, e.answer, "?" if e.id in wrong else e.answer, e.patient, e.question) for e in examples]
    return [made | {"id": e.id, "meta": e.meta} for made, e in zip(rows, examples)]


def test_scores_follow_from_the_steps_before_the_first_wrong_one(root):
    examples = read(root, item("1"), item("3"), item("4"))
    rows = rows_of(examples, {"ptbxl/1/0", "ptbxl/2/6", "ptbxl/2/7", "ptbxl/3/8"})
    found = score(rows, "answer", 100, 0)
    assert found.scores == {
        "initial_diagnostic_question": pytest.approx(2 / 3),
        "criterion_selection": 1,
        "finding_identification": 1,
        "lead_grounding": pytest.approx(2 / 3),
        "measurement_grounding": pytest.approx(2 / 3),
        "diagnostic_decision": pytest.approx(5 / 6),
        "final_diagnosis": pytest.approx(2 / 3),
        "completion": pytest.approx(1 / 3),  # a wrong first answer does not end the reasoning
        "depth": pytest.approx((4 + 2 + 3) / 4 / 3),  # of the loops with a grounding
    }
    talks = {
        patient: [e.patient for e in examples if e.meta["turn"] == 0].count(patient)
        for patient in {e.patient for e in examples}
    }
    drawn = next(draw(len(talks), 100, 0))
    done = {e.patient: 0 for e in examples} | {examples[0].patient: 1}
    names = sorted(talks)
    expected = drawn @ [done[name] for name in names] / (drawn @ [talks[name] for name in names])
    assert np.allclose(found.samples["completion"], expected)
    some = score([made for made in rows if made["meta"]["turn"] < 5], "answer", 100, 0).scores
    assert "completion" not in some and some["criterion_selection"] == 1


def test_results_have_the_scores_of_each_set_of_recordings(root):
    rows = rows_of(read(root, item("1"), item("3")), set())
    part = make_results(rows, Scorers(), 100, 0)["benchmark"]["reasoning, ptbxl"]
    assert part["questions"] == 18 and part["scores"]["model"]["completion"] == 1
    assert part["scores"]["another patient's ECG"]["completion"] == 0 and part["intervals"]["model"]["depth"] == [1, 1]
