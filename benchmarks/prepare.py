"""How long preparation takes: `python -m benchmarks.prepare --root=PTBXL [--records 2000 20000] [--workers 1 2]`.

The recordings of a PTB-XL folder are copied under new names until there are `--records`, and prepared with all segments and the
published signal settings. First the milliseconds of each step for one recording; then the complete stage from WFDB files to
token shards for every number of recordings and workers (wall time, memory of all processes, tokens read back per second), and
the time that MIMIC-IV-ECG would take at that rate.
"""

import argparse
import csv
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ecgbyte_jax.corpora.ptbxl import DATABASE
from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.records import read_record
from ecgbyte_jax.ecg.signal import denoise, filter_bands, resample, segment, select_leads
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.inputs.shards import ecg_to_bytes, write_shard
from ecgbyte_jax.run.console import banner
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.feed import plan_batches
from experiments import ptb

MIMIC_RECORDS = 800_035
PUBLISHED_MS = {"read": 9, "filters": 7, "wavelets": 7, "resample": 19, "quantize": 15, "encode": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="the folder with ptbxl_database.csv")
    parser.add_argument("--records", type=int, nargs="+", default=[2000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--merges", type=int, default=1000)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}")
    root = Path(arguments.root).resolve()
    steps(root, arguments.merges)
    for records in arguments.records:
        with tempfile.TemporaryDirectory() as folder:
            repeat(root, Path(folder) / "data", records)
            for workers in arguments.workers:
                run_stage(Path(folder), records, workers, arguments.merges)


def steps(root: Path, merges: int) -> None:
    """Shows the CPU milliseconds of each step for one recording, in one process."""
    paths = sorted(root.glob("records500/*/*.hea"))
    records = [path.with_suffix("") for path in paths[: min(len(paths), 200)]]
    spent: dict[str, float] = {}

    def timed(name: str, function: Callable, *arguments: object) -> object:
        start = time.process_time()
        result = function(*arguments)
        spent[name] = spent.get(name, 0.0) + time.process_time() - start
        return result

    def cleaned(path: Path) -> np.ndarray:
        record = timed("read", read_record, path)
        signal = timed("leads", select_leads, record, 20.0)
        signal = timed("filters", filter_bands, signal, record.sample_rate)
        return timed("resample", resample, timed("wavelets", denoise, signal), record.sample_rate, 250.0)

    segments = [segment(cleaned(record), 500) for record in records[:20]]
    quantizer = Quantizer.fit(segments)
    bpe = BPE.train(np.concatenate([quantizer.encode(signals) for signals in segments]), merges)
    bpe.encode_batch(np.zeros((1, 10), np.uint8))  # builds the automaton
    spent.clear()
    symbols = [timed("quantize", quantizer.encode, segment(cleaned(record), 500)) for record in records]
    ids = timed("encode", bpe.encode_batch, np.concatenate(symbols).reshape(-1, 6000))
    with tempfile.TemporaryDirectory() as folder:
        timed("write", write_shard, Path(folder) / "a", map(ecg_to_bytes, ids))
    rows = {name: f"{1000 * seconds / len(records):6.2f} ms" for name, seconds in spent.items()}
    rows = {
        name: text + (f"  (published: {PUBLISHED_MS[name]})" if name in PUBLISHED_MS else "") for name, text in rows.items()
    }
    total = sum(spent.values()) / len(records)
    banner("one recording", rows | {"all": f"{1000 * total:6.2f} ms  (published: {sum(PUBLISHED_MS.values())})"})


def repeat(root: Path, folder: Path, records: int) -> None:
    """Makes a PTB-XL folder of `records` recordings: copies of the real ones under new names."""
    with (root / DATABASE).open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["report"].strip()]
    repeated = []
    for number in range(records):
        row = rows[number % len(rows)]
        name = f"records500/{number // 1000:05d}/{number:05d}_hr"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        old, new = Path(row["filename_hr"]).name, Path(name).name
        (folder / f"{name}.hea").write_text((root / f"{row['filename_hr']}.hea").read_text().replace(old, new))
        shutil.copy(root / f"{row['filename_hr']}.dat", folder / f"{name}.dat")
        patient = f"{row['patient_id']}-{number // len(rows)}"
        repeated.append(row | {"ecg_id": str(number), "patient_id": patient, "filename_hr": name})
    with (folder / DATABASE).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(repeated[0]))
        writer.writeheader()
        writer.writerows(repeated)


def run_stage(folder: Path, records: int, workers: int, merges: int, experiment: str = "ptb") -> None:
    """Runs the stage on folder/data in separate processes, as a user does, and shows its measurements."""
    workdir = folder / f"work{workers}"
    settings = {
        "data.root": folder / "data", "data.max_segments": 0, "prepare.workers": workers, "tokenizer.num_merges": merges,
        "tokenizer.sampling": "random", "tokenizer.sample_records": 2000,
    }  # fmt: skip
    config = f"--config=experiments/{experiment}.py:tiny"
    command = [sys.executable, "main.py", config, "--stage=prepare", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    # Files are in the page cache for later runs; reading them first makes the first run comparable.
    for path in (folder / "data").rglob("*.*"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = Peak(process.pid)
    if process.wait():
        sys.exit("preparation failed")
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rate = records / seconds
    rows = {
        "seconds": f"{seconds:.1f}",
        "recordings/s": f"{rate:.1f}",
        "recordings/(s core)": f"{records / busy:.1f} in {busy:.1f} s of all cores, with start and end",
        "peak memory": f"{peak.stop() / 1e9:.2f} GB of all processes",
        "batches read back": f"{read_back(workdir):,.0f} tokens/s",
        "MIMIC-IV-ECG": f"{MIMIC_RECORDS / rate / 3600:.1f} h at this rate",
    }
    banner(f"{records} recordings, {workers} worker(s)", rows)


class Peak:
    """The largest sum of the memory (proportional set size) of a process and its children."""

    def __init__(self, pid: int):
        self._pid, self._peak, self._end = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.2):
            self._peak = max(self._peak, sum(map(_memory, _family(self._pid))))

    def stop(self) -> int:
        """Stops watching; the peak in bytes."""
        self._end.set()
        self._thread.join()
        return self._peak


def _family(pid: int) -> list[int]:
    """A process and its descendants. Children are listed under the thread that started them; Dask's is not the first one."""
    try:
        children = [child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    except OSError:
        return []
    return [pid, *(member for child in children for member in _family(int(child)))]


def _memory(pid: int) -> int:
    """The proportional set size in bytes: shared memory is divided among its processes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def read_back(workdir: Path) -> float:
    """Tokens per second of training batches."""
    config = ptb.get_config("tiny")
    config.train.batch_size = 16
    _, batches = plan_batches(Settings.of(config), load_prepared(Workdir(workdir)), "train", 1.0)
    count, tokens, start = min(len(batches), 200), 0, time.perf_counter()
    for number in range(count):
        tokens += np.count_nonzero(batches[number]["segment_ids"])
    return tokens / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
