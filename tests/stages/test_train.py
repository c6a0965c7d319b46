import csv
import gc
import json
import shutil
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1 as ocp

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.corpora.ptbxl import DATABASE
from ecgbyte_jax.errors import CheckpointError, ConfigError, TrainingError
from ecgbyte_jax.evaluate.answers import Answerer
from ecgbyte_jax.evaluate.generations import Answer
from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.inputs.prompt import lay_out
from ecgbyte_jax.model.build import build_model, count
from ecgbyte_jax.model.sharding import make_mesh
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages import train as stage
from ecgbyte_jax.stages.eval import evaluate
from ecgbyte_jax.stages.pipeline import run
from ecgbyte_jax.stages.train import train
from ecgbyte_jax.train import feed
from ecgbyte_jax.train.checkpoint import Checkpoints
from ecgbyte_jax.train.optim import inverse_root_schedule, make_optimizer
from ecgbyte_jax.train.restore import build_for, positions, restore_model
from ecgbyte_jax.train.step import TrainState, answer_loss, answer_tokens, make_step, start_state
from ecgbyte_jax.train.validate import make_validation
from experiments import ptb
from tests.prompts import plainly
from tests.small import small_config


@pytest.fixture
def workdir(prepared, tmp_path):
    """A work directory of the test's own, prepared."""
    shutil.copytree(prepared, tmp_path / "w")
    return tmp_path / "w"


def metrics(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").open()]


def deterministic(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in ("tokens_per_s", "input_wait")} for line in lines]


def test_loss_falls_on_the_answer_and_eos_alone(config, prepared):
    opened = load_prepared(Workdir(prepared))
    parts = build_for(Settings.of(config), opened, make_mesh(8, 1, 1))
    model = parts.model(parts.trained)
    ids, ecg, question, answer = opened.ids, np.arange(9), np.array([300, 301]), np.array([302, 303])
    sequence, mask = plainly(ids, [ecg], question, answer, 40)
    log_p = jax.nn.log_softmax(model(sequence[None])[0])
    by_hand = -np.sum([log_p[len(sequence) - 4 + i, token] for i, token in enumerate([302, 303, ids.eos])])
    for answers in (3, 10):
        row = {name: jnp.asarray(v)[None] for name, v in lay_out([(sequence, mask)], 40, answers, ids.pad).items()}
        assert float(answer_loss(model, row)) == pytest.approx(by_hand, rel=1e-4) and int(answer_tokens(row)) == 3


def test_published_schedule_by_hand():
    rate = inverse_root_schedule(width=64, warmup=4)
    np.testing.assert_allclose([rate(0), rate(3), rate(8)], [1 / 8 * 1 / 8, 1 / 8 * 1 / 2, 1 / 8 * 1 / 3], rtol=1e-6)


@pytest.mark.parametrize(("form", "quarter"), [("linear", 0.75), ("cosine", (1 + 0.5**0.5) / 2)])
def test_adamw_s_rate_rises_in_a_line_and_falls_to_0_at_the_last_step(config, form, quarter):
    config.optim.preset, config.optim.schedule, config.optim.warmup, config.optim.peak_rate = "adamw", form, 10, 0.2
    _, rate = make_optimizer(Settings.of(config).optim, width=64, steps=50)
    found = [float(rate(step)) for step in (0, 5, 10, 20, 30, 50)]
    np.testing.assert_allclose(found, [0, 0.1, 0.2, 0.2 * quarter, 0.1, 0], atol=1e-7)


