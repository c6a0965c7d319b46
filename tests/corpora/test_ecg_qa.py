import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.corpora.ecg_qa import read_published_questions, read_questions
from ecgbyte_jax.corpora.example import Example, Rejected
from ecgbyte_jax.corpora.ptbxl import read_database
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.errors import CorpusError

SINGLE = ("single-verify", "single-choose", "single-query")


@pytest.fixture
def demo(tmp_path):
    """Twenty synthetic recordings, as (ECG-QA's folder, PTB-XL's folder)."""
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 20, seed=0)
    return tmp_path / "ecgqa", tmp_path / "ptbxl"


def read(demo, types=SINGLE, wording="template", split="official"):
    return list(read_questions(demo[0] / "ptbxl", read_database(demo[1], 500), wording, types, split))


def edit(demo, change):
    """Applies `change` to the first training question and rewrites the file."""
    path = demo[0] / "ptbxl/template/train/00000.json"
    rows = json.loads(path.read_text())
    rows[0] = change(rows[0])
    path.write_text(json.dumps(rows))


def test_questions_are_joined_with_their_recordings(demo):
    first = read(demo)[0]
    row = json.loads((demo[0] / "ptbxl/template/train/00000.json").read_text())[0]
    assert first == Example(
        "train/00000/0", "1", "train", (WfdbRecord(demo[1], "records500/00000/00001_hr"),), row["question"], row["answer"][0],
        {"question_type": "single-verify", "template_id": 0, "attribute_type": "scp_code"},
    )  # fmt: skip


def test_the_attributes_of_a_question_are_among_its_fields(shared):
    root = shared / "data"
    found = read((root / "ecgqa", root / "ptbxl"), ("single-verify",))
    kinds = Counter(name for example in found if isinstance(example, Example) for name in example.meta["attribute"])
    assert kinds["burst noise"] > 100 and kinds["baseline drift"] >= 9


def test_only_the_requested_types_are_read(demo):
    assert len(read(demo, ("single-query",))) == 20 and len(read(demo)) == 80


def test_a_comparison_has_both_recordings_and_patients(demo):
    edit(demo, lambda row: row | {"ecg_id": [1, 5], "question_type": "comparison_irrelevant-verify"})
    (example,) = read(demo, ("comparison_irrelevant-verify",))
    assert [record.name for record in example.records] == [
        "records500/00000/00001_hr",
        "records500/00000/00005_hr",
    ] and example.patients == ("1", "3")


def test_a_comparison_across_folds_is_rejected(demo):
    edit(demo, lambda row: row | {"ecg_id": [1, 20]})
    assert "different splits: ['train', 'test']" in read(demo, split="folds")[0].reason
    assert read(demo)[0].split == "train"


def test_without_types_all_are_read(demo):
    edit(demo, lambda row: row | {"question_type": "comparison_consecutive-query"})
    assert len(read(demo, ())) == 80 and len(read(demo)) == 79


def test_types_without_questions_are_named(demo):
    with pytest.raises(CorpusError, match=r"data\.question_types: \('single-veryfy',\) found, one of .*'single-verify'"):
        read(demo, ("single-veryfy",))


def test_several_answers_are_joined_by_a_space(demo):
    edit(demo, lambda row: row | {"answer": ["rr interval", "qt interval"]})
    assert read(demo)[0].answer == "rr interval qt interval"


def test_official_split_is_the_folder_and_folds_are_ptbxl_s(demo):
    edit(demo, lambda row: row | {"ecg_id": [20]})  # of fold 10, in the official training set
    assert read(demo)[0].split == "train" and read(demo, split="folds")[0].split == "test"


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda row: "text", "an object with the fields"),
        (lambda row: {k: v for k, v in row.items() if k != "answer"}, "an object with the fields"),
        (lambda row: row | {"ecg_id": [1, 2, 3]}, "a list of one id expected"),
        (lambda row: row | {"ecg_id": [999]}, "ecg_id 999 is not in the database"),
        (lambda row: row | {"question": 5}, "not texts"),
        (lambda row: row | {"question_type": None}, "question_type None found, a text expected"),
        (lambda row: row | {"question_type": 5}, "question_type 5 found, a text expected"),
        (lambda row: row | {"attribute_type": 5}, "attribute_type 5 found, a text expected"),
        (lambda row: row | {"attribute": [5]}, "attribute [5] found, a text or a list of texts expected"),
        (lambda row: row | {"template_id": 2**64}, "beyond 64 bits"),
        (lambda row: row | {"ecg_id": ["\ud800"]}, r"ecg_id '\ud800' is not in the database"),
        (lambda row: row | {"answer": []}, "the answer is empty"),
    ],
)
def test_a_bad_question_is_rejected_and_the_others_are_read(demo, change, reason):
    edit(demo, change)
    items = read(demo)
    assert len(items) == 80 and [reason in r.reason for r in items if isinstance(r, Rejected)] == [True]


