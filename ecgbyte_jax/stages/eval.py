"""Stage `eval`: from a checkpoint on disk to generations, scores and the table that compares them with baselines."""

import json
from collections.abc import Container
from dataclasses import asdict
from pathlib import Path

import jax

from ecgbyte_jax.corpora.read import LABELLED, REPORTS, parts_among
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.evaluate.answers import Answerer
from ecgbyte_jax.evaluate.generations import read_rows
from ecgbyte_jax.evaluate.labels.candidates import Asked, choose_asked
from ecgbyte_jax.evaluate.labels.probabilities import read_probabilities, write_probabilities
from ecgbyte_jax.evaluate.labels.scores import check_scikit_learn, make_label_results
from ecgbyte_jax.evaluate.metrics import Scorers
from ecgbyte_jax.evaluate.questions import Item, choose
from ecgbyte_jax.evaluate.results import MODEL, make_results
from ecgbyte_jax.export.form import check_form
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.model.sharding import check_batch_size, make_mesh
from ecgbyte_jax.pretrain.clean import clean_signals
from ecgbyte_jax.run.console import banner, console, number_table
from ecgbyte_jax.run.cost import counted
from ecgbyte_jax.run.processes import agree, leads, wait_for_all
from ecgbyte_jax.run.stage import Stage, outputs_digest, repair
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.train.restore import restore_model
from ecgbyte_jax.train.vectors import vectors_of


def evaluate(settings: Settings, workdir: Workdir) -> None:
    """Runs the stage where it is not done, on the checkpoint asked for, and shows the table of scores.

    Answers that are there whole are kept, also where only the scoring changed; answers of other settings are moved aside.
    """
    if settings.eval.labels:
        check_scikit_learn()
    answers = lineage.answered(settings, workdir)
    if leads():
        repair(Workdir(workdir.root).evaluation, workdir.answers_marker.name)
        if answers.take_back(workdir.evaluation):
            _keep_settings(settings, workdir)
    wait_for_all("earlier answers are back in their place")
    labels = lineage.labelled(settings, workdir, answers) if settings.eval.labels else None
    scores = lineage.scored(settings, workdir, answers)
    if agree(answers.finished() and (labels is None or labels.finished()) and scores.finished()):
        console.print("eval: settings and inputs have not changed, nothing to do")
    else:
        # Before hours of work: the folder of a model may be wrong.
        scorers = Scorers.load(settings.eval.bertscore_model) if leads() else Scorers()
        name = f"eval/{workdir.evaluation_name}".rstrip("/")
        with counted(workdir, name, scores, jax.devices(), keep=leads()):
            answered, labelled = agree(answers.finished()), agree(labels is None or labels.finished())
            if not (answered and labelled):
                _ask(settings, workdir, None if answered else answers, None if labelled else labels)
            if leads():
                _score(settings, workdir, scores, scorers)
        wait_for_all("scores")
    if leads():
        _show(workdir)


def _ask(settings: Settings, workdir: Workdir, answers: Stage | None, labels: Stage | None) -> None:
    """Writes what is not None: the answers, the probabilities of candidates."""
    check_form(Path(settings.eval.checkpoint), settings)
    mesh = make_mesh(**asdict(settings.mesh))
    check_batch_size(mesh, settings.eval.batch_size, "eval.batch_size")
    if vectors_of(settings):
        clean_signals(settings, workdir)
    prepared, tokenizer = load_prepared(workdir, vectors_of(settings)), ECGTokenizer.load(workdir.ecg_tokenizer)
    items = choose(settings, prepared) if answers else []
    asked = choose_asked(settings, prepared, parts_among(settings.data, LABELLED)) if labels else []
    with jax.set_mesh(mesh):
        model, step = restore_model(settings, workdir, prepared, mesh, settings.eval.checkpoint)
        answerer = Answerer(settings, prepared, tokenizer, model, mesh)
        if answers:
            _answer(answerer, items, workdir, answers, step)
        if labels:
            _label(answerer, asked, workdir, labels)


