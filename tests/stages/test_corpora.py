"""Every reader through main.py on real recordings: those of PTB-XL as they are, and written anew in MIMIC's layout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_jax.corpora.example import split_of
from ecgbyte_jax.corpora.read import check_data
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.shards import read_manifest
from ecgbyte_jax.settings import Settings
from tests.corpora.layouts import mimic_name, write_csv, write_json, write_mimic
from tests.test_main import main

TINY = ["--config.tokenizer.num_merges=100", "--config.data.max_segments=2", "--config.tokenizer.percentile_records=20"]


@pytest.fixture(scope="module")
def originals(shared) -> list[Path]:
    records = sorted((shared / "data/ptbxl/records500/00000").glob("*.hea"))[:24]
    return [record.with_suffix("") for record in records]


@pytest.fixture(scope="module")
def patients() -> list[int]:
    """Of 24 recordings; two have two, and every split has some."""
    expected = ["train"] * 16 + ["valid"] * 3 + ["test"] * 3
    numbers = iter(range(10_000_000, 20_000_000))
    found = [next(n for n in numbers if split_of(str(n)) == split_of(f"p{n}") == split) for split in expected]
    return [found[0], found[1], *found]


@pytest.fixture(scope="module")
def folder(originals, patients, tmp_path_factory) -> Path:
    """The recordings in MIMIC's layout, and as PTB-XL has them below original/."""
    root = tmp_path_factory.mktemp("mimic")
    write_mimic(root, originals, patients)
    (root / "original").mkdir()
    for path in originals:
        for ending in (".hea", ".dat"):
            shutil.copy(f"{path}{ending}", root / "original")
    return root


@pytest.fixture(scope="module")
def own(folder, originals, patients) -> Path:
    """The originals as a user's own data, prepared; the others use its tokenizer."""
    rows = [
        {"id": 40_000_000 + n, "record": f"original/{path.name}", "question": "why?", "answer": "so", "patient": patient}
        for n, (path, patient) in enumerate(zip(originals, patients))
    ]
    write_csv(folder / "own.csv", rows)
    return run(folder, "own", f"--config.data.table={folder / 'own.csv'}")