def test_published_decay_is_added_to_the_gradient_and_adamw_s_to_the_update(config):
    config.optim.weight_decay, config.optim.warmup, config.optim.peak_rate = 0.5, 1, 0.1
    weight, gradient = jnp.array([2.0]), jnp.array([0.0])
    updates = {}
    for preset in ("ecg_byte", "adamw"):
        config.optim.preset = preset
        optimizer, schedule = make_optimizer(Settings.of(config).optim, width=100, steps=10)
        state = optimizer.init(weight)
        _, state = optimizer.update(gradient, state, weight)
        update, _ = optimizer.update(gradient, state, weight)
        updates[preset] = float(update[0]) / float(schedule(1))
    # Adam makes a steady gradient of any size a step of one; decoupled decay is proportional to the weight.
    assert updates == pytest.approx({"ecg_byte": -1.0, "adamw": -1.0}, rel=1e-3)
    config.optim.weight_decay = 0.25
    for preset, expected in (("ecg_byte", -1.0), ("adamw", -0.5)):
        config.optim.preset = preset
        optimizer, schedule = make_optimizer(Settings.of(config).optim, width=100, steps=10)
        state = optimizer.init(weight)
        _, state = optimizer.update(gradient, state, weight)
        update, _ = optimizer.update(gradient, state, weight)
        assert float(update[0]) / float(schedule(1)) == pytest.approx(expected, rel=1e-3)


def test_frozen_weights_stay_and_only_the_adapter_is_saved(config, workdir):
    config.lora.rank = 4
    opened = load_prepared(Workdir(workdir))
    mesh = make_mesh(8, 1, 1)
    with jax.set_mesh(mesh):
        parts = build_for(Settings.of(config), opened, mesh)
        frozen = jax.tree.map(np.asarray, parts.frozen)
    train(Settings.of(config), Workdir(workdir))
    checkpoints = Checkpoints(workdir / "checkpoints")
    optimizer, _ = make_optimizer(Settings.of(config).optim, 32, 1)
    with jax.set_mesh(mesh):
        state = checkpoints.load(checkpoints.latest(), start_state(parts.trained, optimizer, mesh))
    changed = [not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(parts.trained))]
    assert all(changed) and count(state.params) < count(frozen) / 2
    again = build_for(Settings.of(config), opened, mesh).frozen
    for before, after in zip(jax.tree.leaves(frozen), jax.tree.leaves(again)):
        np.testing.assert_array_equal(before, after)


def test_dropout_and_parts_of_the_settings_reach_the_step(config, workdir, monkeypatch):
    config.lora.rank, config.lora.dropout, config.train.batch_size, config.train.accumulate = 4, 0.3, 16, 2
    given = []
    monkeypatch.setattr(stage, "make_step", lambda *a: given.append(a) or pytest.fail("enough", pytrace=False))
    with pytest.raises(pytest.fail.Exception):
        train(Settings.of(config), Workdir(workdir))
    assert [one[2:] for one in given] == [(0.3, config.seed, 2)]


def test_a_profile_is_written_of_the_steps_asked_for(config, workdir, capsys):
    config.train.epochs = 0.25
    train(Settings.of(config), Workdir(workdir), (2, 3))
    assert list((workdir / "profile").rglob("*.xplane.pb")) and "profile of steps 2 to 3" in capsys.readouterr().out


def test_a_profile_ends_with_a_training_that_ends_before_it(config, workdir, monkeypatch):
    given = iter([1.0, 2.0])
    monkeypatch.setattr(stage, "make_validation", lambda *_: lambda params: {"valid_loss": next(given)})
    config.train.checkpoint_every = config.train.patience = 1
    train(Settings.of(config), Workdir(workdir), (2, 5))
    assert len(metrics(workdir)) == 2 and list((workdir / "profile").rglob("*.xplane.pb"))


def test_training_writes_one_line_a_step_and_a_second_run_does_nothing(config, workdir, monkeypatch):
    train(Settings.of(config), Workdir(workdir))
    lines = metrics(workdir)
    assert [line["step"] for line in lines] == list(range(1, 9))  # half of 128 sequences, 8 a step
    assert [line["step"] for line in lines if "valid_loss" in line] == [4, 8]
    monkeypatch.setattr(stage, "_train", lambda *_: pytest.fail("trained again"))
    train(Settings.of(config), Workdir(workdir))


