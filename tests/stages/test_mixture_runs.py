"""A mixture of real recordings from their files to scores: 40 of PTB-XL with their reports, ECG-QA's questions about them and
answers measured in them, and ten of CPSC 2018."""

import csv
import json
import shutil
import signal

import numpy as np
import pytest

from ecgbyte_jax.corpora.ptbxl import DATABASE
from ecgbyte_jax.errors import ConfigError, CorpusError
from ecgbyte_jax.inputs.batches import outlines_of
from ecgbyte_jax.inputs.shards import read_manifest, read_parts
from ecgbyte_jax.prepare import measuring
from ecgbyte_jax.run.stage import outputs_digest
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import SPLITS, Settings, stored_config
from ecgbyte_jax.stages.eval import evaluate
from ecgbyte_jax.stages.pipeline import run
from ecgbyte_jax.stages.prepare import prepare
from ecgbyte_jax.stages.train import train
from ecgbyte_jax.train import feed
from experiments import mixture
from tests.launch import figures, finish, start_python, wait_for_step
from tests.small import small_config

PARTS = ("cpsc", "ecg_qa", "measured", "ptbxl")


@pytest.fixture(scope="module")
def ptbxl(shared, tmp_path_factory):
    """PTB-XL with the first 40 recordings that ECG-QA asks about."""
    source, target = shared / "data/ptbxl", tmp_path_factory.mktemp("ptbxl")
    (target / "records500").symlink_to(source / "records500")
    questions = [row for file in (shared / "data/ecgqa/ptbxl/template").rglob("*.json") for row in json.loads(file.read_text())]
    asked = {str(row["ecg_id"][0]) for row in questions if row["question_type"] == "single-verify"}
    with (source / DATABASE).open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["ecg_id"] in asked][:40]
    with (target / DATABASE).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return target


@pytest.fixture(scope="module")
def ready(shared, ptbxl, tmp_path_factory):
    """A run's folder in which the mixture is prepared."""
    pytest.importorskip("neurokit2")
    config, small = mixture.get_config("tiny"), small_config()
    for part in ("tokenizer", "model", "optim", "train", "eval"):
        config[part] = small[part]
    config.data.root, config.data.mixture.cpsc = str(ptbxl), 2.0
    config.data.parts.ecg_qa.ecgqa_root, config.data.parts.cpsc.root = str(shared / "data/ecgqa"), str(shared / "data/cpsc2018")
    config.data.max_bad_fraction, config.data.length_buckets = 1.0, ()  # most questions are about other recordings
    config.signal.target_rate, config.signal.segment_length = 20.0, 50  # 2.5 s
    config.prompt.max_length, config.train.epochs, config.train.valid_answers = 256, 0.6, 8
    folder = tmp_path_factory.mktemp("mixture") / "w"
    folder.mkdir()
    prepare(Settings.of(config), Workdir(folder))
    return folder


@pytest.fixture
def config(ready):
    return stored_config(ready / "config.json")


@pytest.fixture(scope="module")
def whole(ready, tmp_path_factory):
    """The same, trained without an interruption on eight simulated devices."""
    folder = tmp_path_factory.mktemp("whole") / "w"
    shutil.copytree(ready, folder)
    train(Settings.of(stored_config(ready / "config.json")), Workdir(folder))
    return folder


def of_split(folder, split: str) -> list:
    return outlines_of(folder / "shards", read_manifest(folder / "shards"), split)


def test_shards_say_which_corpus_a_sequence_is_from_and_share_the_ecgs_of_a_recording_in_two(ready):
    sequences = {split: of_split(ready, split) for split in SPLITS}
    for split, found in sequences.items():
        assert [PARTS[place] for place in read_parts(ready / "shards", split)] == [sequence.part for sequence in found]
    everything = [sequence for found in sequences.values() for sequence in found]
    assert len({sequence.id for sequence in everything}) == len(everything)  # one segment of each recording
    ecgs = {name: {s.ecgs[0].item(): s.patient for s in everything if s.part == name} for name in PARTS}
    assert ecgs["ptbxl"].items() <= ecgs["ecg_qa"].items() and len(ecgs["ptbxl"]) > 30  # some reports are too long
    assert len(ecgs["measured"].items() & ecgs["ecg_qa"].items()) > 20  # besides, copies of recordings with faults
    assert {*ecgs["measured"].values()} <= {*ecgs["ecg_qa"].values()}
    assert ecgs["cpsc"].keys().isdisjoint(ecgs["ptbxl"]) and set(ecgs["cpsc"].values()) <= {f"cpsc A{n:04}" for n in range(11)}
    patients = [{sequence.patient for sequence in found} for found in sequences.values()]
    assert sum(map(len, patients)) == len(set.union(*patients))


