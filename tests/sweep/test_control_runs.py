import json
import shutil

import pytest

from ecgbyte_jax.errors import ConfigError, ReportError, SettingsError
from ecgbyte_jax.report.folder import read_evaluation
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import SHOWN, Settings
from ecgbyte_jax.stages.pipeline import run
from ecgbyte_jax.sweep.controls import _control, _sentence


@pytest.mark.slow
def test_all_pairs_are_trained_and_asked_and_a_second_command_does_nothing(config, prepared, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(prepared, folder)
    run(config, folder, ["train", "eval"])
    own = json.loads((folder / "eval/results.json").read_text())
    run(config, folder, ["controls"])
    table = json.loads((folder / "controls.json").read_text())
    pairs = {(pair["trained_with"], pair["asked_with"]): pair for pair in table["pairs"]}
    assert set(pairs) == {(trained, asked) for trained in SHOWN for asked in SHOWN}
    assert pairs["own", "own"]["scores"]["exact_match"] == own["scores"]["model"]["exact_match"]
    assert "differences" not in pairs["own", "own"] and "differences" in pairs["none", "none"]
    results = Workdir(folder / "controls/none", "ecg_zeros").results
    assert json.loads(results.read_text())["ecg"] == "zeros"
    with pytest.raises(ReportError, match="asked with ecg 'zeros'"):
        read_evaluation(results, results.with_name("generations.jsonl"))
    losses = {
        shown: (folder / part / "metrics.jsonl").read_text()
        for shown, part in {"own": ".", **{shown: f"controls/{shown}" for shown in SHOWN[1:]}}.items()
    }
    assert len(set(losses.values())) == len(SHOWN)
    capsys.readouterr()
    moved = folder.rename(tmp_path / "moved")
    run(config, moved, ["controls"])
    assert capsys.readouterr().out.count("have not changed, nothing to do") == len(SHOWN) + len(SHOWN) ** 2


def test_a_control_is_not_taken_for_the_experiment(config, prepared, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(prepared, folder)
    config.data.ecg = "zeros"
    with pytest.raises(ConfigError, match=r"controls: data\.ecg and eval\.ecg 'own'"):
        run(config, folder, ["controls"])


def test_the_clean_signals_and_the_encoder_of_a_run_are_its_controls_too(tmp_path):
    """A control would else clean all recordings for itself, and find no encoder."""
    workdir = Workdir(tmp_path / "run")
    assert not _control(workdir, "none").signals.is_symlink()  # a dangling link would be refused later
    for folder in (workdir.signals, workdir.pretrain.root):
        folder.mkdir(parents=True)
    for _ in range(2):
        for shown in ("none", "zeros"):
            control = _control(workdir, shown)
            assert control.signals.samefile(workdir.signals) and control.pretrain.root.samefile(workdir.pretrain.root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ecg": "zeros"}, "eval.ecg: 'zeros' found without a name"),
        ({"ecg": "none", "name": "n", "perturb": ("noise",)}, "perturb: .* found with ecg 'none'"),
        ({"ecg": "noise", "name": "n"}, "'own', 'shuffled', 'zeros'"),
    ],
)
def test_controls_of_an_evaluation_that_cannot_be_are_refused(config, changes, message):
    config.eval.update(changes)
    with pytest.raises(SettingsError, match=message):
        Settings.of(config)


@pytest.mark.parametrize(
    ("mean", "interval", "patients", "said"),
    [
        (-0.28, [-0.34, -0.2], 40, "worth +28.0 [20.0, 34.0] points over"),
        (0.1, [0.02, 0.15], 40, "never had an ECG answers better: -10.0 [-15.0, -2.0]"),
        (-0.01, [-0.05, 0.02], 40, "no evidence that the ECGs are worth anything: +1.0 [-2.0, 5.0]"),
        (-0.28, [-0.34, -0.2], 4, "too few patients (4)"),
    ],
)
def test_the_verdict_says_what_the_ecgs_are_worth(mean, interval, patients, said):
    assert said in _sentence({"mean": mean, "interval": interval}, patients)