def test_resume_equals_uninterrupted(config, workdir, tmp_path, monkeypatch):
    shutil.copytree(workdir, tmp_path / "whole")
    train(Settings.of(config), Workdir(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        put, calls = feed.put_batch, iter(range(100))
        # Each is put there while the step before is under way: the run dies in step 7.
        patch.setattr(feed, "put_batch", lambda *a: put(*a) if next(calls) < 7 else pytest.fail("killed", pytrace=False))
        with pytest.raises(pytest.fail.Exception):
            train(Settings.of(config), Workdir(workdir))
    died_at = metrics(workdir)[-1]["step"]
    assert 4 < died_at < 8
    train(Settings.of(config), Workdir(workdir))
    assert deterministic(metrics(workdir)) == deterministic(metrics(tmp_path / "whole"))


@pytest.fixture
def memory(monkeypatch):
    """What Orbax is asked to read, in bytes, and what is held then and when the loop begins, beside what was before."""
    found = {}

    def held() -> int:
        gc.collect()
        return sum(array.nbytes for array in jax.live_arrays())

    before, load, run_loop = held(), ocp.training.Checkpointer.load, stage.Loop.run

    def watched(checkpointer, step, like):
        found["at the read"] = held() - before
        found["read"] = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(like))
        return load(checkpointer, step, like)

    def begun(loop, *given):
        found["in the loop"] = held() - before
        return run_loop(loop, *given)

    monkeypatch.setattr(ocp.training.Checkpointer, "load", watched)
    monkeypatch.setattr(stage.Loop, "run", begun)
    return found


@pytest.mark.slow
def test_a_resumed_training_holds_its_state_once(config, workdir, memory):
    config.model.width, config.model.mlp_width = 128, 512  # the weights outweigh the batches
    train(Settings.of(config), Workdir(workdir))
    state = memory["in the loop"]  # parameters and two moments
    shutil.rmtree(workdir / "checkpoints/8")
    train(Settings.of(config), Workdir(workdir))
    assert memory["read"] == pytest.approx(state, rel=0.02)
    assert memory["at the read"] < 0.02 * state and memory["in the loop"] < 1.02 * state


@pytest.mark.slow
def test_an_evaluation_reads_the_parameters_alone_and_holds_them_once(config, workdir, memory):
    config.model.width, config.model.mlp_width = 128, 512
    train(Settings.of(config), Workdir(workdir))
    state, mesh = memory["in the loop"], make_mesh(8, 1, 1)
    with jax.set_mesh(mesh):
        restore_model(Settings.of(config), Workdir(workdir), load_prepared(Workdir(workdir)), mesh, "last")
    assert memory["read"] == pytest.approx(state / 3, rel=0.02) and memory["at the read"] < 0.02 * state


def test_a_run_that_died_after_its_last_checkpoint_only_ends(config, workdir):
    train(Settings.of(config), Workdir(workdir))
    marker = lineage.trained(Settings.of(config), Workdir(workdir))
    marker.begin()
    before = metrics(workdir)
    train(Settings.of(config), Workdir(workdir))
    assert marker.finished() and metrics(workdir) == before


def test_a_training_whose_log_was_deleted_after_its_last_checkpoint_only_ends(config, workdir):
    train(Settings.of(config), Workdir(workdir))
    marker = lineage.trained(Settings.of(config), Workdir(workdir))
    before = marker.require()
    marker.begin()
    (workdir / "metrics.jsonl").unlink()
    train(Settings.of(config), Workdir(workdir))
    assert marker.require() == before and metrics(workdir) == []


def test_other_settings_move_the_old_training_aside(config, workdir, capsys):
    train(Settings.of(config), Workdir(workdir))
    (workdir / "wandb_run.txt").write_text("a run")
    config.optim.peak_rate = 1e-4
    train(Settings.of(config), Workdir(workdir))
    shown = capsys.readouterr().out
    assert "optim.peak_rate: 0.002 -> 0.0001" in shown and "MB of parameters and the optimizer's state" in shown
    assert (workdir / "checkpoints.old-1/metrics.jsonl").is_file() and len(metrics(workdir)) == 8
    assert (workdir / "checkpoints.old-1/wandb_run.txt").is_file() and not (workdir / "wandb_run.txt").exists()


def contents(*places) -> dict[str, bytes]:
    """Every file in these folders, and these files, by name."""
    return {
        f"{place.name}/{path.relative_to(place)}": path.read_bytes()
        for place in places
        for path in (sorted(place.rglob("*")) if place.is_dir() else [place])
        if path.is_file()
    }


def failing_step(*_):
    """A step that does not fit into memory, for example."""

    def step(*_):
        raise RuntimeError("no memory")

    return step


def test_a_training_that_fails_before_its_first_step_leaves_the_one_before(config, workdir, monkeypatch):
    first = Settings.of(config)
    train(first, Workdir(workdir))
    before = contents(workdir / "checkpoints", workdir / "metrics.jsonl", workdir / "config.json")
    config.optim.peak_rate = 1e-4
    for make_failing_step in (failing_step, lambda *_: failing_step()()):
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no memory"):
            patch.setattr(stage, "make_step", make_failing_step)
            patch.setattr(stage, "compiled_ahead", lambda step, *_: nullcontext(step))
            train(Settings.of(config), Workdir(workdir))
        assert contents(workdir / "checkpoints", workdir / "metrics.jsonl", workdir / "config.json") == before
        assert not list(workdir.glob("checkpoints.old-*")) and lineage.trained(first, Workdir(workdir)).finished()


def test_a_first_step_that_is_not_finite_displaces_nothing(config, workdir):
    train(Settings.of(config), Workdir(workdir))
    before = contents(workdir / "checkpoints", workdir / "metrics.jsonl")
    config.model.rope_theta = 1e-200
    with pytest.raises(TrainingError, match=r"step 1: loss is nan; nothing was written; the batch's examples: "):
        train(Settings.of(config), Workdir(workdir))
    assert contents(workdir / "checkpoints", workdir / "metrics.jsonl") == before


def test_the_settings_of_an_earlier_training_bring_it_back(config, workdir, monkeypatch, capsys):
    train(Settings.of(config), Workdir(workdir))
    (workdir / "wandb_run.txt").write_text("the first")
    moving = tuple(workdir / name for name in ("metrics.jsonl", "tensorboard", "wandb_run.txt"))
    first = contents(workdir / "checkpoints", *moving)
    config.optim.peak_rate = 1e-4
    train(Settings.of(config), Workdir(workdir))
    second = contents(workdir / "checkpoints", *moving[:2])
    assert (workdir / "checkpoints.old-1/8").is_dir() and not (workdir / "wandb_run.txt").exists()
    assert all(first[name] != second[name] for name in ("metrics.jsonl/.", "checkpoints/stage.json"))
    monkeypatch.setattr(stage, "make_step", lambda *_: pytest.fail("a step is taken"))
    config.optim.peak_rate = small_config().optim.peak_rate
    train(Settings.of(config), Workdir(workdir))
    assert contents(workdir / "checkpoints", *moving) == first
    assert json.loads((workdir / "config.json").read_text())["optim"]["peak_rate"] == config.optim.peak_rate
    assert "checkpoints.old-1/ was made with these settings; it is checkpoints/ again" in capsys.readouterr().out
    (aside,) = workdir.glob("checkpoints.old-*")
    assert sorted(contents(aside).values()) == sorted(second.values())


@pytest.mark.slow
def test_a_touched_recording_or_a_copied_folder_leaves_a_finished_training_finished(config, tmp_path, monkeypatch, capsys):
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 40, seed=0)
    config.data.corpus, config.data.synthetic_records, config.data.root = "ptbxl", 0, str(tmp_path / "ptbxl")
    run(config, tmp_path / "w", ["prepare", "train"])
    before = contents(tmp_path / "w/checkpoints", tmp_path / "w/metrics.jsonl")
    monkeypatch.setattr(stage, "_train", lambda *_: pytest.fail("trained again"))
    next((tmp_path / "ptbxl").rglob("*.dat")).touch()
    run(config, tmp_path / "w", ["prepare", "train"])
    shutil.copytree(tmp_path / "w", tmp_path / "copy", copy_function=shutil.copyfile)  # with other times
    run(config, tmp_path / "copy", ["prepare", "train"])
    assert capsys.readouterr().out.count("train: settings and inputs have not changed") == 2
    for name in ("w", "copy"):
        assert contents(tmp_path / name / "checkpoints", tmp_path / name / "metrics.jsonl") == before


