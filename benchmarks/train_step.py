"""Training speed, compared with transformers and PEFT in PyTorch: `python -m benchmarks.train_step`.

All have the same random weights, LoRA of rank 16 on all kernels, optimizer, and examples as long as 2 s ECGs with question and
answer. Each line is measured in a process of its own. With `--layers=16 --width=2048 --mlp=8192 --vocab=128256
--dtype=bfloat16 --batch 2 8 --examples=96` the model has Llama-3.2-1B's shape, for a GPU. `--full` trains all weights instead,
kept in float32, with computation in `--dtype`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import torch

from benchmarks.peers import machine, make_folder, model_parser
from ecgbyte_jax.inputs.plan import Layout, Plan
from ecgbyte_jax.inputs.prompt import lay_out
from ecgbyte_jax.model.build import build_model, count
from ecgbyte_jax.model.config import LoraConfig, ModelConfig
from ecgbyte_jax.model.sharding import make_mesh, put_batch
from ecgbyte_jax.run.console import peak_memory
from ecgbyte_jax.settings import DataSettings, OptimSettings
from ecgbyte_jax.train.optim import make_optimizer
from ecgbyte_jax.train.step import make_step, start_state
from ecgbyte_jax.train.utilisation import peak_flops, step_flops

LAYOUTS = {
    "padded": Layout,
    "buckets": partial(Layout, buckets=DataSettings().length_buckets),
    "packed": partial(Layout, packing=True),
}


def main() -> None:
    arguments = parse()
    if arguments.only:
        print(json.dumps(measure(arguments)))
        return
    trained = "all weights" if arguments.full else "LoRA 16"
    form = f"{arguments.layers} layers x {arguments.width}, {arguments.dtype}, {trained}, rows of {arguments.length} tokens"
    print(f"{machine()}; {form}")
    mean = example_lengths(arguments)[:, 0].mean()
    print(f"{arguments.examples} examples of {mean:.0f} tokens on average, best of {arguments.repeats} repeats\n")
    print("| variant | rows per step | examples/s | real tokens/s | ratio | first step | peak memory | MFU |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    first = None
    with tempfile.TemporaryDirectory() as name:
        make_folder(Path(name), arguments.layers, arguments.width, arguments.vocab, kept_dtype(arguments), arguments.mlp)
        for variant, batch in variants(arguments):
            result = run_alone(variant, batch, name)
            first = first or result.get("examples_per_s")
            print(f"| {line(variant, batch, result, first)} |", flush=True)


def variants(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """(name, rows per step); the first is the published way, with which the others are compared."""
    batches = arguments.batch
    peers = [("torch eager", batches[0]), *(("torch sdpa", batch) for batch in batches), ("torch sdpa compiled", batches[0])]
    return peers + [(layout, batch) for batch in batches for layout in arguments.layouts]


def line(variant: str, batch: int, result: dict, first: float | None) -> str:
    name = variant.replace("torch", "PyTorch, padded,") if "torch" in variant else f"this project, {variant}"
    if "error" in result:
        return f"{name} | {batch} | {result['error']} | | | | |"
    rates = (f"{result['examples_per_s']:.2f}", f"{result['tokens_per_s']:.0f}", f"{result['examples_per_s'] / first:.2f}")
    mfu = f"{100 * result['mfu']:.0f}%" if result.get("mfu") else "-"
    return " | ".join([name, f"{batch}", *rates, f"{result['first_step']:.1f} s", f"{result['memory_gb']:.2f} GB", mfu])


def run_alone(variant: str, batch: int, folder: str) -> dict:
    """Measures a variant in a process of its own; {"error": last line} where it fails, for example out of memory."""
    command = [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:], f"--only={variant}", f"--rows={batch}"]
    done = subprocess.run([*command, f"--folder={folder}"], capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1][:80].replace("|", "/")}
    return json.loads(done.stdout.splitlines()[-1])


def parse() -> argparse.Namespace:
    parser = model_parser(__doc__)
    parser.set_defaults(batch=[2])
    parser.add_argument("--examples", type=int, default=24)
    parser.add_argument("--length", type=int, default=1024, help="most tokens of a row")
    parser.add_argument("--full", action="store_true", help="train all weights, without LoRA")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="of this project's rows")
    parser.add_argument("--scan_layers", action="store_true", help="stacked layers, in this project")
    parser.add_argument("--remat", default="", help="model.remat, in this project")
    parser.add_argument("--attention", default="auto", help="model.attention, in this project")
    parser.add_argument("--quantize", default="", help="model.quantize, in this project")
    parser.add_argument(
        "--peak", type=float, default=0.0, help="TFLOP/s of the device, for the utilisation; 0: its data sheet's"
    )
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def kept_dtype(arguments: argparse.Namespace) -> str:
    """Of the weights: all are trained in float32, or lie frozen under LoRA as they are computed with."""
    return "float32" if arguments.full else arguments.dtype


def example_lengths(arguments: argparse.Namespace) -> np.ndarray:
    """(tokens, answer tokens) of each example, int32 [n, 2]."""
    rng, examples = np.random.default_rng(0), arguments.examples
    tokens = np.clip(rng.normal(420, 60, examples), 200, arguments.length)
    return np.stack([tokens, rng.integers(3, 25, examples)], axis=1).astype(np.int32)


def example(number: int, lengths: np.ndarray, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, loss mask) as from `inputs.prompt.render`."""
    tokens, answer = lengths[number]
    ids = np.random.default_rng([1, number]).integers(0, vocab, tokens).astype(np.int32)
    return ids, np.arange(tokens) >= tokens - answer


