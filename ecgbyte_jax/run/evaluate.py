"""Stage `eval`: from a checkpoint on disk to generations, scores and the table that compares them with baselines."""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import write_whole
from ecgbyte_jax.inputs.batches import open_split, prompt_batch
from ecgbyte_jax.inputs.shards import Sequence
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.run import prepare, stages, train
from ecgbyte_jax.run.logbook import banner, console, number_table, progress
from ecgbyte_jax.run.metrics import score
from ecgbyte_jax.run.sharding import check_batch_size, make_mesh, put_batch

_VERSION = 1  # of this stage's outputs
MODEL, OTHER_ECG, COMMONEST = "model", "another patient's ECG", "commonest answer"


@dataclass(frozen=True)
class Row:
    """One evaluated sequence: the model's answer, its answer to another patient's ECG, the commonest answer."""

    sequence: Sequence
    other: Sequence
    answer: str
    answer_to_other: str
    commonest: str

    def to_json(self) -> str:
        s = self.sequence
        fields = {"id": s.id, "segment": s.segment, "patient": s.patient, "question": s.question, "reference": s.answer}
        answers = {"answer": self.answer, "answer_to_other_ecg": self.answer_to_other, "commonest_answer": self.commonest}
        return json.dumps(
            fields | answers | {"other_ecg": self.other.id, "other_segment": self.other.segment}, ensure_ascii=False
        )


def settings(config: ConfigDict) -> dict:
    """What the scores depend on, beside the trained weights."""
    return {"version": _VERSION, "seed": config.seed, "eval": config.eval.to_dict()}


def evaluate(config: ConfigDict, workdir: Path) -> None:
    """Runs the stage where it is not done, on the newest checkpoint, and shows the table of scores."""
    trained = train.describe(config, workdir).require()
    stage = stages.Stage("eval", workdir / "eval" / "stage.json", settings(config), trained)
    if stage.finished():
        console.print("eval: settings and inputs have not changed, nothing to do")
    else:
        if stage.changes():
            console.print(f"eval: running again, because {stage.changes()}", markup=False)
        mesh = make_mesh(**config.mesh.to_dict())
        check_batch_size(mesh, config.eval.batch_size, "eval.batch_size")
        stage.begin()
        with jax.set_mesh(mesh):
            _evaluate(config, workdir, mesh)
        stage.finish([workdir / "eval" / "results.json", workdir / "eval" / "generations.jsonl"])
    _show(workdir)


def _evaluate(config: ConfigDict, workdir: Path, mesh: Mesh) -> None:
    prepared = prepare.load_prepared(config, workdir)
    sequences = _choose(config, prepared)
    others = _other_patients(sequences, config.seed)
    model, step = train.restore_model(config, workdir, prepared, mesh)
    commonest = prepared.manifest.commonest
    answers = _answer(config, prepared, mesh, model, [(s.ecgs, s.question_ids) for s in sequences], "answer")
    questions = [(o.ecgs, s.question_ids) for s, o in zip(sequences, others)]
    to_others = _answer(config, prepared, mesh, model, questions, "answer to another's ECG")
    rows = [
        Row(s, o, answer, other, commonest.get(s.question, commonest[""]))
        for s, o, answer, other in zip(sequences, others, answers, to_others, strict=True)
    ]
    _write(config, workdir, rows, step)


def _choose(config: ConfigDict, prepared: prepare.Prepared) -> list[Sequence]:
    """The sequences to evaluate, in the shards' order."""
    dataset = open_split(prepared.shards, prepared.manifest, config.eval.split)
    wanted = min(config.eval.max_sequences or len(dataset), len(dataset))
    chosen = np.sort(np.random.default_rng(config.seed).choice(len(dataset), wanted, replace=False))
    return [dataset[int(i)] for i in chosen]


def _other_patients(sequences: list[Sequence], seed: int) -> list[Sequence]:
    """For every sequence one of another patient, drawn at random; raises ConfigError where there is but one patient."""
    patients = np.array([s.patient for s in sequences])
    if len(set(patients)) < 2:
        raise ConfigError("eval.split: sequences of one patient alone found; at least two wanted, to swap their ECGs")
    rng = np.random.default_rng(seed)
    return [sequences[rng.choice(np.flatnonzero(patients != patient))] for patient in patients]


def _answer(
    config: ConfigDict,
    prepared: prepare.Prepared,
    mesh: Mesh,
    model: Decoder,
    prompts: list[tuple[tuple[np.ndarray, ...], np.ndarray]],
    what: str,
) -> list[str]:
    """The texts that the model generates greedily for (ECGs' ids, question ids) prompts."""
    ids, tokenizer, rows = prepared.ids, prepared.text_tokenizer, config.eval.batch_size
    answers: list[str] = []
    with progress(what, len(prompts)) as report:
        for start in range(0, len(prompts), rows):
            some = prompts[start : start + rows]
            batch = put_batch(prompt_batch(ids, some, rows, config.prompt.max_length), mesh)
            tokens = generate(model, **batch, max_new_tokens=config.eval.max_new_tokens, stop_ids=(ids.eos,), pad_id=ids.pad)
            texts = tokenizer.batch_decode(np.asarray(tokens)[: len(some)], skip_special_tokens=True)
            answers += [text.strip() for text in texts]
            report(len(answers))
    return answers


def _write(config: ConfigDict, workdir: Path, rows: list[Row], step: int) -> None:
    references = [row.sequence.answer.strip() for row in rows]
    systems = {
        MODEL: [row.answer for row in rows],
        OTHER_ECG: [row.answer_to_other for row in rows],
        COMMONEST: [row.commonest for row in rows],
    }
    results = {
        "split": config.eval.split,
        "checkpoint_step": step,
        "sequences": len(rows),
        "patients": len({row.sequence.patient for row in rows}),
        "empty_answers": sum(not row.answer for row in rows),
        "scores": {name: score(references, hypotheses) for name, hypotheses in systems.items()},
    }
    write_whole(workdir / "eval" / "generations.jsonl", (f"{row.to_json()}\n".encode() for row in rows))
    write_whole(workdir / "eval" / "results.json", [f"{json.dumps(results, indent=1)}\n".encode()])


def _show(workdir: Path) -> None:
    """The table of scores, and where everything lies."""
    results = json.loads((workdir / "eval" / "results.json").read_text())
    found = "{split}: {sequences} sequences of {patients} patients, checkpoint {checkpoint_step}, in %".format(**results)
    percent = {
        system: {name.replace("_", " "): 100 * value for name, value in scores.items()}
        for system, scores in results["scores"].items()
    }
    number_table(found, "", percent, ".1f")
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