def test_checkpoints_of_unknown_settings_are_not_taken_for_these(config, workdir, monkeypatch):
    train(Settings.of(config), Workdir(workdir))
    (workdir / "checkpoints/stage.json").unlink()
    (workdir / "checkpoints.old-2").mkdir()
    config.train.epochs = 0.25
    train(Settings.of(config), Workdir(workdir))
    assert (workdir / "checkpoints.old-1/8").is_dir() and len(metrics(workdir)) == 4


def test_a_finished_training_without_its_last_checkpoint_goes_on(config, workdir):
    train(Settings.of(config), Workdir(workdir))
    shutil.rmtree(workdir / "checkpoints/8")
    train(Settings.of(config), Workdir(workdir))
    assert (workdir / "checkpoints/8").is_dir() and [line["step"] for line in metrics(workdir)] == list(range(1, 9))


def test_a_mesh_that_does_not_fit_leaves_the_finished_training_alone(config, workdir):
    train(Settings.of(config), Workdir(workdir))
    config.mesh.data, config.optim.peak_rate = 3, 1e-4
    with pytest.raises(ConfigError, match="mesh"):
        train(Settings.of(config), Workdir(workdir))
    assert (workdir / "checkpoints/8").is_dir()


def test_weights_that_overflow_are_not_saved(config, workdir):
    config.optim.peak_rate, config.optim.warmup, config.train.checkpoint_every = 1e20, 1, 1
    with pytest.raises(TrainingError, match=r"(loss|grad_norm|valid_loss) is (nan|inf)"):
        train(Settings.of(config), Workdir(workdir))
    assert all(np.isfinite(line["grad_norm"]) for line in metrics(workdir))