@dataclass
class Variant:
    """epoch: takes every step once and waits for the end; lengths: int [n, 2] of each step's examples; memory: in bytes."""

    epoch: Callable[[], None]
    first_step: Callable[[], None]
    lengths: list[np.ndarray]
    memory: Callable[[], int]
    flops: Callable[[np.ndarray], float] | None = None


def measure(arguments: argparse.Namespace) -> dict:
    start = time.perf_counter()
    variant = (theirs if "torch" in arguments.only else ours)(arguments)
    variant.first_step()
    first = time.perf_counter() - start
    variant.epoch()
    seconds = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        variant.epoch()
        seconds.append(time.perf_counter() - start)
    examples, tokens = sum(map(len, variant.lengths)), sum(int(step[:, 0].sum()) for step in variant.lengths)
    result = {"examples_per_s": examples / min(seconds), "tokens_per_s": tokens / min(seconds)}
    peak = 1e12 * arguments.peak or peak_flops()
    if variant.flops and peak:
        result["mfu"] = sum(map(variant.flops, variant.lengths)) / min(seconds) / peak
    return result | {"first_step": first, "memory_gb": variant.memory() / 1e9}


def planned(arguments: argparse.Namespace, layout: Layout) -> Plan:
    return Plan(example_lengths(arguments), layout, arguments.rows, 1.0, seed=0)


def laid_out(plan: Plan, step: int, arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    lengths = example_lengths(arguments)
    rows = [[example(int(n), lengths, arguments.vocab) for n in row] for row in plan[step].rows]
    laid = [lay_out(row, plan[step].length, plan.answer_tokens, 0) for row in rows]
    return {name: np.stack([row[name] for row in laid]) for name in laid[0]}


def ours(arguments: argparse.Namespace) -> Variant:
    mesh = make_mesh(-1, 1, 1)
    jax.set_mesh(mesh)
    form = {"dtype": arguments.dtype, "param_dtype": kept_dtype(arguments)}
    form |= {"remat": arguments.remat, "attention": arguments.attention, "quantize": arguments.quantize}
    form |= {"scan_from": int(arguments.scan_layers)}
    model = ModelConfig(pretrained=arguments.folder, vocab_multiple=1, **form)
    lora = LoraConfig(rank=0 if arguments.full else 16, dropout=0.05)
    parts = build_model(model, lora, 0, arguments.length, arguments.vocab, mesh)
    decoder = parts.config
    optimizer, _ = make_optimizer(OptimSettings(), decoder.width, 1000)
    step = make_step(parts, optimizer, dropout=lora.dropout)
    plan = planned(arguments, LAYOUTS[arguments.only](arguments.length))
    batches = [put_batch(laid_out(plan, number, arguments), mesh) for number in range(len(plan))]
    held = [start_state(parts.trained, optimizer, mesh), 0]

    def take(batch: dict) -> None:
        held[1] += 1
        held[0], _ = step(held[0], parts.frozen, batch, held[1])

    def epoch() -> None:
        for batch in batches:
            take(batch)
        jax.block_until_ready(held[0])

    def first_step() -> None:
        take(batches[0])
        jax.block_until_ready(held[0])

    def memory() -> int:
        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use") or peak_memory()

    trained = count(parts.trained)
    lengths = [plan.lengths(number) for number in range(len(plan))]
    return Variant(epoch, first_step, lengths, memory, lambda step: step_flops(decoder, trained, step))


def theirs(arguments: argparse.Namespace) -> Variant:
    import peft
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    attention = "eager" if "eager" in arguments.only else "sdpa"
    kind = getattr(torch, kept_dtype(arguments))
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=kind, attn_implementation=attention)
    if not arguments.full:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = peft.get_peft_model(model, peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules=targets))
    model = model.to(device)
    computing = partial(
        torch.autocast, device, getattr(torch, arguments.dtype), enabled=kept_dtype(arguments) != arguments.dtype
    )
    run = torch.compile(model) if "compiled" in arguments.only else model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4, betas=(0.9, 0.99), weight_decay=1e-2)
    plan = planned(arguments, Layout(arguments.length))

    def batch(number: int) -> dict[str, torch.Tensor]:
        laid = laid_out(plan, number, arguments)
        labels = np.full(laid["input_ids"].shape, -100)
        for row, places, targets, mask in zip(labels, laid["answer_places"], laid["targets"], laid["answer_mask"]):
            row[places[mask] + 1] = targets[mask]
        fields = {"input_ids": laid["input_ids"], "attention_mask": laid["segment_ids"], "position_ids": laid["positions"]}
        return {
            name: torch.tensor(rows, dtype=torch.long, device=device) for name, rows in (fields | {"labels": labels}).items()
        }

    batches = [batch(number) for number in range(len(plan))]

    def take(batch: dict[str, torch.Tensor]) -> None:
        optimizer.zero_grad()
        with computing():
            loss = run(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    def epoch() -> None:
        for batch in batches:
            take(batch)
        if device == "cuda":
            torch.cuda.synchronize()

    def memory() -> int:
        return torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory()

    return Variant(epoch, lambda: take(batches[0]), [plan.lengths(number) for number in range(len(plan))], memory)


if __name__ == "__main__":
    main()
