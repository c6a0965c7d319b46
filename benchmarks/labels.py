"""The time of label scores beside that of a generation's prefill: `python -m benchmarks.labels --workdir=DIR`.

DIR is a run of the demo; it is prepared if needed. With random weights of the demo's model, `--labels` yes/no questions about
`--recordings` segments get the probabilities of both answers, and are answered with one token. The second of two passes counts.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax

from benchmarks.evaluate import make_answerer
from benchmarks.peers import machine
from ecgbyte_jax.evaluate.answers import Answerer
from ecgbyte_jax.evaluate.labels.candidates import Asked, make_texts
from ecgbyte_jax.evaluate.labels.probabilities import write_probabilities
from ecgbyte_jax.evaluate.metrics import YES_NO
from ecgbyte_jax.evaluate.questions import Item, by_ecgs, choose, in_batches
from ecgbyte_jax.inputs.prompt import Dialogue
from ecgbyte_jax.model.sharding import batch_parts
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages.prepare import prepare
from experiments import demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--recordings", type=int, default=2000, help="segments, each of which is asked about")
    parser.add_argument("--labels", type=int, default=71)
    arguments = parser.parse_args()
    config = demo.get_config()
    config.eval.split, config.eval.batch_size, config.eval.max_new_tokens = "train", 128, 1
    settings, workdir = Settings.of(config), Workdir(arguments.workdir)
    prepare(settings, workdir)
    answerer = make_answerer(settings, workdir, random=True)
    groups = by_ecgs(choose(settings, answerer.prepared))[: arguments.recordings]
    questions = [f"Does this ECG show finding {number}?" for number in range(arguments.labels)]
    texts = make_texts(answerer.prepared, [Dialogue(1, ((question, YES_NO[0]),)) for question in questions])
    items = [
        replace(item, sequence=replace(item.sequence, question=question, text=text))
        for item, *_ in groups
        for question, text in zip(questions, texts)
    ]
    print(f"{machine()}; {len(questions)} labels of {len(groups)} segments\n")
    labels, prefill = (min(run(answerer, items) for _ in range(2)) for run in (time_labels, time_answers))
    print(f"labels {labels:.1f} s, a generation's prefill and first token {prefill:.1f} s: {labels / prefill:.2f} times")


def time_labels(answerer: Answerer, items: list[Item]) -> float:
    """Seconds for both answers to every question about its own ECG, as of a split that gives thresholds."""
    asked = [Asked("valid", item, YES_NO) for item in items]
    with tempfile.TemporaryDirectory() as folder, jax.set_mesh(answerer.mesh):
        start = time.perf_counter()
        write_probabilities(answerer, asked, Path(folder) / "probabilities.jsonl")
        return time.perf_counter() - start


def time_answers(answerer: Answerer, items: list[Item]) -> float:
    """Seconds for the first token of an answer to every question."""
    start = time.perf_counter()
    with jax.set_mesh(answerer.mesh):
        for batch in in_batches(items, answerer.settings.eval.batch_size, batch_parts(answerer.mesh)):
            answerer.answer([(item.sequence.ecgs, item.sequence.prompt) for item in batch.items], each=batch.each)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
