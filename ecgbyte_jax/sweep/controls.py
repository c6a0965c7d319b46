"""Stage `controls`: an experiment trained with, and asked with, its own ECGs, others', zeros and none, in one table.

A model that answers as well without an ECG has read nothing from it, whatever its score.
"""

import json
from contextlib import nullcontext
from dataclasses import replace

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.evaluate.verdict import FEWEST_PATIENTS, Difference
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run.console import banner, console, number_table
from ecgbyte_jax.run.lock import holding
from ecgbyte_jax.run.processes import leads
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import SHOWN, Settings
from ecgbyte_jax.stages.compare import compared
from ecgbyte_jax.stages.eval import evaluate
from ecgbyte_jax.stages.train import train
from ecgbyte_jax.sweep.share import share

_NAMES = {"own": "own ECGs", "shuffled": "other patients'", "zeros": "zeros", "none": "none"}


def controls(settings: Settings, workdir: Workdir) -> None:
    """Trains and evaluates what is missing of all 16 pairs, shows the table and writes controls.json.

    The run itself is the training with its own ECGs; the others are runs in `controls/`, which share its prepared data, clean
    signals and encoder, so that each of them can be looked at, reported on and gone on with like any other. Raises ConfigError
    where the experiment itself is a control.
    """
    if settings.data.ecg != "own" or settings.eval.ecg != "own" or settings.eval.name:
        raise ConfigError(
            "controls: data.ecg and eval.ecg 'own' and no eval.name expected: the stage itself sets them, one after the other"
        )
    pairs: dict[tuple[str, str], Workdir] = {}
    for trained_with in SHOWN:
        folder = workdir if trained_with == "own" else _control(workdir, trained_with)
        with holding(folder.lock) if folder != workdir and leads() else nullcontext():
            part = replace(settings, data=replace(settings.data, ecg=trained_with))
            console.print(f"controls: trained with {_NAMES[trained_with]}, in {folder.root}", style="bold")
            train(part, folder)
            for asked_with in SHOWN:
                named = Workdir(folder.root, "" if asked_with == "own" else f"ecg_{asked_with}")
                asked = {} if asked_with == "own" else {"ecg": asked_with, "name": named.evaluation_name, "perturb": ()}
                evaluate(replace(part, eval=replace(part.eval, **asked)), named)
                pairs[trained_with, asked_with] = named
    if leads():
        _compare(pairs, workdir)


def _control(workdir: Workdir, trained_with: str) -> Workdir:
    return share(workdir, workdir.controls / trained_with, (workdir.signals, workdir.pretrain.root))


def _compare(pairs: dict[tuple[str, str], Workdir], workdir: Workdir) -> None:
    comparison = compared([str(folder.evaluation) for folder in pairs.values()])
    runs = dict(zip(pairs, comparison["runs"].values()))
    metric = json.loads(pairs["own", "own"].results.read_text())["verdict"]["metric"]
    table = {
        f"trained with {_NAMES[trained]}": {_NAMES[asked]: _cell(runs[trained, asked], metric) for asked in SHOWN}
        for trained in SHOWN
    }
    counts = "{sequences} questions of {patients} patients".format(**comparison)
    title = f"{comparison['split']}: {metric.replace('_', ' ')} in %, [95%, by patient], asked with: ({counts})"
    number_table(title, "", table, ".1f")
    console.print(f"  commonest answer {100 * comparison['commonest_answer'][metric]:.1f}")
    sentence = _sentence(runs["none", "none"]["differences"][metric], comparison["patients"])
    console.print(f"verdict: {sentence}", style="bold")
    content = {
        **{name: comparison[name] for name in ("split", "sequences", "patients", "commonest_answer")},
        "metric": metric,
        "verdict": sentence,
        "pairs": [{"trained_with": trained, "asked_with": asked, **runs[trained, asked]} for trained, asked in pairs],
    }
    write_whole(workdir.controls_table, [f"{json.dumps(content, indent=1)}\n".encode()])
    banner("written", {"scores, intervals, differences": workdir.controls_table})


def _cell(run: dict, metric: str) -> str:
    low, high = run["intervals"][metric]
    return f"{100 * run['scores'][metric]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _sentence(without: dict, patients: int) -> str:
    """What the ECGs are worth; without: the difference of the model that never had one from the model that did."""
    low, high = without["interval"]
    gain = Difference(0.0 - without["mean"], [0.0 - high, 0.0 - low])
    if patients < FEWEST_PATIENTS:
        return f"too few patients ({patients}) to tell what the ECGs are worth: {gain}"
    if gain.sign > 0:
        return f"training and asking with ECGs is worth {gain} points over training and asking without any"
    if gain.sign < 0:
        return f"a model that never had an ECG answers better: {gain} points with them"
    return f"no evidence that the ECGs are worth anything: {gain} points over training and asking without any"