def _answer(answerer: Answerer, items: list[Item], workdir: Workdir, stage: Stage, step: int | None) -> None:
    """Writes `generations.jsonl`, going on from what an earlier run of the same settings left."""
    if leads():
        if not stage.begun():
            stage.move_aside(workdir.evaluation)
        stage.begin()
        settings = answerer.settings.eval
        about = {"split": settings.split, "checkpoint": settings.checkpoint, "checkpoint_step": step}
        about["ecg"] = settings.ecg
        about["prepared"] = outputs_digest(workdir.prepare_marker)
        write_whole(workdir.evaluated, [json.dumps(about).encode()])
    answerer.write(items, workdir.generations)
    if leads():
        stage.finish([workdir.generations, workdir.evaluated])


def _label(answerer: Answerer, asked: list[Asked], workdir: Workdir, stage: Stage) -> None:
    """Writes `probabilities.jsonl`, going on as `_answer` does; those of other settings follow from these, and are replaced."""
    if leads():
        if not stage.begun():
            workdir.probabilities.unlink(missing_ok=True)
        stage.begin()
    write_probabilities(answerer, asked, workdir.probabilities)
    if leads():
        stage.finish([workdir.probabilities])


def _score(settings: Settings, workdir: Workdir, stage: Stage, scorers: Scorers) -> None:
    stage.begin()
    about = json.loads(workdir.evaluated.read_text())
    resamples, seed = settings.eval.bootstrap, settings.data_seed
    reports = parts_among(settings.data, REPORTS)
    results = about | make_results(read_rows(workdir.generations), scorers, resamples, seed, reports)
    if settings.eval.labels:
        rows = read_probabilities(workdir.probabilities)
        results["labels"] = make_label_results(rows, settings.eval.split, resamples, seed)
    write_whole(workdir.results, [f"{json.dumps(results, indent=1, ensure_ascii=False)}\n".encode()])
    _keep_settings(settings, workdir)
    stage.finish([workdir.results])


def _keep_settings(settings: Settings, workdir: Workdir) -> None:
    """Keeps them in config.json, unless the evaluation has a name: those settings do not become the run's."""
    if not workdir.evaluation_name:
        lineage.keep_settings(settings, workdir, "eval")


def _show(workdir: Workdir) -> None:
    """The verdict, the table of scores, and where the files are."""
    results = json.loads(workdir.results.read_text())
    step = results["checkpoint_step"]
    checkpoint = f"checkpoint {step}" if step is not None else results["checkpoint"]
    title = f"{{split}}: {{sequences}} sequences of {{patients}} patients, {checkpoint}, in %".format(**results)
    number_table(title, "", _table(results), ".1f")
    verdict = results["verdict"]
    metric = verdict["metric"].replace("_", " ")
    each = results["sequences"] / results["by_recording"]["questions"]
    about = f"points of {metric} [95%, by patient], by vote of {each:.1f} segments per recording"
    console.print(f"verdict: {verdict['sentence']}; {verdict['over_commonest']}", style="bold")
    console.print(f"  in {about}")
    if yes_no := results["by_recording"].get("yes_no"):
        title = "{questions} yes/no questions by recording, {yes} of them yes, in %".format(**yes_no)
        number_table(title, "", _percent_or_dash(yes_no["systems"]), ".1f")
    if results["by_attribute"]:
        number_table("the model by attribute, in % ±95%, by patient", "", _by_attribute(results), ".1f")
    if numbers := results["by_recording"].get("numbers"):
        number_table("answers that are numbers, by recording", "", _number_rows(numbers), ".1f")
    if "macro_f1" in results:
        shown = "  ".join(f"{system} {100 * value:.1f}" for system, value in results["macro_f1"].items())
        console.print(f"  macro F1 of closed questions: {shown}")
    for name, part in results.get("benchmark", {}).items():
        if "unscored" in part:
            console.print(f"  {name}: no score of its own here, {part['unscored']}")
        else:
            title = f"{name}, by its own rules: {part['questions']} questions, by recording, in %"
            number_table(title, "", _with_margins(part), ".1f")
    if findings := results.get("findings"):
        number_table("findings in {reports} reports, by recording, in %".format(**findings), "", _with_margins(findings), ".1f")
    if labels := results.get("labels"):
        number_table("{labels} labels, by recording, in %".format(**labels), "", _percent_or_dash(labels["scores"]), ".1f")
        for name, why in labels["missing"].items():
            console.print(f"  no {name.replace('_', ' ')} of labels: {why}")
    if results["empty_answers"]:
        console.print(f"  empty answers, counted as wrong: {results['empty_answers']}")
    for name, why in results["missing"].items():
        console.print(f"  no {name}: {why}")
    made = (workdir.results, workdir.generations, workdir.metrics, workdir.tensorboard, workdir.checkpoints, workdir.shards)
    made += (workdir.tokenizers, workdir.config)
    banner("written", {str(path.relative_to(workdir.root)): path for path in made if path.exists()})