@pytest.mark.slow
def test_a_mixture_that_is_killed_resumes_to_the_same_bits_and_is_scored_by_corpus(ready, config, whole, tmp_path, monkeypatch):
    settings, whole, killed = Settings.of(config), Workdir(whole), Workdir(shutil.copytree(ready, tmp_path / "w"))
    with monkeypatch.context() as patch:
        put, calls = feed.put_batch, iter(range(100))
        patch.setattr(feed, "put_batch", lambda *a: put(*a) if next(calls) < 7 else pytest.fail("killed", pytrace=False))
        with pytest.raises(pytest.fail.Exception):
            train(settings, killed)
    train(settings, killed)
    assert figures(killed.root) == figures(whole.root) and len(figures(whole.root)) > 8
    assert outputs_digest(killed.train_marker) == outputs_digest(whole.train_marker)
    assert {"valid_exact_match", "valid_exact_match_ecg_qa", "valid_loss"} <= figures(whole.root)[3].keys()
    evaluate(settings, whole)
    results = json.loads(whole.results.read_text())
    counts = {name: scores["sequences"] for name, scores in results["by_corpus"].items()}
    assert counts == {name: sum(s.part == name for s in of_split(ready, "test")) for name in PARTS}
    assert "heart rate" in results["by_recording"]["numbers"]


@pytest.mark.slow
def test_a_mixture_on_one_device_draws_what_eight_draw_and_resumes_to_the_same_bits(ready, whole, tmp_path):
    one = shutil.copytree(ready, tmp_path / "w")
    process = start_python("main.py", f"--run={one}", "--stage=train")
    wait_for_step(one, 6)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = figures(one)
    finish(start_python("main.py", f"--run={one}", "--stage=train"))
    assert figures(one)[: len(before)] == before
    losses = [[line["loss"] for line in figures(folder)] for folder in (one, whole)]
    np.testing.assert_allclose(*losses, atol=1e-4)


def test_other_weights_train_again_but_need_no_other_preparation(ready, config, tmp_path, capsys):
    folder = shutil.copytree(ready, tmp_path / "w")
    config.data.mixture.cpsc, config.train.epochs = 4.0, 0.1
    run(config, folder, ["prepare"])
    assert "nothing to do" in capsys.readouterr().out
    config.data.mixture.cpsc = 0.0
    with pytest.raises(ConfigError, match=r"corpus 'mixture' \(cpsc, ecg_qa, measured, ptbxl\) is here, .* \(ecg_qa,"):
        run(config, folder, ["prepare"])
    config.data.mixture.cpsc, config.data.parts.ecg_qa.wording = 2.0, "paraphrased"
    with pytest.raises(ConfigError, match=r"data.parts.ecg_qa.wording: None -> paraphrased"):
        run(config, folder, ["train"])


@pytest.mark.parametrize(
    ("part", "own", "message"),
    [
        ("ptbxl", {"root": "nowhere"}, "^data.parts.ptbxl: data.root: no ptbxl_database.csv in 'nowhere'"),
        ("ecg_qa", {"question_types": ("single-query",)}, "^data.parts.ecg_qa: data.question_types: .*single-query.* found"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_named_before_any_is_measured(config, tmp_path, monkeypatch, part, own, message):
    monkeypatch.setattr(measuring, "measure_part", lambda task: pytest.fail("measured"))
    with config.unlocked():
        config.data.parts[part] = dict(config.data.parts.get(part, {})) | own
    with pytest.raises(CorpusError, match=message):
        prepare(Settings.of(config), Workdir(tmp_path))
