import json
import shutil
from contextlib import closing
from dataclasses import replace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.encoders.config import SIZES, Stack, patch_grid
from ecgbyte_jax.errors import ConfigError, ShardsError, WeightsError
from ecgbyte_jax.inputs.batches import open_split, outlines_of
from ecgbyte_jax.inputs.shards import read_manifest
from ecgbyte_jax.inputs.signals import open_signals, plan_segments, segments_of
from ecgbyte_jax.model.sharding import make_mesh, put_batch
from ecgbyte_jax.pretrain import clean
from ecgbyte_jax.pretrain import pretrain as stage
from ecgbyte_jax.pretrain.objective import build_encoder, make_encoder_step
from ecgbyte_jax.pretrain.pretrain import pretrain
from ecgbyte_jax.pretrain.seen import count_segments
from ecgbyte_jax.run.stage import digest_of
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage, train
from ecgbyte_jax.train import feed
from ecgbyte_jax.train.checkpoint import Checkpoints
from ecgbyte_jax.train.optim import make_optimizer
from ecgbyte_jax.train.step import start_state
from tests.pretrain.test_probe import outline as about
from tests.small import small_config


def encoder_config(kind: str = "mtae") -> ConfigDict:
    """8 steps of a tiny encoder on the small demo's 32 training segments."""
    config = small_config()
    config.encoder.kind, config.encoder.size = kind, "tiny"
    config.pretrain.batch_size, config.pretrain.epochs, config.pretrain.checkpoint_every = 8, 2.0, 3
    config.pretrain_optim.preset, config.pretrain_optim.warmup = "adamw", 1
    return config


@pytest.fixture(scope="module")
def pretrained(prepared, tmp_path_factory) -> Workdir:
    """A prepared run whose encoder is trained."""
    workdir = Workdir(tmp_path_factory.mktemp("pretrained") / "w")
    shutil.copytree(prepared, workdir.root)
    pretrain(Settings.of(encoder_config()), workdir)
    return workdir


def test_signals_of_other_data_are_replaced_on_another_disk_and_other_files_there_stay(pretrained, tmp_path):
    workdir, disk = Workdir(tmp_path / "w"), tmp_path / "disk"
    shutil.copytree(pretrained.root, workdir.root)
    workdir.signals.rename(disk)
    workdir.signals.symlink_to(disk)
    (disk / "mine.txt").write_text("mine")
    (disk / "signals-00099.array_record").write_bytes(b"of a longer corpus")
    workdir.signals_marker.write_text('{"finished": true, "digest": "of other data", "settings": {}, "inputs": ""}')
    clean.clean_signals(Settings.of(encoder_config()), workdir)
    assert workdir.signals.is_symlink() and (disk / "mine.txt").read_text() == "mine"
    for file in (whole := sorted(pretrained.signals.glob("*.array_record"))):
        assert (disk / file.name).read_bytes() == file.read_bytes()
    assert len([*disk.glob("*.array_record")]) == len(whole)


def lines(workdir: Workdir) -> list[dict]:
    read = [json.loads(line) for line in workdir.pretrain.metrics.open()]
    return [{k: v for k, v in line.items() if k not in ("segments_per_s", "input_wait")} for line in read]


def result(workdir: Workdir) -> str:
    """Changes with any bit of the weights."""
    return json.loads(workdir.pretrain.train_marker.read_text())["result"]


def test_signals_are_numbered_as_the_tokens_that_were_made_of_them(pretrained):
    tokenizer, signals = ECGTokenizer.load(pretrained.ecg_tokenizer), open_signals(pretrained.signals)
    manifest = read_manifest(pretrained.shards)
    sequences, wrong, compared = open_split(pretrained.shards, manifest, "valid"), 0, 0
    for place, outline in enumerate(outlines_of(pretrained.shards, manifest, "valid")):
        symbols = np.concatenate([tokenizer.bpe.tokens[id] for id in sequences[place].ecgs[0]])
        again = tokenizer.quantizer.encode(signals[int(outline.ecgs[0])]).ravel()
        wrong, compared = wrong + np.count_nonzero(symbols != again), compared + symbols.size
    assert compared > 1000 and wrong < 1e-3 * compared  # float16 moves a sample over the edge of a bin at times


