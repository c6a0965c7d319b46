"""Time and memory of reading and writing a model's weights, beside safetensors' own: `python -m benchmarks.loading`.

A Llama with random bfloat16 weights, by default of 1.03 billion parameters, is written once. Each line is measured in a process
of its own, with 1 or 8 simulated CPU devices, whose memory is the host's. Memory is what the process itself holds beyond what
it held before, at most at once; the file's pages that the system keeps are not counted. Bound: 1.15 times the largest tensor
and what the devices hold.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
from flax import nnx

from benchmarks.peers import machine, make_folder
from ecgbyte_jax.model.hf import load_pretrained, save_pretrained
from ecgbyte_jax.model.sharding import make_mesh, parameter_shardings

WAYS = ("safetensors", "load", "load stacked", "load int8", "load nf4", "save", "save stacked")


def main() -> None:
    arguments = parse()
    if arguments.only:
        print(json.dumps(measure(arguments)))
        return
    print(f"{machine()}; {arguments.layers} layers x {arguments.width}, vocabulary of {arguments.vocab}, bfloat16\n")
    print("| what | devices | seconds | GB of memory | of the bound |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        folder = Path(name) / "model"
        make_folder(folder, arguments.layers, arguments.width, arguments.vocab, "bfloat16")
        for way in WAYS:
            for devices in (1, 8) if way != "safetensors" else (1,):
                found = run_alone(way, devices, folder)
                share = f"{found['peak'] / found['bound']:.2f}" if found["bound"] else "-"
                print(f"| {way} | {devices} | {found['seconds']:.1f} | {found['peak'] / 1e9:.2f} | {share} |", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--scratch", default=None, help="a folder with room for two models")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_alone(way: str, devices: int, folder: Path) -> dict:
    """Measures in a process of its own, with so many CPU devices."""
    command = [sys.executable, "-m", "benchmarks.loading", f"--only={way}", f"--devices={devices}", f"--folder={folder}"]
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | flags)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict:
    folder, (act, _, form) = Path(arguments.folder), arguments.only.partition(" ")
    if act == "safetensors":
        from safetensors.numpy import load_file

        with peak_memory() as peak:
            start = time.perf_counter()
            held = [load_file(file) for file in folder.glob("*.safetensors")]
            return {"seconds": time.perf_counter() - start, "peak": peak(), "bound": 0, "tensors": len(held)}
    how = {"dtype": "bfloat16", "param_dtype": "bfloat16", "scan_layers": bool(form)}
    how |= {"quantize": form if form != "stacked" else ""}
    how |= {"shard": partial(parameter_shardings, mesh=make_mesh(1, -1, 1))}
    load = partial(load_pretrained, folder, **how)
    with peak_memory() as peak:
        start = time.perf_counter()
        model, config = load()
        leaves = jax.block_until_ready(jax.tree.leaves(nnx.state(model)))
        seconds, most = time.perf_counter() - start, peak()
    on_devices = sum(part.data.nbytes for leaf in leaves for part in leaf.addressable_shards)
    largest = 2 * config.vocab_size * config.width
    if act == "load":
        return {"seconds": seconds, "peak": most, "bound": 1.15 * largest + on_devices}
    with tempfile.TemporaryDirectory(dir=folder.parent) as name, peak_memory() as peak:
        start = time.perf_counter()
        save_pretrained(model, name)
        return {"seconds": time.perf_counter() - start, "peak": peak(), "bound": 1.15 * largest}


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Watches, from a process of its own, this process' own bytes; returns the most seen beyond those at the start."""
    watcher = subprocess.Popen([sys.executable, "-c", WATCH, f"{os.getpid()}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    first = int(watcher.stdout.readline())

    def peak() -> int:
        return int(watcher.communicate(b"")[0].splitlines()[-1]) - first

    yield peak


# Prints the anonymous memory of process argv[1], in bytes, at once, and the most of it when stdin is closed.
WATCH = """
import re, select, sys
def own():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open(f"/proc/{sys.argv[1]}/status").read())[1])
most = own()
print(most, flush=True)
while not select.select([sys.stdin], [], [], 0.002)[0]:
    most = max(most, own())
print(most)
"""


if __name__ == "__main__":
    main()
