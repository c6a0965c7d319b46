"""ECG-QA-CoT, on small files in its layout about synthetic recordings in PTB-XL's."""

from pathlib import Path

import pytest

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.corpora.ecg_qa_cot import read_reasons
from ecgbyte_jax.corpora.example import Example, Rejected
from ecgbyte_jax.corpora.ptbxl import read_database
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.errors import CorpusError
from tests.corpora.layouts import write_csv

ROW = {
    "ecg_id": "[1]", "sample_id": 0, "question_id": 3, "template_id": "7", "question_type": "single-verify",
    "question": "Does this ECG show\nnoise?", "answer": "yes", "clinical_context": "A man.",
    "rationale": "The baseline trembles,\nin \"V1\" most. Answer: yes",
}  # fmt: skip


@pytest.fixture
def ptbxl(tmp_path) -> Path:
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 20, seed=0)
    return tmp_path / "ptbxl"


def read(ptbxl: Path, *rows: dict, types: tuple[str, ...] = (), split: str = "official") -> list[Example | Rejected]:
    folder = ptbxl.parent / "cot"
    folder.mkdir(exist_ok=True)
    write_csv(folder / "ecg_qa_cot_train.csv", list(rows))
    for name, id in (("val", "17"), ("test", "19")):
        write_csv(folder / f"ecg_qa_cot_{name}.csv", [ROW | {"ecg_id": id}])
    return list(read_reasons(folder, read_database(ptbxl, 500), types, split))


def test_an_answer_is_the_rationale_with_the_answer_at_its_end(ptbxl):
    first, second, valid, test = read(ptbxl, ROW, ROW | {"rationale": "It trembles."})
    assert first == Example(
        "train/4", "1", "train", (WfdbRecord(ptbxl, "records500/00000/00001_hr"),), ROW["question"], ROW["rationale"],
        {"question_type": "single-verify with reasons", "template_id": "7", "final_answer": "yes"},
    )  # fmt: skip
    assert second.answer == "It trembles. Answer: yes"
    assert (valid.split, valid.patient, test.split, test.patient) == ("valid", "9", "test", "10")


def test_types_and_splits_are_those_that_were_asked_for(ptbxl):
    other = ROW | {"question_type": "single-query", "ecg_id": "19"}
    assert len(read(ptbxl, ROW, other, types=("single-query",))) == 1
    assert [e.split for e in read(ptbxl, other, split="folds")] == ["test", "valid", "test"]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"ecg_id": "[1, 2]"}, "ecg_id '[1, 2]' found, one number"),
        ({"ecg_id": "99"}, "ecg_id 99 is not in the database"),
        ({"rationale": " "}, "the rationale or the answer is empty"),
        ({"question": ""}, "the question is empty"),
    ],
)
def test_a_bad_row_is_set_aside_and_the_others_are_read(ptbxl, change, reason):
    bad, *others = read(ptbxl, ROW | change, ROW)
    assert isinstance(bad, Rejected) and reason in bad.reason and len(others) == 3


def test_a_missing_file_says_where_to_get_it(ptbxl):
    with pytest.raises(CorpusError, match=r"no ecg_qa_cot_train\.csv .*OpenTSLM"):
        list(read_reasons(ptbxl, (), (), "official"))