def test_training_falls_validates_and_is_done_once(pretrained, monkeypatch):
    written = lines(pretrained)
    assert [line["step"] for line in written] == list(range(1, 9))
    assert written[-1]["loss"] < 0.8 * written[0]["loss"]
    assert json.loads(pretrained.pretrain.encoder_health.read_text())["valid_variance"] > 0
    monkeypatch.setattr(stage, "_train", lambda *_: pytest.fail("trained again"))
    pretrain(Settings.of(encoder_config()), pretrained)


def test_its_ledger_counts_what_it_has_seen(pretrained):
    costs = json.loads(pretrained.cost.read_text())
    assert costs["signals"]["wall_s"] > 0 and costs["pretrain"]["settings"] == digest_of(pretrained.pretrain.train_marker)
    seen, grid = costs["pretrain"]["seen"], patch_grid(Settings.of(encoder_config()).encoder, 100)
    encoder, decoder = SIZES["tiny"]

    def blocks(stack: Stack, tokens: int) -> int:
        return stack.layers * (tokens * stack.width * (4 * stack.width + 2 * stack.mlp_width) + 2 * tokens**2 * stack.width)

    kept = 6  # of 25 patches, and a class token
    maps = 25 * grid.values * encoder.width + (kept + 1) * encoder.width * decoder.width + 25 * decoder.width * grid.values
    forward = 2 * (maps + blocks(encoder, kept + 1) + blocks(decoder, 26))
    manifest = read_manifest(pretrained.shards)
    patients = {outline.patient for outline in outlines_of(pretrained.shards, manifest, "train")}
    assert seen.pop("trained_parameters") > 10**4
    assert seen == {"steps": 8, "ecgs": 32, "patients": len(patients), "examples": 64, "flops": 3 * 64 * forward}


def test_an_early_end_and_comparisons_count_what_was_seen_alone():
    other = replace(about([3, 7], "Alike?", "yes"), meta={"patients": ["a", "b"]})
    asked = [replace(about([number], "?", "yes"), patient=f"p{number}") for number in (1, 5)] + [other]
    plan = plan_segments(4, 2, 2.0, seed=0)
    for steps in range(1, len(plan) + 1):
        numbers = np.array([1, 3, 5, 7])
        batches = [numbers[np.concatenate(plan[step].rows)] for step in range(steps)]
        shown = {int(number) for batch in batches for number in batch}
        patients = {{1: "p1", 5: "p5", 3: "a", 7: "b"}[number] for number in shown}
        expected = {"steps": steps, "ecgs": len(shown), "patients": len(patients), "examples": 2 * steps, "flops": 7.0 * steps}
        assert count_segments(asked, numbers, plan, steps, 7.0) == expected


def test_a_training_enters_what_the_encoder_of_another_run_has_cost(pretrained, tmp_path):
    config = encoder_config()
    config.ecg_input.kind, costs = "encoder", json.loads(pretrained.cost.read_text())
    expected = {"run": str(pretrained.root.resolve()), "signals": costs["signals"], "pretrain": costs["pretrain"]}
    assert train._first_stage(Settings.of(config), pretrained) == {}  # beside it
    control = Workdir(tmp_path / "control")
    control.root.mkdir()
    for folder in (pretrained.signals, pretrained.pretrain.root):
        (control.root / folder.name).symlink_to(folder)
    assert train._first_stage(Settings.of(config), control) == expected
    config.encoder.pretrained = str(pretrained.root)
    assert train._first_stage(Settings.of(config), Workdir(tmp_path / "new")) == expected
    older = Workdir(tmp_path / "older")
    shutil.copytree(pretrained.root, older.root)
    older.cost.unlink()
    config.encoder.pretrained = str(older.root)
    assert train._first_stage(Settings.of(config), Workdir(tmp_path / "new")) == {"run": str(older.root)}
    config.encoder.pretrained = "random"
    assert train._first_stage(Settings.of(config), Workdir(tmp_path / "new")) == {}