def test_a_loss_that_is_not_finite_stops_the_run(config, workdir):
    config.optim.peak_rate, config.optim.warmup, config.optim.clip_norm = 1e30, 1, 1e30
    with pytest.raises(TrainingError, match=r"step \d: (loss|grad_norm) is (nan|inf)"):
        train(Settings.of(config), Workdir(workdir))


def test_training_needs_prepared_data(config, tmp_path):
    with pytest.raises(ConfigError, match="'prepare' has not finished"):
        train(Settings.of(config), Workdir(tmp_path))


def test_a_checkpoint_of_another_model_is_refused(config, workdir):
    mesh = make_mesh(8, 1, 1)
    checkpoints = Checkpoints(workdir / "checkpoints")
    with jax.set_mesh(mesh):
        optimizer = optax.sgd(0.1)
        for vocab_size, act in ((256, checkpoints.save), (512, checkpoints.load)):
            settings = Settings.of(config)
            parts = build_model(settings.model, settings.lora, 0, positions(settings), vocab_size, mesh)
            state = start_state(parts.trained, optimizer, mesh)
            if act == checkpoints.save:
                act(1, state)
                continue
            with pytest.raises(
                CheckpointError, match=r"checkpoint 1 cannot be restored .*embedding.* is \(256, 32\), \(512, 32\) expected"
            ):
                act(1, state)
    checkpoints.close()


def test_steps_move_the_weights_and_count(config, prepared):
    opened = load_prepared(Workdir(prepared))
    mesh = make_mesh(8, 1, 1)
    with jax.set_mesh(mesh):
        parts = build_for(Settings.of(config), opened, mesh)
        optimizer, _ = make_optimizer(Settings.of(config).optim, 32, 4)
        state = start_state(parts.trained, optimizer, mesh)
        before = np.asarray(state.params["embedding"][...])
        step = make_step(parts, optimizer)
        _, batches = feed.plan_batches(Settings.of(config), opened, "train", 1.0)
        for i in range(2):
            state, _ = step(state, parts.frozen, feed.put_batch(batches[i], mesh), i + 1)
    assert isinstance(state, TrainState) and int(state.step) == 2
    assert np.abs(np.asarray(state.params["embedding"][...]) - before).max() > 0


