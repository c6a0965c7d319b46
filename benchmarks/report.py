"""How long the report of a run with many answers takes, and how large it is: `python -m benchmarks.report`.

Prepares a small demo in a temporary folder, trains it briefly (about two minutes), and repeats the evaluated answers until
there are 10,000. Then times the stage as a process, from its start.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_TYPES = ("single-verify", "single-choose", "single-query")
_SMALL = ("data.synthetic_records=100", "train.epochs=0.1", "eval.batch_size=64")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=10_000)
    answers = parser.parse_args().answers
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        run(workdir, "prepare,train,eval")
        rows = repeat(workdir / "eval" / "generations.jsonl", answers)
        start = time.perf_counter()
        run(workdir, "report")
        seconds = time.perf_counter() - start
        page = (workdir / "report.html").read_bytes()
        print("| answers | complete command | report.html | pictures |\n| ---: | ---: | ---: | ---: |")
        print(f"| {rows:,} | {seconds:.1f} s | {len(page) / 1e6:.2f} MB | {page.count(b'<img')} |")


def run(workdir: Path, stages: str) -> None:
    settings = [f"--config.{setting}" for setting in _SMALL]
    command = [
        sys.executable,
        "main.py",
        "--config=experiments/demo.py",
        f"--workdir={workdir}",
        f"--stage={stages}",
        *settings,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def repeat(path: Path, count: int) -> int:
    """Replaces the rows by `count` copies of them, in three question types; returns `count`."""
    evaluated = [json.loads(line) for line in path.open(encoding="utf-8")]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = dict(evaluated[number % len(evaluated)])
            row["meta"] = {"question_type": _TYPES[number % 3]}
            row["log_prob"] = -0.001 * number
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


if __name__ == "__main__":
    main()