def check_resumed(kind: str, whole: Workdir, prepared, tmp_path, monkeypatch) -> None:
    """Kills a training after some of its steps, goes on with it, and compares it with one that was never killed."""
    workdir = Workdir(tmp_path / "killed")
    shutil.copytree(prepared, workdir.root)
    shutil.copytree(whole.signals, workdir.signals)
    with monkeypatch.context() as patch:
        put, calls = feed.put_batch, iter(range(100))
        patch.setattr(feed, "put_batch", lambda *a: put(*a) if next(calls) < 5 else pytest.fail("killed", pytrace=False))
        with pytest.raises(pytest.fail.Exception):
            pretrain(Settings.of(encoder_config(kind)), workdir)
    assert 3 <= lines(workdir)[-1]["step"] < 8
    pretrain(Settings.of(encoder_config(kind)), workdir)
    assert lines(workdir) == lines(whole) and result(workdir) == result(whole)
    assert workdir.pretrain.encoder_health.read_bytes() == whole.pretrain.encoder_health.read_bytes()
    ours, theirs = (json.loads(each.cost.read_text())["pretrain"] for each in (workdir, whole))
    assert ours["commands"] == 2 and ours["seen"] == theirs["seen"] and ours["device_s"] > 0


def test_killed_and_resumed_it_gives_the_same_bits(pretrained, prepared, tmp_path, monkeypatch):
    check_resumed("mtae", pretrained, prepared, tmp_path, monkeypatch)


@pytest.mark.slow
def test_merl_falls_and_is_resumed_with_the_statistics_of_its_norms(pretrained, prepared, tmp_path, monkeypatch):
    whole = Workdir(tmp_path / "whole")
    shutil.copytree(prepared, whole.root)
    shutil.copytree(pretrained.signals, whole.signals)
    pretrain(Settings.of(encoder_config("merl")), whole)
    health = json.loads(whole.pretrain.encoder_health.read_text())
    assert lines(whole)[-1]["loss"] < 0.9 * lines(whole)[0]["loss"] and health["loss_of_nothing"] == pytest.approx(
        4 * np.log(8)
    )
    check_resumed("merl", whole, prepared, tmp_path, monkeypatch)
    saved = Checkpoints(whole.pretrain.checkpoints, None)
    with jax.set_mesh(make_mesh(-1, 1, 1)), closing(saved):
        parts = build_encoder(Settings.of(encoder_config("merl")).encoder, 100, 0, make_mesh(-1, 1, 1), 768, to_restore=True)
        early, late = (saved.load(step, {"statistics": parts.statistics})["statistics"] for step in (6, 8))
    moved = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(early), jax.tree.leaves(late), strict=True)]
    assert all(moved) and len(moved) == 34


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_a_reader_of_pictures_falls_and_is_resumed(kind, pretrained, prepared, tmp_path, monkeypatch):
    whole = Workdir(tmp_path / "whole")
    shutil.copytree(prepared, whole.root)
    shutil.copytree(pretrained.signals, whole.signals)
    pretrain(Settings.of(encoder_config(kind)), whole)
    health = json.loads(whole.pretrain.encoder_health.read_text())
    assert lines(whole)[-1]["loss"] < 0.95 * lines(whole)[0]["loss"] and health["probe"] > 0
    if kind == "clip":
        assert health["loss_of_nothing"] == pytest.approx(np.log(8))
    check_resumed(kind, whole, prepared, tmp_path, monkeypatch)


