import json
import shutil
from dataclasses import replace

import pytest

from ecgbyte_jax.errors import ConfigError, ScoresError
from ecgbyte_jax.run.stage import Stage
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages.compare import compared, compared_all, joined
from ecgbyte_jax.stages.pipeline import run
from ecgbyte_jax.sweep.costs import Point, cost_of, cost_to_reach, curve, mean_curve
from ecgbyte_jax.sweep.systems import SYSTEMS, check_systems, settings_of
from experiments import headline as experiment
from tests.small import small_config
from tests.stages.test_compare import make_run, share


@pytest.mark.slow
def test_systems_are_trained_with_every_seed_on_one_preparation_and_resumed_where_one_is_missing(tmp_path, capsys):
    config = small_config()
    config.train.valid_answers = 4
    config.encoder.size = "tiny"
    config.pretrain.batch_size, config.pretrain.epochs = 8, 0.5
    config.headline.systems, config.headline.seeds = ("none", "mtae"), (0, 1)
    folder = tmp_path / "run"
    run(config, folder, ["prepare", "headline"])
    table = json.loads((folder / "headline.json").read_text())
    rows = {row["name"]: row for row in table["rows"]}
    assert [*rows] == ["none", "mtae"] and table["seeds"] == [0, 1]
    for row in rows.values():
        assert row["score"] == pytest.approx(sum(row["by_seed"]) / 2) and [point["examples"] for point in row["curve"]] == [
            32,
            64,
        ]
    assert rows["none"]["cost"]["ecgs"] == 0 < rows["mtae"]["cost"]["ecgs"]
    assert rows["mtae"]["cost"]["first stage's seconds"] > 0 == rows["none"]["cost"]["first stage's seconds"]
    asked = json.loads((folder / "systems/none-0/eval/ecg_none/results.json").read_text())
    assert asked["ecg"] == "none" and asked["scores"]["model"]["exact_match"] == rows["none"]["by_seed"][0]
    losses = {(folder / f"systems/none-{seed}/metrics.jsonl").read_text() for seed in (0, 1)}
    assert len(losses) == 2  # seeds of the training
    assert (folder / "systems/mtae-1/shards").samefile(folder / "shards")
    page = (folder / "headline.html").read_bytes()
    shutil.rmtree(folder / "systems/mtae-1")
    moved = folder.rename(tmp_path / "moved")
    capsys.readouterr()
    run(config, moved, ["headline"])
    said = capsys.readouterr().out
    assert said.count("nothing to do") == 2 * 3 + 1 and "mtae, seed 1" in said  # trained, evaluated, an encoder
    again = json.loads((moved / "headline.json").read_text())
    for name in ("by_seed", "to_other_ecg"):
        assert [row[name] for row in again["rows"]] == [row[name] for row in table["rows"]]
    assert [[point["score"] for point in row["curve"]] for row in again["rows"]] == [
        [point["score"] for point in row["curve"]] for row in table["rows"]
    ]
    assert b"<h1>ECG-Byte and its alternatives on synthetic ECGs" in page


@pytest.mark.parametrize("argument", ["", "ptb", "mimic"])
def test_every_system_of_the_experiment_can_be(argument):
    settings = Settings.of(experiment.get_config(argument))
    check_systems(settings)
    parts = {name: settings_of(settings, name, 5) for name in SYSTEMS}
    assert {part.seed for part in parts.values()} == {5} and {part.data_seed for part in parts.values()} == {0}
    assert parts["tokens"].ecg_input.kind == "tokens" and parts["none"].data.ecg == "none"
    asked = {name: (part.eval.ecg, part.eval.name) for name, part in parts.items() if part.eval.ecg != "own"}
    assert asked == {"none": ("none", "ecg_none")}  # a model that has never seen an ECG's token is not asked with any
    trained = replace(settings, ecg_input=replace(settings.ecg_input, train_encoder=True))
    assert settings_of(trained, "merl", 5).ecg_input.train_encoder > settings_of(trained, "random", 5).ecg_input.train_encoder
    assert parts["random"].encoder.pretrained == "random" and parts["merl"].encoder.pretrained == ""
    assert parts["merl"].encoder.size == ("resnet101" if argument else "tiny")
    assert parts["elf_base"].ecg_input.vectors == 1 < parts["mtae"].ecg_input.vectors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"headline.systems": ("tokens", "bert")}, r"headline\.systems: \['bert'\] found"),
        ({"headline.seeds": (1, 1)}, "none twice expected"),
        ({"train.valid_answers": 0}, r"train\.valid_answers: 0 found"),
        ({"data.ecg": "zeros"}, "the stage sets them"),
        ({"encoder.pretrained": "random"}, r"encoder\.pretrained: 'random' found, '' expected"),
        ({"eval.checkpoint": "start"}, r"eval\.checkpoint: 'start' found, 'last' or 'best' expected"),
        ({"signal.segment_length": 509}, "a divisor of signal.segment_length = 509 expected"),
        ({"headline.seeds": (2**32,)}, "seed: 4294967296 found"),
        ({"eval.seeds": (0, 1), "eval.temperature": 1.0}, "seeds instead"),
    ],
)
def test_a_headline_that_cannot_be_is_refused_before_any_work(tmp_path, changes, message):
    config = experiment.get_config()
    for name, value in changes.items():
        part, field = name.split(".")
        config[part][field] = value
    with pytest.raises(ConfigError, match=message):
        run(config, tmp_path / "run", ["prepare", "headline"])
    assert not (tmp_path / "run").exists()


