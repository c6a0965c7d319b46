"""Answers per second of an evaluation, compared with PyTorch one at a time: `python -m benchmarks.evaluate --workdir=DIR`.

DIR is a run of the demo; it is prepared if needed. With its checkpoint, answers have about 3 tokens, as in the demo; with
random weights (`--random`) all have 24. transformers gets the same weights through `save_pretrained`. Then 100,000 random
pairs of answers and references, up to 24 words each, are scored.
"""

import argparse
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from benchmarks.peers import machine
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.evaluate.answers import Answerer
from ecgbyte_jax.evaluate.metrics import Scorers, measure
from ecgbyte_jax.evaluate.questions import Item, by_ecgs, choose, in_batches
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.inputs.prompt import render_prompt
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.hf import save_pretrained
from ecgbyte_jax.model.sharding import batch_parts, make_mesh
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages.prepare import prepare
from ecgbyte_jax.train.restore import build_for, restore_model
from experiments import demo

_PAIRS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--answers", type=int, default=2000, help="questions to answer")
    parser.add_argument("--alone", type=int, default=100, help="prompts, drawn at random, that PyTorch answers")
    parser.add_argument("--random", action="store_true", help="random weights")
    arguments = parser.parse_args()
    config = demo.get_config()
    config.eval.split, config.eval.max_sequences = "train", 0
    settings, workdir = Settings.of(config), Workdir(arguments.workdir)
    prepare(settings, workdir)
    answerer = make_answerer(settings, workdir, arguments.random)
    items = about_some_ecgs(choose(settings, answerer.prepared), arguments.answers)
    drawn = choose(replace(settings, eval=replace(settings.eval, max_sequences=arguments.answers)), answerer.prepared)
    print(f"{machine()}; {len(items)} questions, each answered for two ECGs, batches of {settings.eval.batch_size}\n")
    chosen = np.random.default_rng(0).choice(len(items), min(arguments.alone, len(items)), replace=False)
    with jax.set_mesh(answerer.mesh):
        (first, rows), (again, _) = time_ours(answerer, items), time_ours(answerer, items)
        _, scattered = (time_ours(answerer, drawn)[0] for _ in range(2))
    alone, same = time_theirs(answerer, [items[i] for i in chosen], [rows[i]["tokens"] for i in chosen])
    tokens = np.mean([len(row["tokens"]) for row in rows])
    print("| | answers/s | times PyTorch | |\n| --- | ---: | ---: | --- |")
    for name, rate, note in (
        (f"all questions about {count_ecgs(items)} ECGs", 2 * len(items) / again, f"{tokens:.1f} tokens per answer"),
        ("the same, with compilation", 2 * len(items) / first, ""),
        ("as many drawn at random", 2 * len(drawn) / scattered, f"about {count_ecgs(drawn)} ECGs"),
        ("PyTorch, one at a time", 1 / alone, f"{len(chosen)} of the prompts; {same:.0%} of the answers have the same tokens"),
    ):
        print(f"| {name} | {rate:.0f} | {rate * alone:.1f} | {note} |")
    print()
    show_scoring()


def about_some_ecgs(items: list[Item], count: int) -> list[Item]:
    """About `count` items in their order: all questions about every n-th ECG."""
    every_nth = by_ecgs(items)[:: max(1, len(items) // count)]
    return [item for group in every_nth for item in group][:count]


def count_ecgs(items: list[Item]) -> int:
    return len({item.sequence.ecgs[0].tobytes() for item in items})


def make_answerer(settings: Settings, workdir: Workdir, random: bool) -> Answerer:
    prepared, mesh = load_prepared(workdir), make_mesh(**asdict(settings.mesh))
    with jax.set_mesh(mesh):
        if random:
            parts = build_for(settings, prepared, mesh)
            model = parts.model(parts.trained)
        else:
            model, _ = restore_model(settings, workdir, prepared, mesh, settings.eval.checkpoint)
    return Answerer(settings, prepared, ECGTokenizer.load(workdir.ecg_tokenizer), model, mesh)


def time_ours(answerer: Answerer, items: list[Item]) -> tuple[float, list[dict]]:
    """(seconds, lines of the evaluation); a line has two answers: for the patient's own ECG and for another patient's."""
    start = time.perf_counter()
    batches = in_batches(items, answerer.settings.eval.batch_size, batch_parts(answerer.mesh))
    rows = [row for lines in answerer.rows_of([(0, batch) for batch in batches]) for row in lines]
    return time.perf_counter() - start, rows


def time_theirs(answerer: Answerer, items: list, expected: list[list[int]]) -> tuple[float, float]:
    """(seconds per answer, share of answers with the expected tokens)."""
    settings, ids = answerer.settings, answerer.prepared.ids
    model = to_pytorch(answerer.model)

    def answer(item) -> list[int]:
        sequence = render_prompt(ids, item.sequence.prompt, item.sequence.ecgs, settings.prompt.max_length)
        prompt = torch.tensor(sequence[None].astype(np.int64))
        with torch.inference_mode():
            out = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=settings.eval.max_new_tokens,
                do_sample=False,
                eos_token_id=ids.eos,
                pad_token_id=ids.pad,
            )
        return out[0, len(sequence) :].tolist()

    for item in items[:5]:
        answer(item)
    start = time.perf_counter()
    answers = [answer(item) for item in items]
    seconds = (time.perf_counter() - start) / len(items)
    return seconds, float(np.mean([tokens == own for tokens, own in zip(answers, expected)]))


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
    scores = measure([" ".join(r) for r in references], [" ".join(a) for a in answers], scorers)
    seconds = time.perf_counter() - start
    print(f"{_PAIRS} pairs of 12.5 words on average: {', '.join(scores.names)} and bleu in {seconds:.1f} s")
    for name, reason in (scorers.missing or {}).items():
        print(f"without {name}: {reason}")


if __name__ == "__main__":
    main()
