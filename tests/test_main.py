"""main.py as a user runs it: in processes of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_jax.main import _split
from ecgbyte_jax.setting_names import setting_fields
from ecgbyte_jax.stages.pipeline import STAGES

ROOT = Path(__file__).parents[1]
SMALL = [
    "data.synthetic_records=40",
    "data.max_segments=1",
    "tokenizer.num_merges=100",
    "model.width=32",
    "model.head_dim=16",
    "model.mlp_width=64",
    "train.batch_size=8",
    "train.epochs=0.5",
    "eval.batch_size=8",
    "eval.max_new_tokens=8",
]


def main(*arguments: str, devices: int = 1) -> subprocess.CompletedProcess:
    """`python main.py ...` on so many simulated devices."""
    env = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [sys.executable, "main.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def small_demo(workdir: Path, *more: str, devices: int = 1) -> subprocess.CompletedProcess:
    settings = [f"--config.{setting}" for setting in SMALL]
    return main("--config=experiments/demo.py", f"--workdir={workdir}", *settings, *more, devices=devices)


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]


def test_a_run_leaves_everything_where_it_is_looked_for(finished):
    workdir, _ = finished
    for name in (
        "config.json", "tokenizer/ecg_tokenizer.json", "shards/manifest.json", "checkpoints", "metrics.jsonl",
        "eval/results.json", "eval/generations.jsonl", "prepare/quarantine.jsonl", "report.html",
    ):  # fmt: skip
        assert (workdir / name).exists(), name
    assert json.loads((workdir / "config.json").read_text())["model"]["width"] == 32


def test_a_run_shows_banner_counts_scores_and_paths(finished):
    workdir, shown = finished
    for words in (
        "devices",
        "mesh",
        "trained, 0 frozen",
        "set aside",
        "validation loss",
        "commonest answer",
        "another patient",
        "exact match",
    ):
        assert words in shown, words
    assert str(workdir) in shown


def test_results_follow_from_the_generations(finished):
    workdir, _ = finished
    results = json.loads((workdir / "eval/results.json").read_text())
    rows = [json.loads(line) for line in (workdir / "eval/generations.jsonl").open()]
    assert results["sequences"] == len(rows) == 16
    for system, field in (
        ("model", "answer"),
        ("another patient's ECG", "answer_to_other_ecg"),
        ("commonest answer", "commonest_answer"),
    ):
        share = np.mean([row[field] == row["reference"] for row in rows])
        assert results["scores"][system]["exact_match"] == pytest.approx(share)
    train = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert results["checkpoint_step"] == train[-1]["step"]


def test_another_ecg_is_another_patient_s(finished):
    workdir, _ = finished
    rows = [json.loads(line) for line in (workdir / "eval/generations.jsonl").open()]
    patient = {row["id"]: row["patient"] for row in rows}
    assert all(patient[row["other_ecg"]] != row["patient"] for row in rows)


@pytest.mark.slow
def test_the_same_command_again_does_no_work(finished):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    again = small_demo(workdir)
    assert again.returncode == 0 and again.stdout.count("nothing to do") == 4 and "exact match" in again.stdout
    assert before == {path: path.stat().st_mtime_ns for path in before}


@pytest.mark.slow
def test_eval_alone_in_a_new_process_gives_the_same_files(finished, tmp_path):
    workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "w")
    shutil.rmtree(tmp_path / "w/eval")
    alone = small_demo(tmp_path / "w", "--stage=eval")
    assert alone.returncode == 0, alone.stderr
    for name in ("results.json", "generations.jsonl"):
        assert (tmp_path / "w/eval" / name).read_bytes() == (workdir / "eval" / name).read_bytes()


@pytest.mark.slow  # and five meshes in test_sharding.py
def test_losses_on_8_devices_are_those_on_1(finished, tmp_path):
    workdir, _ = finished
    eight = small_demo(tmp_path / "w", "--stage=prepare,train", devices=8)
    assert eight.returncode == 0 and "8 x cpu" in eight.stdout, eight.stderr
    np.testing.assert_allclose(losses(tmp_path / "w"), losses(workdir), atol=1e-4)


@pytest.mark.slow
def test_eval_refuses_settings_that_the_checkpoint_was_not_trained_with(finished):
    workdir, _ = finished
    other = small_demo(workdir, "--stage=eval", "--config.model.layers=3")
    assert other.returncode == 1 and "model.layers: 2 -> 3" in other.stderr and "Traceback" not in other.stderr


def test_without_a_workdir_the_run_goes_to_one_named_after_the_experiment():
    done = main("--config=experiments/ptb.py:tiny", "--config.data.root=nowhere", "--stage=eval")
    assert done.stderr.startswith("error: --workdir: no folder 'runs/ptb_tiny'")


@pytest.mark.slow
def test_a_tilde_is_the_home_folder_in_flags_and_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text("from experiments.demo import get_config\n")
    done = main(
        "--config=~/mine.py", "--workdir=~/w", "--stage=prepare", "--config.prepare.cache=~/cache",
        *(f"--config.{setting}" for setting in SMALL),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w/shards/manifest.json").is_file() and (tmp_path / "cache/symbols").is_dir()
    done = main("--stage=compare", "--runs=~/w,~/v", "--out=~/scores/compare.json")
    assert done.stderr.startswith(f"error: {tmp_path}/w/eval/results.json")
    done = main("--config=~/mine.py", "--workdir=~/w", "--stage=ask", "--record=~/r.csv,b", "--picture=~/p.svg")
    assert done.returncode == 1 and f"{tmp_path}/r.csv" in done.stderr
    assert not (ROOT / "~").exists()


DEMO = "--config=experiments/demo.py"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([DEMO, "--config.model.widht=3"], "--config.model.widht is not a setting; did you mean model.width"),
        ([DEMO, "--config.lr=1"], "--config.lr is not a setting; did you mean optim.peak_rate or pretrain_optim.peak_rate?"),
        ([DEMO, "--config.optim=1"], "--config.optim is a part, not a setting; its settings are optim.preset, "),
        ([DEMO, "--config.model.width=wide"], "model.width: 'wide' found, a value of type int, at least 1 expected"),
        ([DEMO, "--config.data.packing=maybe"], "data.packing: 'maybe' found, a value of type bool expected"),
        ([DEMO, "--run=x"], "--config: found with --run"),
        (["--run=nowhere"], "--run: no file 'nowhere/config.json', in which a run keeps its settings"),
        (["--config=nowhere/config.json"], "nowhere/config.json: No such file or directory; the config.json of a run expected"),
        (["--stage=list", "--runs=nowhere"], "--runs: no folder 'nowhere'"),
        ([DEMO, "--config.train.batch_size=0"], "train.batch_size: 0 found, at least 1 expected"),
        ([DEMO, "--config.optim.preset=adam"], "optim.preset: 'adam' found, one of ('ecg_byte', 'adamw') expected"),
        ([DEMO, "--config.lora.rank=2", "--config.lora.targets=('q','z')"], "lora.targets"),
        (
            [DEMO, "--config.data.question_types=('single-verfy',)"],
            "data.question_types: ('single-verfy',) found, some of ('single-verify', ",
        ),
        (
            [DEMO, "--config.data.synthetic_records=40", "--config.data.question_types=('comparison_consecutive-query',)"],
            "data.question_types: ('comparison_consecutive-query',) found, one of ",
        ),
        ([DEMO, "--stage=trian"], "--stage: ['trian'] found, any of ['tokenizer', 'prepare', "),
        ([DEMO, "--stage=eval"], "/w', which --stage=eval reads"),
        (["--config=ecgbyte:nothing"], "no experiment 'nothing' in this package; there are code15, cpsc, csn, demo, "),
        (["init", "more"], "unknown argument 'init'"),
        ([DEMO + ":huge"], "argument 'huge' found, 'small' or none expected"),
        (["--config=experiments/nothing.py"], "'experiments/nothing.py'; experiments there: code15.py, cpsc.py, csn.py"),
        ([DEMO, "--wrokdir=x"], "wrokdir"),
        ([DEMO, "data"], "unknown argument 'data'"),
        ([], "--config=experiments/NAME.py or --run=DIR is needed"),
        (["--stage=compare"], "--runs: [] found, two run folders or more expected"),
        (["--stage=compare", "--runs=nowhere,neither"], "nowhere/eval/results.json: no such file; 'nowhere' has no evaluation"),
        ([DEMO, "--profile_steps=5,3"], "--profile_steps=5,3 found, the first and the last step expected"),
        ([DEMO, "--runs=a,b"], "--runs is for --stage=compare or --stage=list alone"),
        ([DEMO, "--config.eval.seeds=(0,1)"], "eval.seeds: (0, 1) found with temperature 0"),
        (
            ["--config=experiments/ptb.py:tiny", "--config.data.root=nowhere"],
            "no ptbxl_database.csv in 'nowhere'. PTB-XL 1.0.3",
        ),
        (["--config=experiments/ptb.py:tiny", "--config.data.root=no\nwhere\x1b"], r"no ptbxl_database.csv in 'no\nwhere\x1b'"),
        (["--config=experiments/ecg_qa_ptb.py:tiny", "--config.data.ecgqa_root=nowhere"], "no folder 'nowhere/ptbxl/"),
    ],
)
def test_a_mistake_ends_in_one_clear_line(tmp_path, arguments, message):
    done = main(*arguments, f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.train.batchsize = 64", "line 4: 'train.batchsize' is not a setting; did you mean train.batch_size"),
        ("config.trian.epochs = 64", "line 4: 'trian.epochs' is not a setting; did you mean train.epochs"),
        ("import math; math.nothing", "line 4: AttributeError: module 'math' has no attribute 'nothing'"),
    ],
)
def test_a_mistake_in_an_experiment_is_named_with_its_line(tmp_path, line, message):
    start = "from experiments.common import get_defaults\ndef get_config():\n    config = get_defaults()\n"
    (tmp_path / "mine.py").write_text(f"{start}    {line}\n    return config\n")
    done = main(f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


def test_an_experiment_of_the_package_is_found_by_name_and_goes_to_its_own_folder():
    done = main("--config=ecgbyte:ptb:tiny", "--config.data.root=nowhere", "--stage=eval")
    assert done.stderr.startswith("error: --workdir: no folder 'runs/ptb_tiny'")


def test_init_copies_the_experiments_whose_own_common_file_counts(tmp_path):
    def ecgbyte(*arguments: str) -> subprocess.CompletedProcess:
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, ROOT / "main.py", *arguments], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    done = ecgbyte("init")
    assert done.returncode == 0 and "demo" in done.stdout and "common" not in done.stdout, done.stderr
    assert "experiments/ is there already" in ecgbyte("init").stderr
    (tmp_path / "experiments/common.py").write_text(
        "def get_defaults(): raise ValueError('mine')\ndef parse_argument(*_): pass\n"
    )
    for given in (["--config=experiments/demo.py"], ["--config", "experiments/demo.py"]):
        assert "mine" in ecgbyte(*given).stderr
    assert "mine" not in ecgbyte("--config=ecgbyte:demo", "--stage=eval").stderr


def test_help_names_every_stage_and_setting_within_80_columns_and_without_jax():
    check = "import sys, runpy; sys.argv = ['main.py', '--help']\ntry: runpy.run_path('main.py', run_name='__main__')\n"
    check += "except SystemExit as end: assert not end.code and 'jax' not in sys.modules"
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for name in (*setting_fields(), *STAGES, "compare", "list", "--log_every", "--run", "signal.notches=(50.0, 60.0)"):
        assert name in done.stdout, name
    assert "lora: The low-rank paths (Hu et al. 2021) that are trained" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_python_without_the_packages_is_one_line():
    done = subprocess.run([sys.executable, "-S", "main.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and "has no module 'absl'" in done.stderr and ".venv/bin/activate" in done.stderr


@pytest.mark.slow
def test_a_run_that_was_moved_without_its_data_is_evaluated_by_its_folder_alone(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "w")
    for name in ("synthetic", "cache", "eval"):
        shutil.rmtree(tmp_path / "w" / name)
    done = main(f"--run={tmp_path / 'w'}", "--stage=eval,report,export")
    assert done.returncode == 0, done.stderr
    for name in ("results.json", "generations.jsonl"):
        assert (tmp_path / "w/eval" / name).read_bytes() == (finished[0] / "eval" / name).read_bytes()


@pytest.mark.slow
def test_a_run_is_found_finished_by_its_folder_or_its_config_and_overrides_count(finished):
    for given in (f"--run={finished[0]}", f"--config={finished[0] / 'config.json'}"):
        done = main(given, "--stage=train")
        assert done.returncode == 0 and "nothing to do" in done.stdout, done.stderr
    done = main(f"--run={finished[0]}", "--config.model.layers=3", "--stage=eval")
    assert done.returncode == 1 and "model.layers: 2 -> 3" in done.stderr


def test_a_comma_separates_recordings_unless_a_file_has_it_in_its_name(tmp_path):
    for name in ("a,b.csv", "c,d.hea"):
        (tmp_path / name).touch()
    for path in (f"{tmp_path}/a,b.csv", f"{tmp_path}/c,d"):
        assert _split(path) == [path]
    assert _split(f"{tmp_path}/a,b") == [f"{tmp_path}/a", "b"]


def test_help_may_be_cut_by_what_reads_it():
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` after its last line
    done = subprocess.run([sys.executable, "main.py", "--help"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 141 and done.stderr == ""
    narrow = subprocess.run([sys.executable, "main.py", "-h"], cwd=ROOT, env=os.environ | {"COLUMNS": "1"}, capture_output=True)
    assert narrow.returncode == 0


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    done = main("--config=experiments/ptb.py:tiny", "--config.data.root=nowhere", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 1 and not (tmp_path / "w").exists()


SLOW_STAGES = [
    pytest.param(stage, marks=pytest.mark.slow) for stage in ("prepare", "train", "eval", "attend", "report", "export")
]


@pytest.mark.parametrize("stage", ["tokenizer", *SLOW_STAGES])
def test_a_folder_that_may_not_be_written_is_one_line(stage):
    done = main(DEMO, "--workdir=/sys", f"--stage={stage}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: /sys/run.lock: ") and "to go on" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "limit"), [("eval", 5_000), ("report", 100_000), ("export", 50_000)])
def test_a_full_disk_is_one_line(finished, tmp_path, stage, limit):
    """A limit on the size of files simulates the full disk: the same system calls fail."""
    shutil.copytree(finished[0], tmp_path / "w")
    (tmp_path / "w/report_stage.json").unlink()
    if stage == "eval":
        shutil.rmtree(tmp_path / "w/eval")
    script = (
        f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
        "sys.argv = ['main.py', *sys.argv[1:]]; runpy.run_path('main.py', run_name='__main__')"
    )
    arguments = [DEMO, f"--workdir={tmp_path / 'w'}", f"--stage={stage}", *(f"--config.{setting}" for setting in SMALL)]
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert done.returncode == 1 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert str(tmp_path / "w") in errors[0]