def run(root: Path, experiment: str, *more: str) -> Path:
    workdir = root / "runs" / "_".join([experiment, *(word.rpartition("/")[2].replace("=", "") for word in more)])
    done = main(
        f"--config=experiments/{experiment}.py:tiny", f"--config.data.root={root}", f"--workdir={workdir}", "--stage=prepare",
        *TINY, *more,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (workdir / "prepare/quarantine.jsonl").read_text().splitlines()
    splits = read_manifest(workdir / "shards").splits.values()
    assert f"examples read          {sum(split.examples for split in splits) + len(lines)}\n" in done.stdout
    return workdir


def sequences(workdir: Path) -> dict[str, object]:
    """By (id, segment)."""
    manifest = read_manifest(workdir / "shards")
    found = {}
    for split in ("train", "valid", "test"):
        dataset = open_split(workdir / "shards", manifest, split)
        found |= {(s.id, s.segment): (split, s) for s in (dataset[i] for i in range(len(dataset)))}
    return found


def same_ecgs(tokenizer: ECGTokenizer, first: np.ndarray, second: np.ndarray) -> None:
    """The same symbols but for those that stand on the edge of a bin: MIMIC's steps are 5 uV, PTB-XL's 1 uV."""
    a, b = (tokenizer.bpe.decode(ids).astype(int) for ids in (first, second))
    assert np.abs(a - b).max() <= 1 and np.mean(a == b) > 0.95


def test_own_data_runs_through_main(own):
    found = sequences(own)
    assert len(found) == 48 and {split for split, _ in found.values()} == {"train", "valid", "test"}


def test_mimic_gives_the_tokens_of_the_originals(folder, own):
    tokenizer = own / "tokenizer/ecg_tokenizer.json"
    ours, theirs = sequences(run(folder, "mimic", f"--config.tokenizer.file={tokenizer}")), sequences(own)
    assert set(ours) == set(theirs)
    for key, (split, sequence) in ours.items():
        assert split == theirs[key][0] and sequence.answer == "Sinus rhythm. Normal ECG"
        same_ecgs(ECGTokenizer.load(tokenizer), sequence.ecgs[0], theirs[key][1].ecgs[0])


def test_ecg_chat_gives_the_tokens_of_the_originals(folder, own, patients):
    talk = [{"from": "human", "value": "<ecg>\nWhat?"}, {"from": "gpt", "value": "This."}] * 2
    entries = [{"ecg": mimic_name(p, 40_000_000 + n)[6:], "conversations": talk} for n, p in enumerate(patients)]
    write_json(folder / "pretrain_mimic.json", [*entries, {"ecg": "p1/x", "conversations": []}])
    tokenizer = own / "tokenizer/ecg_tokenizer.json"
    found = sequences(run(folder, "ecg_chat", f"--config.tokenizer.file={tokenizer}"))
    theirs = sequences(own)
    assert len(found) == 24 * 2 * 2
    for (id, segment), (_, sequence) in found.items():
        number, turn = map(int, id.split("/"))
        assert sequence.question == "What?" and sequence.history == (("What?", "This."),) * turn
        other = theirs[str(40_000_000 + number), segment][1]
        same_ecgs(ECGTokenizer.load(tokenizer), sequence.ecgs[0], other.ecgs[0])


@pytest.fixture(scope="module")
def questions(folder) -> Path:
    """ECG-QA's layout on the MIMIC folder: a single question and a comparison about each patient's recordings."""

    def entry(kind, ecgs):
        return {"question_type": kind, "question": f"{kind}?", "answer": ["yes", "no"], "ecg_id": ecgs, "sample_id": 0}

    rows = [entry("single-verify", [40_000_000 + n]) for n in range(24)]
    rows += [entry("comparison_consecutive-verify", [40_000_000 + n, 40_000_002 + n]) for n in (0, 1)]
    rows += [entry("single-verify", [7])]
    write_json(folder / "ecgqa/mimic-iv-ecg/template/train/00000.json", rows)
    return folder / "ecgqa"


def test_ecg_qa_on_mimic_reads_single_questions_and_comparisons(folder, own, questions):
    more = (f"--config.data.ecgqa_root={questions}", "--config.data.question_types=()")
    found = sequences(run(folder, "ecg_qa_mimic", *more, f"--config.tokenizer.file={own / 'tokenizer/ecg_tokenizer.json'}"))
    assert len(found) == 26 * 2
    pair = found["train/00000/24", 1][1]
    single = [found[f"train/00000/{n}", 1][1] for n in (0, 2)]
    assert [ecg.tolist() for ecg in pair.ecgs] == [s.ecgs[0].tolist() for s in single] and pair.answer == "yes no"


def test_published_split_warns_of_patients_on_both_sides(folder, own, capsys):
    done = main(
        "--config=experiments/mimic.py:tiny", f"--config.data.root={folder}", f"--workdir={folder / 'runs/published'}",
        "--stage=prepare", "--config.data.published_split=true", *TINY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    splits = read_manifest(folder / "runs/published/shards").splits
    assert {name: split.examples for name, split in splits.items()} == {"train": 16, "valid": 3, "test": 5}
    assert "of 22 patients are in more than one split" in done.stdout


def test_one_patient_in_two_splits_fails_the_run(folder, originals, tmp_path):
    row = {"record": f"original/{originals[0].name}", "question": "why?", "answer": "so", "patient": "P", "split": "train"}
    write_csv(tmp_path / "t.csv", [row, row | {"split": "test", "question": "what?"}])
    done = main(
        "--config=experiments/own.py:tiny", f"--config.data.root={folder}", f"--config.data.table={tmp_path / 't.csv'}",
        f"--workdir={tmp_path / 'w'}", "--stage=prepare",
    )  # fmt: skip
    assert (
        done.returncode == 1
        and "1 of 1 patients are in more than one split, for example 'P' in ['test', 'train']" in done.stderr
    )


def test_settings_that_the_published_split_does_not_have_are_refused(config):
    config.data.published_split = True
    for name, value in (
        ("question_types", ()),
        ("question_types", ("comparison_irrelevant-query",)),
        ("wording", "paraphrased"),
    ):
        before = config.data[name]
        config.data[name] = value
        with pytest.raises(ConfigError, match=rf"data\.published_split: data\.{name} .* found"):
            check_data(Settings.of(config).data)
        config.data[name] = before
    check_data(Settings.of(config).data)


def test_the_real_comparisons_of_ecg_qa_run_through_main(shared, tmp_path):
    done = main(
        "--config=experiments/ecg_qa_ptb.py:tiny", f"--config.data.root={shared / 'data/ptbxl'}", f"--workdir={tmp_path}",
        "--stage=prepare", "--config.data.split=official", *TINY,
        "--config.data.question_types=('comparison_irrelevant-query',)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    splits = read_manifest(tmp_path / "shards").splits
    bad = [json.loads(line) for line in (tmp_path / "prepare/quarantine.jsonl").open()]
    assert splits["train"].examples + splits["valid"].examples + len(bad) == 176 and len(bad) < 5
