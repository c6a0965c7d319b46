"""Stage `eval`: from a checkpoint on disk to generations, scores and the table that compares them with baselines."""

import json
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ScoresError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.run import prepare, stages, train
from ecgbyte_jax.run.answers import Answerer, choose
from ecgbyte_jax.run.corpus import Paths
from ecgbyte_jax.run.distributed import agree, leads, wait_for_all
from ecgbyte_jax.run.generations import read_rows
from ecgbyte_jax.run.logbook import banner, console, number_table
from ecgbyte_jax.run.meteor import find_wordnet
from ecgbyte_jax.run.metrics import Scorers
from ecgbyte_jax.run.restore import restore_model
from ecgbyte_jax.run.results import MODEL, make_results
from ecgbyte_jax.run.sharding import check_batch_size, make_mesh

_VERSION = 4  # of this stage's outputs
_SCORING = ("bootstrap", "bertscore_model")  # settings that the answers do not depend on


def evaluate(config: ConfigDict, workdir: Path) -> None:
    """Runs the stage where it is not done, on the checkpoint asked for, and shows the table of scores.

    Answers that are there whole are kept, also where only the scoring changed; answers of other settings are moved aside.
    """
    answers = _describe_answers(config, workdir)
    scores = stages.Stage("eval", workdir / "eval" / "stage.json", _scoring(config), answers.digest())
    if agree(answers.finished() and scores.finished()):
        console.print("eval: settings and inputs have not changed, nothing to do")
    else:
        # Before hours of work: the folder of a model may be wrong.
        scorers = Scorers.load(config.eval.bertscore_model) if leads() else Scorers()
        if not agree(answers.finished()):
            _answer(config, workdir, answers)
        if leads():
            _score(config, workdir, scores, scorers)
        wait_for_all("scores")
    if leads():
        _show(workdir)


def _describe_answers(config: ConfigDict, workdir: Path) -> stages.Stage:
    """The stage's first half; its inputs are the training's outputs, or the prepared data and a folder's weights."""
    which = config.eval.checkpoint
    if which in ("last", "best") or which.isdecimal():
        inputs = train.describe(config, workdir).require()
    else:
        marker = Paths.of(config, workdir).marker
        prepared = stages.Stage.on_disk("prepare", marker, prepare.settings(config)).require()
        folder = Path(which)
        inputs = stages.digest([prepared, stages.fingerprint(sorted(p for p in folder.iterdir() if p.is_file()), folder)])
    settings = {name: value for name, value in config.eval.to_dict().items() if name not in _SCORING}
    settings = {"version": _VERSION, "seed": config.seed, "eval": settings}
    return stages.Stage("answers", workdir / "eval" / "answers.json", settings, inputs)


def _scoring(config: ConfigDict) -> dict:
    """What the scores depend on, beside the answers; WordNet may have come since."""
    try:
        wordnet = bool(find_wordnet())
    except ScoresError:
        wordnet = False
    return {"version": _VERSION, "wordnet": wordnet, **{name: config.eval[name] for name in _SCORING}}


def _answer(config: ConfigDict, workdir: Path, stage: stages.Stage) -> None:
    """Writes `generations.jsonl`, going on from what an earlier run of the same settings left."""
    mesh = make_mesh(**config.mesh.to_dict())
    check_batch_size(mesh, config.eval.batch_size, "eval.batch_size")
    prepared, tokenizer = prepare.load_prepared(config, workdir), ECGTokenizer.load(Paths.of(config, workdir).ecg_tokenizer)
    items = choose(config, prepared)
    generations, about = workdir / "eval" / "generations.jsonl", workdir / "eval" / "checkpoint.json"
    with jax.set_mesh(mesh):
        model, step = restore_model(config, workdir, prepared, mesh, config.eval.checkpoint)
        if leads():
            if not stage.begun():
                stage.move_aside(workdir, "eval")
            stage.begin()
            found = {"split": config.eval.split, "checkpoint": config.eval.checkpoint, "checkpoint_step": step}
            write_whole(about, [json.dumps(found).encode()])
        Answerer(config, prepared, tokenizer, model, mesh).write(items, generations)
    if leads():
        stage.finish([generations, about])


def _score(config: ConfigDict, workdir: Path, stage: stages.Stage, scorers: Scorers) -> None:
    stage.begin()
    folder = workdir / "eval"
    about = json.loads((folder / "checkpoint.json").read_text())
    found = make_results(read_rows(folder / "generations.jsonl"), scorers, config.eval.bootstrap, config.seed)
    write_whole(folder / "results.json", [f"{json.dumps(about | found, indent=1, ensure_ascii=False)}\n".encode()])
    stages.keep_settings(config, workdir, "eval")
    stage.finish([folder / "results.json"])


def _show(workdir: Path) -> None:
    """The table of scores, and where everything lies."""
    results = json.loads((workdir / "eval" / "results.json").read_text())
    step = results["checkpoint_step"]
    checkpoint = f"checkpoint {step}" if step is not None else results["checkpoint"]
    found = f"{{split}}: {{sequences}} sequences of {{patients}} patients, {checkpoint}, in %".format(**results)
    number_table(found, "", _table(results), ".1f")
    if "macro_f1" in results:
        shown = "  ".join(f"{system} {100 * value:.1f}" for system, value in results["macro_f1"].items())
        console.print(f"  macro F1 of closed questions: {shown}", markup=False)
    if results["empty_answers"]:
        console.print(f"  empty answers, counted as wrong: {results['empty_answers']}")
    for name, why in results["missing"].items():
        console.print(f"  no {name}: {why}", markup=False)
    names = (
        "eval/results.json",
        "eval/generations.jsonl",
        "metrics.jsonl",
        "checkpoints",
        "shards",
        "tokenizer",
        "config.json",
    )
    banner("written", {name: workdir / name for name in names})


def _table(results: dict) -> dict[str, dict[str, float | str]]:
    """Rows of numbers in %: the model with half its intervals, baselines, perturbed signals, kinds of questions."""

    def percent(scores: dict[str, float]) -> dict[str, float]:
        return {name.replace("_", " "): 100 * value for name, value in scores.items() if name != "sequences"}

    def margins(intervals: dict[str, list[float]]) -> dict[str, str]:
        return {name.replace("_", " "): f"±{50 * (high - low):.1f}" for name, (low, high) in intervals.items()}

    rows = {MODEL: percent(results["scores"][MODEL]), "  95%, by patient": margins(results["intervals"][MODEL])}
    if "over_seeds" in results:
        seeds = results["over_seeds"][MODEL]
        rows["  std over seeds"] = percent({name: found["std"] for name, found in seeds.items()})
        rows["  95% t, over seeds"] = margins({name: found["t95"] for name, found in seeds.items()})
    rows |= {system: percent(scores) for system, scores in results["scores"].items() if system != MODEL}
    rows |= {f"with {name}": percent(scores) for name, scores in results["perturbed"].items()}
    return rows | {f"{kind} ({found['sequences']})": percent(found) for kind, found in results["by_question_type"].items()}
