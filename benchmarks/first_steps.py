"""Seconds from the command to a training's tenth step, most of them spent compiling: `python -m benchmarks.first_steps`.

SmolLM2-135M's shape with LoRA of rank 16, 2 rows a step, on synthetic ECGs whose sequences need several lengths of rows.
`--trees A B` runs the checkouts in these folders one after the other, for example this one and an older one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = {
    "data.synthetic_records": 60,
    "tokenizer.num_merges": 200,
    "prompt.max_length": 1024,
    "model.width": 576,
    "model.layers": 30,
    "model.heads": 9,
    "model.kv_heads": 3,
    "model.head_dim": 64,
    "model.mlp_width": 1536,
    "lora.rank": 16,
    "train.batch_size": 2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trees", nargs="+", default=["."], help="checkouts of this project")
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n\n| tree | s to step 1 | s to step {arguments.steps} |")
    print("| --- | ---: | ---: |")
    for tree in arguments.trees:
        with tempfile.TemporaryDirectory() as folder:
            first, last = measure(Path(tree), Path(folder) / "run", arguments.steps)
        print(f"| {tree} | {first:.0f} | {last:.0f} |", flush=True)


def measure(tree: Path, workdir: Path, steps: int) -> tuple[float, float]:
    """Seconds to the first and the last of so many steps, by the lines of the training's log."""
    command = [sys.executable, "main.py", "--config=experiments/demo.py", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    environment = os.environ | {"PYTHONPATH": str(tree.resolve())}
    quiet = {"cwd": tree, "env": environment, "stdout": subprocess.DEVNULL}
    subprocess.run([*command, "--stage=prepare"], check=True, **quiet)
    start, seen = time.monotonic(), {}
    training = subprocess.Popen([*command, "--stage=train"], **quiet)
    try:
        while steps not in seen:
            if training.poll() is not None:
                sys.exit(f"{tree}: the training ended before step {steps}, with exit code {training.returncode}")
            time.sleep(0.2)
            for step in steps_in(workdir / "metrics.jsonl"):
                seen.setdefault(step, time.monotonic() - start)
    finally:
        training.kill()
        training.wait()
    return seen[1], seen[steps]


def steps_in(log: Path) -> list[int]:
    """The steps that the log has whole lines of."""
    try:
        text = log.read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line)["step"] for line in text.splitlines(keepends=True) if line.endswith("\n")]


if __name__ == "__main__":
    main()