def test_trainings_are_joined_by_seed_and_compared_in_pairs(tmp_path):
    first = {seed: make_run(tmp_path / f"a{seed}", share(correct)) for seed, correct in ((3, 0.2), (4, 0.4))}
    second = {seed: make_run(tmp_path / f"b{seed}", share(correct, range(8, 44))) for seed, correct in ((3, 0.6), (4, 1.0))}
    both = compared_all([joined("a", first), joined("b", second)])
    each = [compared([first[seed], second[seed]])["runs"] for seed in (3, 4)]
    for name, folders in (("a", first), ("b", second)):
        scores = [runs[folders[seed]]["scores"]["exact_match"] for seed, runs in zip((3, 4), each)]
        assert both["runs"][name]["scores"]["exact_match"] == pytest.approx(sum(scores) / 2)
    gains = [runs[second[seed]]["differences"]["exact_match"]["mean"] for seed, runs in zip((3, 4), each)]
    assert both["runs"]["b"]["differences"]["exact_match"]["mean"] == pytest.approx(sum(gains) / 2)
    with pytest.raises(ScoresError, match="one expected: the training has its own"):
        joined("c", {0: make_run(tmp_path / "c", share(0.5), seeds=(0, 1))})


def test_a_curve_begins_with_the_first_stage_and_ends_with_all_costs(tmp_path):
    workdir = Workdir(tmp_path)
    tokens = {"ecg": 70, "text": 20, "padding": 10}
    seen = {"ecgs": 9, "patients": 4, "sequences": 40, "tokens": tokens, "flops": 90.0, "ecg_input_flops": 10.0}
    spent = {"device_s": 1.0, "peak_memory": 5, "energy_j": {"cpu": 2.0}}
    encoder, stages = workdir.pretrain.train_marker, {}
    for name, marker in (("train", workdir.train_marker), ("pretrain", encoder), ("reports", workdir.reports_marker)):
        stages[name] = Stage(name, marker, {}, "")
        marker.parent.mkdir(parents=True)
        stages[name].finish([])
    costs = {
        "train": {"wall_s": 8.0, "cpu_s": 9.0, "seen": seen, **spent},
        "pretrain": {"wall_s": 3.0, "cpu_s": 3.0, "seen": {"ecgs": 12, "patients": 3, "examples": 30, "flops": 48.0}, **spent},
        "reports": {"wall_s": 1.0, "cpu_s": 1.0, "seen": {"texts": 5, "flops": 2.0}, **spent},
    }
    ledger = {name: entry | {"settings": stages[name].digest()} for name, entry in costs.items()}
    ledger["signals"] = {"wall_s": 100.0, "cpu_s": 100.0, **spent}  # cleaning, the same for all
    other = ledger["train"] | {"wall_s": 50.0, "settings": "of another training, after which this one was taken back"}
    ledger |= {"train": other, "with other settings": {"train": {stages["train"].digest(): ledger["train"]}}}
    workdir.cost.write_text(json.dumps(ledger))
    lines = [{"step": 1}, {"step": 2, "valid_rouge_l": 0.2}, {"step": 4, "valid_rouge_l": 0.6}]
    workdir.metrics.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    cost = cost_of(workdir, None)
    assert (cost["ecgs"], cost["patients"], cost["seconds"], cost["cpu_s"], cost["energy_j"]) == (12, 4, 12.0, 13.0, 6.0)
    points = curve(workdir, cost, "rouge_l")
    assert points == [Point(0.2, 20.0, 100.0, 8.0), Point(0.6, 40.0, 150.0, 12.0)]
    assert cost_to_reach(points, 0.4) == pytest.approx(Point(0.4, 30.0, 125.0, 10.0))
    assert cost_to_reach(points, 0.1) == points[0] and cost_to_reach(points, 0.7) is None
    ended = [Point(0.4, 20.0, 200.0, 10.0)]  # early, by train.patience: it stays at that
    assert mean_curve([points, ended]) == [Point(pytest.approx(0.3), 20.0, 150.0, 9.0), Point(0.5, 30.0, 175.0, 11.0)]
    workdir.metrics.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(ScoresError, match="no rouge_l of a validation"):
        curve(workdir, cost, "rouge_l")
    workdir.cost.write_text("half a le")
    with pytest.raises(ScoresError, match=r"no costs of the stage 'train' there, .*; remove '.*checkpoints'"):
        cost_of(workdir, None)