def test_a_segment_is_seen_once_an_epoch_and_splits_share_none(pretrained):
    manifest = read_manifest(pretrained.shards)
    splits = [segments_of(outlines_of(pretrained.shards, manifest, split)) for split in ("train", "valid", "test")]
    assert sorted(np.concatenate(splits)) == list(range(40))
    plan = plan_segments(10, 5, 2.0, seed=0)
    seen = [np.concatenate(plan[step].rows) for step in range(len(plan))]
    assert len(seen) == 4 and sorted(np.concatenate(seen[:2])) == sorted(np.concatenate(seen[2:])) == list(range(10))
    assert not np.array_equal(np.concatenate(seen[:2]), np.concatenate(seen[2:]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mtae", "merl", "vit", "clip"])
def test_a_step_is_the_same_on_one_device_and_on_eight(kind, rng):
    settings, losses, statistics = Settings.of(encoder_config(kind)), [], []
    batch = {"signals": rng.standard_normal((8, 12, 100)).astype(np.float32)}
    reports = {"merl": rng.standard_normal((8, 40)).astype(np.float32), "clip": rng.integers(0, 40, (8, 77), np.int32)}
    batch |= {"reports": reports[kind]} if kind in reports else {}
    for devices in (jax.devices(), jax.devices()[:1]):
        mesh = make_mesh(-1, 1, 1, devices)
        with jax.set_mesh(mesh):
            parts = build_encoder(settings.encoder, 100, 0, mesh, text_size=40)
            optimizer, _ = make_optimizer(settings.pretrain_optim, 64, 10)
            state = start_state(parts.params, optimizer, mesh, parts.statistics)
            step = make_encoder_step(parts, optimizer, 0)
            for number in (1, 2, 3):
                state, figures = step(state, None, put_batch(batch, mesh), number)
            losses.append([float(figures[name]) for name in ("loss", "grad_norm")])
            statistics.append(jax.tree.leaves(jax.device_get(state.statistics)))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert len(statistics[0]) == (34 if kind == "merl" else 0)
    for one, eight in zip(*statistics, strict=True):
        np.testing.assert_allclose(one, eight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("encoder.patch", 7, r"encoder\.patch: 7 found, a divisor of signal\.segment_length = 100"),
        ("pretrain.batch_size", 12, r"pretrain\.batch_size: 12 found, a multiple of the mesh's"),
        ("encoder.text_encoder", "nowhere", r"encoder\.text_encoder: nowhere/config\.json: No such file or directory"),
        ("pretrain.batch_size", 1, r"pretrain\.batch_size: 1 found with kind 'merl', which contrasts the segments of a batch"),
        ("encoder.weights", "nowhere", r"encoder\.weights: nowhere/config\.json: No such file .* folder of a CLIP expected"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_a_recording_is_read(prepared, monkeypatch, name, value, message):
    kinds = {"encoder.text_encoder": "merl", "encoder.weights": "clip"}
    config = encoder_config("merl" if "merl" in message else kinds.get(name, "mtae"))
    config.update_from_flattened_dict({name: value})
    monkeypatch.setattr(clean, "open_corpus", lambda *_: pytest.fail("recordings were read"))
    with pytest.raises((ConfigError, WeightsError), match=message):
        pretrain(Settings.of(config), Workdir(prepared))


def test_too_few_segments_for_a_batch_are_said(pretrained):
    config = encoder_config()
    config.pretrain.batch_size, config.pretrain.epochs = 64, 1.0
    with pytest.raises(ShardsError, match=r"32 training segments and 1\.0 epochs found for pretrain\.batch_size 64"):
        pretrain(Settings.of(config), pretrained)


def test_reports_that_are_all_the_same_are_said(pretrained, monkeypatch):
    monkeypatch.setattr(
        stage, "outlines_of", lambda *args: [replace(o, question="?", answer="yes") for o in outlines_of(*args)]
    )
    with pytest.raises(ShardsError, match=r"1 different reports found of 32 training segments, at least 2 expected for kind"):
        pretrain(Settings.of(encoder_config("merl")), pretrained)


@pytest.mark.parametrize("kind, setting", [("merl", "text_encoder"), ("clip", "weights")])
def test_a_folder_of_weights_counts_by_its_content_wherever_it_is(kind, setting, pretrained, tmp_path):
    digests = []
    for place, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "model.safetensors").write_bytes(content)
        (tmp_path / place / "config.json").write_text("{}")
        config = encoder_config(kind)
        config.encoder[setting] = str(tmp_path / place)
        digests.append(lineage.pretrained(Settings.of(config), pretrained).digest())
    config.encoder[setting] = ""
    digests.append(lineage.pretrained(Settings.of(config), pretrained).digest())
    assert digests[0] == digests[1] and len(set(digests)) == 3
