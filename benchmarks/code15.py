"""How long CODE-15% takes to prepare: `python -m benchmarks.code15 --root=PTBXL [--records 2000 20000] [--workers 1 2]`.

The recordings of a PTB-XL folder, at 400 Hz and in 1e-4 V, are repeated with other gains as rows of one HDF5 file and prepared
with all segments and the published signal settings; shows what `benchmarks.prepare` shows of the complete stage.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import h5py
import numpy as np
from scipy.signal import resample_poly

from benchmarks.prepare import run_stage
from ecgbyte_jax.ecg.records import read_record

LABELS = ["1dAVb", "RBBB", "LBBB", "SB", "ST", "AF"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="the folder with ptbxl_database.csv")
    parser.add_argument("--records", type=int, nargs="+", default=[2000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    paths = sorted(Path(arguments.root).resolve().glob("records500/*/*.hea"))
    tracings = [resample_poly(read_record(path).signal, 4, 5, axis=1).T * 10 for path in paths]
    for records in arguments.records:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "data", tracings, records)
            for workers in arguments.workers:
                run_stage(Path(folder), records, workers, 1000, "code15")


def write(folder: Path, tracings: list[np.ndarray], records: int) -> None:
    """Writes exams.csv and one part."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with h5py.File(folder / "exams_part0.hdf5", "w") as file:
        file["exam_id"] = np.arange(1, records + 1)
        rows = file.create_dataset("tracings", (records, 4096, 12), np.float32)
        for number in range(records):
            signal = tracings[number % len(tracings)]
            rows[number, 48 : 48 + len(signal)] = signal * rng.uniform(0.8, 1.2)
    with (folder / "exams.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["exam_id", "age", "is_male", "patient_id", "trace_file", *LABELS])
        for number in range(records):
            labels = rng.random(len(LABELS)) < 0.03
            writer.writerow([number + 1, rng.integers(20, 90), True, number, "exams_part0.hdf5", *labels])


if __name__ == "__main__":
    main()