@pytest.fixture
def eight_recordings(shared, tmp_path):
    """PTB-XL with eight of the real recordings, all of them for training, every report another."""
    source, target = shared / "data/ptbxl", tmp_path / "ptbxl"
    target.mkdir()
    (target / "records500").symlink_to(source / "records500")
    with (source / DATABASE).open(newline="") as file:
        rows = {row["report"]: row for row in csv.DictReader(file) if 10 < len(row["report"]) < 90}
    with (target / DATABASE).open("w", newline="") as file:
        chosen = [row | {"strat_fold": 1} for row in list(rows.values())[:8]]
        writer = csv.DictWriter(file, list(chosen[0]))
        writer.writeheader()
        writer.writerows(chosen)
    return target


@pytest.mark.slow
def test_eight_real_examples_are_learnt_word_for_word(eight_recordings, tmp_path):
    config = ptb.get_config("tiny")
    config.data.root = str(eight_recordings)
    config.tokenizer.num_merges = 300
    config.prompt.max_length = 256
    config.optim.warmup = 10
    config.train.epochs = 120.0
    config.eval.split = "train"
    config.eval.batch_size = 8
    run(config, tmp_path / "w", ["prepare", "train"])
    evaluate(Settings.of(config), Workdir(tmp_path / "w"))
    lines = metrics(tmp_path / "w")
    assert lines[-1]["loss"] < 0.05 < 3 < lines[0]["loss"]
    rows = [json.loads(line) for line in (tmp_path / "w/eval/generations.jsonl").open()]
    assert len({row["reference"] for row in rows}) == 8
    assert [row["answer"] for row in rows] == [row["reference"].strip() for row in rows]


def test_validation_draws_no_dropout_and_counts_exact_matches(config, workdir, monkeypatch):
    config.lora.rank, config.lora.dropout, config.train.valid_answers = 4, 0.5, 12
    config.eval.temperature = 1.0  # of the evaluation alone
    opened, mesh = load_prepared(Workdir(workdir)), make_mesh(8, 1, 1)
    asked = []

    def half_right(answerer, prompts):
        asked.extend(prompts)
        assert answerer.settings.eval.temperature == 0.0
        right = {tuple(s.prompt): s.answer for s in sequences}
        return [Answer(right[tuple(q)] if i % 2 else "no such answer", [], 0.0) for i, (_, q) in enumerate(prompts)]

    dataset = open_split(opened.shards, opened.manifest, "valid")
    sequences = [dataset[i] for i in range(len(dataset))]
    monkeypatch.setattr(Answerer, "answer", half_right)
    with jax.set_mesh(mesh):
        found = {}
        for dropout in (0.5, 0.0):
            config.lora.dropout = dropout
            parts = build_for(Settings.of(config), opened, mesh)
            validate = make_validation(Settings.of(config), Workdir(workdir), opened, parts, mesh)
            found[dropout] = [validate(TrainState(parts.trained, None, np.int32(0))) for _ in range(2)]
    assert found[0.5][0] == found[0.5][1] == found[0.0][0] and len(asked) == 4 * 12
    assert 0 < found[0.0][0]["valid_exact_match"] <= 0.5 and found[0.0][0]["valid_rouge_l"] > 0


def test_trainings_of_several_seeds_are_validated_by_the_same_questions_and_ecgs(config, workdir, monkeypatch):
    config.train.valid_answers, config.data.ecg, config.data.seed = 6, "shuffled", config.seed
    opened, mesh, asked = load_prepared(Workdir(workdir)), make_mesh(8, 1, 1), []

    def note(answerer, prompts):
        asked.extend((*(ecg.tobytes() for ecg in ecgs), prompt.tobytes()) for ecgs, prompt in prompts)
        return [Answer("", [], 0.0) for _ in prompts]

    monkeypatch.setattr(Answerer, "answer", note)
    with jax.set_mesh(mesh):
        parts = build_for(Settings.of(config), opened, mesh)
        for config.seed in (0, 1, 2):
            validate = make_validation(Settings.of(config), Workdir(workdir), opened, parts, mesh)
            validate(TrainState(parts.trained, None, np.int32(0)))
    assert len(asked) == 3 * 6 and asked[:6] == asked[6:12] == asked[12:]