def _by_attribute(results: dict) -> dict[str, dict[str, str]]:
    """A row for each attribute, with the number of its sequences, in %."""
    rows: dict[str, dict[str, str]] = {}
    for kind, scores in results["by_attribute"].items():
        bounds = {name: pair for name, pair in results["by_attribute_intervals"][kind].items() if name not in results["hidden"]}
        rows[f"{kind} ({scores['sequences']})"] = {
            name.replace("_", " "): "-" if name in scores["hidden"] else f"{100 * scores[name]:.1f} ±{50 * (high - low):.1f}"
            for name, (low, high) in bounds.items()
        }
    return rows


def _number_rows(numbers: dict[str, dict]) -> dict[str, dict[str, float | str]]:
    """A row for each attribute and system: the error in its unit, the shares of near answers in %, how many are no number."""
    rows = {}
    for attribute, part in numbers.items():
        for system, scores in part["systems"].items():
            error = scores["mean_absolute_error"]
            model = f"{attribute} in {part['unit']} ({part['questions']})"
            rows[model if system == MODEL else f"  {attribute}, {system}"] = {
                "mean absolute error": "-" if error is None else f"{error:.3g}",
                "within 5%": 100 * scores["within_5"],
                "within 10%": 100 * scores["within_10"],
                "no number": f"{scores['unparsed']:g}",
            }
    return rows


def _percent_or_dash(systems: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float | str]]:
    """A row for each system in %; "-" where a score is not defined, as of yes/no questions with one of the answers alone."""
    return {
        system: {name.replace("_", " "): "-" if value is None else 100 * value for name, value in scores.items()}
        for system, scores in systems.items()
    }


def _with_margins(part: dict) -> dict[str, dict[str, float | str]]:
    """A row for each system in %, with half the model's intervals below its own."""
    (model, *others), bounds = _percent_or_dash(part["scores"]).items(), part["intervals"][MODEL]
    margins = {name.replace("_", " "): f"±{50 * (pair[1] - pair[0]):.1f}" if pair else "-" for name, pair in bounds.items()}
    return dict([model, ("  95%, by patient", margins), *others])


def _table(results: dict) -> dict[str, dict[str, float | str]]:
    """Rows of numbers in %: the model with half its intervals, controls, all of them by recording, perturbed signals, kinds."""
    names = [name for name in results["scores"][MODEL] if name not in results["hidden"]]

    def percent(scores: dict[str, float], hidden: Container[str] = ()) -> dict[str, float | str]:
        return {name.replace("_", " "): "-" if name in hidden else 100 * scores[name] for name in names}

    def margins(intervals: dict[str, list[float]]) -> dict[str, str]:
        return {name.replace("_", " "): f"±{50 * (high - low):.1f}" for name in names for low, high in [intervals[name]]}

    rows: dict[str, dict] = {MODEL: percent(results["scores"][MODEL])}
    rows["  95%, by patient"] = margins(results["intervals"][MODEL])
    if "over_seeds" in results:
        seeds = results["over_seeds"][MODEL]
        rows["  std over seeds"] = percent({name: spread["std"] for name, spread in seeds.items()})
        rows["  95% t, over seeds"] = margins({name: spread["t95"] for name, spread in seeds.items()})
    rows |= {system: percent(scores) for system, scores in results["scores"].items() if system != MODEL}
    voted = results["by_recording"]
    if voted["questions"] < results["sequences"]:  # else they are the same
        rows[f"by recording ({voted['questions']})"] = percent(voted["scores"][MODEL])
        rows["  its 95%, by patient"] = margins(voted["intervals"][MODEL])
        rows |= {f"  {system}": percent(scores) for system, scores in voted["scores"].items() if system != MODEL}
    for name, scores in results["perturbed"].items():
        rows[f"with {name}"] = percent(scores)
        rows[f"  95%, by patient, {name}"] = margins(results["perturbed_intervals"][name])
    for group in ("by_question_type", "by_corpus"):
        for kind, scores in results.get(group, {}).items():
            rows[f"{kind} ({scores['sequences']})"] = percent(scores, scores["hidden"])
    return rows