def test_a_number_of_5000_digits_affects_only_its_question(demo):
    path = demo[0] / "ptbxl/template/train/00000.json"
    path.write_text(path.read_text().replace('"template_id": 0', f'"template_id": {"7" * 5000}', 1))
    items = read(demo)
    assert len(items) == 80 and ["not finite" in r.reason for r in items if isinstance(r, Rejected)] == [True]


def test_a_broken_file_is_rejected_and_the_others_are_read(demo):
    path = demo[0] / "ptbxl/template/train/00000.json"
    path.write_text(path.read_text()[:-30])
    items = read(demo)
    assert [r.file for r in items if isinstance(r, Rejected)] == [str(path)]
    assert {e.split for e in items if isinstance(e, Example)} == {"valid", "test"}


def test_missing_folder_and_unknown_settings_are_named(demo, tmp_path):
    with pytest.raises(CorpusError, match="paraphrased"):
        read(demo, wording="paraphrased")
    with pytest.raises(CorpusError, match="'random'"):
        read(demo, split="random")


def test_the_real_questions_are_read(shared):
    recordings = read_database(shared / "data/ptbxl", 500)
    items = list(read_questions(shared / "data/ecgqa/ptbxl", recordings, "paraphrased", SINGLE, "folds"))
    assert all(isinstance(e, Example) for e in items)
    assert Counter(e.split for e in items) == {"train": 239, "valid": 86, "test": 88}


def published(folder):
    """Like the released code: single questions of both wordings by path, split twice by scikit-learn."""
    split = pytest.importorskip("sklearn.model_selection").train_test_split
    paths = sorted(str(path) for wording in ("template", "paraphrased") for path in folder.glob(f"{wording}/*/*.json"))
    rows = [(Path(path), i, row) for path in paths for i, row in enumerate(json.loads(Path(path).read_text()))]
    rows = [(path, i, row) for path, i, row in rows if row["question_type"] in SINGLE]
    train, rest = split(np.arange(len(rows)), test_size=0.3, random_state=42)
    valid, test = split(rest, test_size=0.6, random_state=42)
    splits = dict.fromkeys(train, "train") | dict.fromkeys(valid, "valid") | dict.fromkeys(test, "test")
    ids = ["/".join([path.parts[-3], path.parts[-2], path.stem, str(i)]) for path, i, _ in rows]
    return {id: (splits[n], row["question"]) for n, (id, (_, _, row)) in enumerate(zip(ids, rows))}


def test_the_published_split_is_drawn_over_both_wordings(shared):
    recordings = list(read_database(shared / "data/ptbxl", 500))
    items = list(read_published_questions(shared / "data/ecgqa/ptbxl", recordings, SINGLE))
    expected = published(shared / "data/ecgqa/ptbxl")
    assert {e.id: (e.split, e.question) for e in items} == expected and len(expected) == 826
    assert Counter(split for split, _ in expected.values()) == {"train": 578, "test": 149, "valid": 99}


def test_the_published_split_counts_unusable_and_unrequested_questions(demo):
    folder = demo[0] / "ptbxl"
    shutil.copytree(folder / "template", folder / "paraphrased")
    edit(demo, lambda row: row | {"ecg_id": [999]})
    expected = published(folder)
    items = list(read_published_questions(folder, read_database(demo[1], 500), ("single-verify", "single-query")))
    (bad,) = (r for r in items if isinstance(r, Rejected))
    assert bad.id == "template/train/00000/0" and "ecg_id 999 is not in" in bad.reason
    good = {e.id: (e.split, e.question) for e in items if isinstance(e, Example)}
    assert good.items() < expected.items() and len(good) == 79 and len(expected) == 160


def test_the_published_split_needs_every_file(demo):
    folder = demo[0] / "ptbxl"
    with pytest.raises(CorpusError, match="paraphrased"):
        list(read_published_questions(folder, read_database(demo[1], 500), SINGLE))
    shutil.copytree(folder / "template", folder / "paraphrased")
    (folder / "paraphrased/test/00000.json").write_text("[")
    with pytest.raises(CorpusError, match=r"paraphrased/test/00000\.json: .*published_split"):
        list(read_published_questions(folder, read_database(demo[1], 500), SINGLE))


def test_the_real_comparisons_are_read(shared):
    recordings = read_database(shared / "data/ptbxl", 500)
    items = list(read_questions(shared / "data/ecgqa/ptbxl", recordings, "template", (), "official"))
    assert all(isinstance(e, Example) for e in items)
    assert Counter((e.split, len(e.records)) for e in items) == {("train", 1): 413, ("train", 2): 166, ("valid", 2): 10}
    last = items[578]
    assert [record.name for record in last.records] == [
        "records500/00000/00191_hr",
        "records500/00000/00328_hr",
    ] and last.answer.startswith("pr interval rr interval")
