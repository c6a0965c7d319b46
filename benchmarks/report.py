"""How long the report of a run with many answers takes, and how large it is: `python -m benchmarks.report`.

Makes the demo's data and trains its model a little in a folder of its own (about two minutes), repeats the evaluated answers to
10,000 rows, as an evaluation of so many would leave them, and times the stage in a process of its own, from its start.
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
        took = time.perf_counter() - start
        page = (workdir / "report.html").read_bytes()
        print("| answers | whole command | report.html | pictures |\n| ---: | ---: | ---: | ---: |")
        print(f"| {rows:,} | {took:.1f} s | {len(page) / 1e6:.2f} MB | {page.count(b'<img')} |")


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
    """Writes `count` rows, the evaluated ones again and again, in three question types."""
    found = [json.loads(line) for line in path.open(encoding="utf-8")]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = dict(found[number % len(found)])
            row["meta"] = {"question_type": _TYPES[number % 3]}
            row["log_prob"] = -0.001 * number
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


if __name__ == "__main__":
    main()
