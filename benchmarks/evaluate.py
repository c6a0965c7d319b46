"""Answers a second of an evaluation, beside PyTorch's `generate` one at a time: `python -m benchmarks.evaluate --workdir=DIR`.

DIR holds the demo, prepared (it is, where it is not) and perhaps trained: with a checkpoint the answers are as short as the
demo's, about 3 tokens; with random weights (`--random`) all are 24 long. The same weights go to transformers through
`save_pretrained`. Then 100,000 pairs of other answers and references, up to 24 words each, are scored.
"""

import argparse
import tempfile
import time
from itertools import groupby
from pathlib import Path

import jax
import numpy as np
import torch
import transformers
from ml_collections import ConfigDict

from benchmarks.peers import machine
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.inputs.prompt import render
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.hf import save_pretrained
from ecgbyte_jax.run import prepare, train
from ecgbyte_jax.run.answers import Answerer, Item, choose, in_batches
from ecgbyte_jax.run.corpus import Paths
from ecgbyte_jax.run.generations import OWN
from ecgbyte_jax.run.metrics import Scorers, measure
from ecgbyte_jax.run.restore import restore_model
from ecgbyte_jax.run.sharding import batch_parts, make_mesh
from experiments import demo

_PAIRS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--alone", type=int, default=100, help="of the prompts, drawn at random, go through PyTorch")
    parser.add_argument("--random", action="store_true", help="random weights")
    arguments = parser.parse_args()
    config = demo.get_config()
    config.eval.split, config.eval.max_sequences = "train", 0
    prepare.prepare(config, arguments.workdir)
    answerer = make_answerer(config, arguments.workdir, arguments.random)
    everything = choose(config, answerer.prepared)
    items = about_some_ecgs(everything, arguments.answers)
    config.eval.max_sequences = arguments.answers
    drawn = choose(config, answerer.prepared)
    print(f"{machine()}; {len(items)} questions, each answered for two ECGs, batches of {config.eval.batch_size}\n")
    chosen = np.random.default_rng(0).choice(len(items), min(arguments.alone, len(items)), replace=False)
    with jax.set_mesh(answerer.mesh):
        (first, rows), (again, _) = time_ours(answerer, items), time_ours(answerer, items)
        apart = [time_ours(answerer, drawn)[0] for _ in range(2)][1]
    alone, same = time_theirs(answerer, [items[i] for i in chosen], [rows[i]["tokens"] for i in chosen])
    tokens = np.mean([len(row["tokens"]) for row in rows])
    print("| | answers/s | times PyTorch | |\n| --- | ---: | ---: | --- |")
    for what, found, note in (
        (f"all questions about {count_ecgs(items)} ECGs", 2 * len(items) / again, f"{tokens:.1f} tokens an answer"),
        ("the same, compiling too", 2 * len(items) / first, ""),
        ("as many drawn at random", 2 * len(drawn) / apart, f"about {count_ecgs(drawn)} ECGs"),
        ("PyTorch, one at a time", 1 / alone, f"{len(chosen)} of the prompts; the same tokens in {same:.0%}"),
    ):
        print(f"| {what} | {found:.0f} | {found * alone:.1f} | {note} |")
    print()
    show_scoring()


def about_some_ecgs(items: list[Item], count: int) -> list[Item]:
    """Items in their order, all those about every so-manieth ECG."""
    groups = [list(some) for _, some in groupby(items, key=lambda item: item.sequence.ecgs[0].tobytes())]
    spread = groups[:: max(1, len(items) // count)]
    return [item for some in spread for item in some][:count]


def count_ecgs(items: list[Item]) -> int:
    return len({item.sequence.ecgs[0].tobytes() for item in items})


def make_answerer(config: ConfigDict, workdir: Path, random: bool) -> Answerer:
    prepared, mesh = prepare.load_prepared(config, workdir), make_mesh(**config.mesh.to_dict())
    with jax.set_mesh(mesh):
        if random:
            parts = train.build_for(config, prepared, mesh)
            model = parts.model(parts.trained)
        else:
            model, _ = restore_model(config, workdir, prepared, mesh, config.eval.checkpoint)
    return Answerer(config, prepared, ECGTokenizer.load(Paths.of(config, workdir).ecg_tokenizer), model, mesh)


def time_ours(answerer: Answerer, items: list[Item]) -> tuple[float, list[dict]]:
    """Seconds from the shards' tokens to the lines of an evaluation, two answers each: to the own ECG and to another one."""
    start = time.perf_counter()
    batches = in_batches(items, answerer.config.eval.batch_size, batch_parts(answerer.mesh))
    rows = [row for some in answerer.rows_of([(0, batch) for batch in batches]) for row in some]
    return time.perf_counter() - start, rows


def time_theirs(answerer: Answerer, items: list, expected: list[list[int]]) -> tuple[float, float]:
    """Seconds an answer, and the share of answers with the same tokens."""
    config, ids = answerer.config, answerer.prepared.ids
    model = to_pytorch(answerer.model)

    def answer(item) -> list[int]:
        ecgs, question = answerer.prompt(item, OWN)
        sequence, _ = render(ids, ecgs, question, None, config.prompt.max_length)
        given = torch.tensor(sequence[None].astype(np.int64))
        with torch.inference_mode():
            out = model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=config.eval.max_new_tokens,
                do_sample=False,
                eos_token_id=ids.eos,
                pad_token_id=ids.pad,
            )
        return out[0, len(sequence) :].tolist()

    for item in items[:5]:
        answer(item)
    start = time.perf_counter()
    found = [answer(item) for item in items]
    seconds = (time.perf_counter() - start) / len(items)
    return seconds, float(np.mean([tokens == wanted for tokens, wanted in zip(found, expected)]))


def to_pytorch(model: Decoder) -> transformers.PreTrainedModel:
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder)
        return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def show_scoring() -> None:
    rng = np.random.default_rng(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(2000)]
    words += ["sinus", "rhythm", "normal", "axis", "left", "right", "block", "beats", "beating", "fast", "quick", "heart"] * 50
    references = [rng.choice(words, rng.integers(1, 25)).tolist() for _ in range(_PAIRS)]
    answers = [
        [w if kept < 0.7 else words[rng.integers(len(words))] for w, kept in zip(r, rng.random(len(r)))] for r in references
    ]
    scorers, start = Scorers.load(), time.perf_counter()
    found = measure([" ".join(r) for r in references], [" ".join(a) for a in answers], scorers)
    seconds = time.perf_counter() - start
    print(f"{_PAIRS} pairs of 12.5 words on average: {', '.join(found.names)} and bleu in {seconds:.1f} s")
    for name, why in (scorers.missing or {}).items():
        print(f"without {name}: {why}")


if __name__ == "__main__":
    main()
