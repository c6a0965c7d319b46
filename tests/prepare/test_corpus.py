"""A corpus as preparation holds it: its checks, and the published splits."""

from dataclasses import replace
from pathlib import Path

import pytest

from ecgbyte_jax.corpora.example import Example, published_splits
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.errors import CorpusError
from ecgbyte_jax.prepare.corpus import Corpus, Folders, open_corpus
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from tests.corpora.layouts import mimic_name, write_json


def corpus(*examples: Example, published_split: bool = False) -> Corpus:
    return Corpus.of(examples, Folders(Path(), Path(), Path()), Path("quarantine.jsonl"), 0.0, published_split)


def opened(config, folder: Path) -> Corpus:
    settings, workdir = Settings.of(config), Workdir(folder)
    return open_corpus(settings, workdir, lineage.synthetic(settings, workdir))


def example(id: str, split: str, patients: list[str], *records: str) -> Example:
    meta = {"patients": patients} if len(patients) > 1 else {}
    return Example(id, patients[0], split, tuple(WfdbRecord(Path("root"), name) for name in records), "why?", "so", meta)


def test_a_recording_in_two_splits_or_of_two_patients_is_refused_by_name():
    with pytest.raises(CorpusError, match=r"recording 'root/r1': example 'a' .* in split 'train', 'b' .* in split 'test'"):
        corpus(example("a", "train", ["P1"], "r1"), example("b", "test", ["P2"], "r1"))
    with pytest.raises(CorpusError, match=r"recording 'root/r1': example 'a' of patient 'P1' .*, 'b' of patient 'P2'"):
        corpus(example("a", "train", ["P1"], "r1"), example("b", "train", ["P2"], "r1"))


def test_a_training_comparison_with_a_test_recording_is_refused():
    test = example("b", "test", ["P2"], "r2")
    for names in (["P1"], ["P1", "P2"]):
        with pytest.raises(CorpusError, match=r"more than one split|recording 'root/r2'"):
            corpus(example("a", "train", names, "r1", "r2"), test)
    assert len(corpus(example("a", "test", ["P1", "P2"], "r1", "r2"), test).examples) == 2


def test_a_conversation_with_the_id_of_another_is_rejected_whole():
    def turn(record: str, number: int) -> Example:
        previous = f"x/{number - 1}" if number else ""
        return replace(example(f"x/{number}", "train", ["P1"], record), history=(("q", "a"),) * number, previous=previous)

    found = corpus(*(turn("r1", number) for number in range(2)), *(turn("r2", number) for number in range(3)))
    assert [(e.id, e.records[0].name) for e in found.examples] == [("x/0", "r1"), ("x/1", "r1")]
    assert [rejected.id for rejected in found.rejected] == ["x/0", "x/1", "x/2"]
    assert found.rejected[-1].reason == "it follows 'x/1', and an earlier example has the same id"


def test_the_published_split_of_ecg_chat_is_by_conversation(config, tmp_path):
    talk = [{"from": "human", "value": "<ecg>\nWhat?"}, {"from": "gpt", "value": "This."}] * 3
    entries = [{"ecg": mimic_name(10_000_000 + n, n), "conversations": talk if n % 9 else talk[:1]} for n in range(50)]
    write_json(tmp_path / "pretrain_mimic.json", entries)
    config.data.corpus, config.data.synthetic_records, config.data.root = "ecg_chat", 0, str(tmp_path)
    config.data.published_split = True
    found = opened(config, tmp_path / "w")
    assert len(found.rejected) == 6 and len(found.examples) == 44 * 3
    expected = published_splits(50)  # also over those that cannot be used
    assert {(e.meta["conversation"], e.split) for e in found.examples} == {(str(n), expected[n]) for n in range(50) if n % 9}


def test_the_published_split_of_ecg_qa_takes_both_wordings(config, shared, tmp_path):
    config.data.corpus, config.data.synthetic_records, config.data.root = "ecg_qa", 0, str(shared / "data/ptbxl")
    config.data.published_split = True
    found = opened(config, tmp_path / "w")
    assert len(found.examples) == 826 and not found.rejected
    assert {e.id.partition("/")[0] for e in found.examples if e.split == "test"} == {"template", "paraphrased"}


def test_the_published_split_counts_its_shared_recordings(capsys):
    pairs = example("a", "train", ["P1"], "r1"), example("b", "test", ["P1"], "r1"), example("c", "test", ["P1"], "r2")
    assert len(corpus(*pairs, published_split=True).examples) == 3
    assert "1 of 1 patients are in more than one split" in capsys.readouterr().out
