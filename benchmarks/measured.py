"""How right measured answers are: `python -m benchmarks.measured [--records 500]`, or with pictures of real recordings.

Measures synthetic recordings of known rate, intervals, axis and ST level as `data.corpus="measured"` does; prints the errors,
what was not measured and why, and the time. `--root=PTBXL --picture=docs/measured.png` draws 20 recordings of PTB-XL instead,
evenly taken, each with its answers.
"""

import argparse
import csv
import time
from collections import Counter
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ecgbyte_jax.ecg.measure.measure import Found, Measures
from ecgbyte_jax.ecg.records import LEADS, Record, read_record
from ecgbyte_jax.errors import RecordError
from ecgbyte_jax.report.measured import caption, draw_measured

RATE, SECONDS, EDGE = 500.0, 10.0, 2.0  # Hz, s, standard deviations of a Gaussian at which its wave begins and ends
TOLERANCE = {"rate": 1.0, "pr": 10.0, "qrs": 10.0, "qt": 10.0, "axis": 10.0, "st": 0.03}
UNITS = {"rate": "1/min", "pr": "ms", "qrs": "ms", "qt": "ms", "axis": "degrees", "st": "mV"}
CHEST = np.deg2rad([115.0, 94.0, 70.0, 47.0, 22.0, 0.0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--root", type=Path, help="the folder with ptbxl_database.csv")
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    if arguments.picture:
        draw(arguments.root, arguments.picture)
        return
    start = time.process_time()
    errors, missing = measure_synthetic(arguments.records)
    seconds = time.process_time() - start
    print(f"{arguments.records} synthetic recordings of 10 s, {arguments.records / seconds:.1f}/s of one core\n")
    print("| | measured | median error | 95% below | within | share |\n| --- | ---: | ---: | ---: | --- | ---: |")
    for name, found in errors.items():
        middle, most = np.percentile(found, [50, 95])
        within = f"{TOLERANCE[name]:g} {UNITS[name]}"
        share = np.mean(np.array(found) <= TOLERANCE[name])
        print(f"| {name} | {len(found)} | {middle:.3g} | {most:.3g} | {within} | {share:.1%} |")
    for (name, reason), count in sorted(missing.items()):
        print(f"no {name} in {count}: {reason}")


def measure_synthetic(records: int) -> tuple[dict[str, list[float]], Counter[tuple[str, str]]]:
    """The absolute errors by name, and how often something is not measured for which reason."""
    errors: dict[str, list[float]] = {name: [] for name in TOLERANCE}
    missing: Counter[tuple[str, str]] = Counter()
    for number in range(records):
        record, truth, peaks = synthesize_known(np.random.default_rng([17, number]))
        try:
            measures, _ = Found.of(record).measure(0.0, SECONDS)
        except RecordError as error:
            missing["recording", str(error)] += 1
            continue
        missing.update(measures.missing.items())
        compare(measures, truth, peaks, errors)
    return errors, missing


def compare(measures: Measures, truth: dict[str, float], peaks: np.ndarray, errors: dict[str, list[float]]) -> None:
    """Adds the absolute errors of one recording: the rate over its measured peaks, of leads' ST levels the largest."""
    if measures.rate is not None:
        between = peaks[(peaks > measures.peaks[0] - 0.05) & (peaks < measures.peaks[-1] + 0.05)]
        errors["rate"].append(abs(measures.rate - 60 / np.diff(between).mean()))
    for name in ("pr", "qrs", "qt"):
        if getattr(measures, name) is not None:
            errors[name].append(abs(getattr(measures, name) - truth[name]))
    if measures.axis is not None:
        errors["axis"].append(abs((measures.axis - truth["axis"] + 180) % 360 - 180))
    if measures.amplitudes is not None:
        errors["st"].append(abs(measures.amplitudes.st[LEADS.index("V2")] - truth["st"]))


def synthesize_known(rng: np.random.Generator) -> tuple[Record, dict[str, float], np.ndarray]:
    """A recording of 10 s, its true intervals in ms, axis in degrees and ST level of V2 in mV, and its R peaks in s.

    P, Q, R, S and T are Gaussians of a dipole in three directions, which begin and end two standard deviations from their
    centres; P, QRS, T and the next P do not overlap. The axis is that of the area of QRS.
    """
    while True:
        interval = 60 / rng.uniform(45, 130)
        qt, qrs, pr = rng.uniform(0.33, 0.42) * min(interval, 1.2) ** 0.5, rng.uniform(0.065, 0.125), rng.uniform(0.11, 0.22)
        if qt - qrs > 0.16 and qt + pr + 0.03 < interval:
            break
    width = qrs / 0.1
    q, r, s = 0.007 * width, 0.0125 * width, 0.0115 * width  # standard deviations in s
    t, p = min(rng.uniform(0.035, 0.05), (qt - qrs) / 5), min(rng.uniform(0.016, 0.024), pr / 5)
    angle = np.deg2rad(rng.uniform(-30, 90))
    x, y = np.cos(angle), np.sin(angle)
    # Centre in s from the beginning of QRS, standard deviation in s, dipole in mV: x left, y down, z front.
    waves = [
        (EDGE * p - pr, p, rng.uniform(0.1, 0.2) * np.array([0.6, 0.8, 0.2])),
        (EDGE * q, q, rng.uniform(0.1, 0.25) * np.array([-0.5, -0.2, 0.9])),
        ((EDGE * (q - s) + qrs) / 2, r, rng.uniform(0.8, 1.4) * np.array([x, y, -0.15])),
        (qrs - EDGE * s, s, rng.uniform(0.3, 0.5) * np.array([-0.4, -0.2, -0.8])),
        (qt - EDGE * t, t, rng.uniform(0.2, 0.4) * np.array([0.8 * x, 0.8 * y, 0.35])),
    ]
    time = np.arange(round(SECONDS * RATE)) / RATE
    dipole, starts, at = np.zeros((3, len(time))), [], -rng.uniform(0, interval)
    while at < SECONDS + 1:
        at += interval * (1 + 0.02 * rng.standard_normal())
        starts.append(at)
        for centre, width, vector in waves:
            dipole += vector[:, None] * np.exp(-0.5 * ((time - at - centre) / width) ** 2)
    clean = project(dipole)
    noisy = clean + rng.uniform(0, 0.015) * rng.standard_normal(clean.shape)
    breath = np.sin(2 * np.pi * (rng.uniform(0.15, 0.35) * time + rng.random()))
    noisy += rng.uniform(0, 0.15) * rng.uniform(-1, 1, (12, 1)) * breath
    noisy += rng.uniform(0, 0.02) * rng.uniform(0, 1, (12, 1)) * np.sin(2 * np.pi * (50 * time + rng.random()))
    area = sum(width * vector for _, width, vector in waves[1:4])
    st = project(sum(v[:, None] * np.exp(-0.5 * ((qrs + 0.06 - c) / w) ** 2) for c, w, v in waves))[LEADS.index("V2"), 0]
    truth = {"pr": 1000 * pr, "qrs": 1000 * qrs, "qt": 1000 * qt, "st": float(st)}
    truth["axis"] = float(np.rad2deg(np.arctan2(area[1], area[0])))
    return Record(noisy.astype(np.float32), RATE, LEADS), truth, np.array(starts) + waves[2][0]


def project(dipole: np.ndarray) -> np.ndarray:
    """The twelve leads of a dipole [3, N], in mV."""
    i, ii = dipole[0], np.cos(np.pi / 3) * dipole[0] + np.sin(np.pi / 3) * dipole[1]
    chest = np.cos(CHEST)[:, None] * dipole[0] + np.sin(CHEST)[:, None] * dipole[2]
    return np.concatenate([np.stack([i, ii, ii - i, -(i + ii) / 2, i - ii / 2, ii - i / 2]), chest])


def draw(root: Path, path: Path) -> None:
    """Draws 20 recordings on one sheet."""
    with (root / "ptbxl_database.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    figure = Figure(figsize=(16, 20), dpi=80)
    for place, row in enumerate(np.linspace(0, len(rows) - 1, 20).astype(int)):
        record = read_record(root / rows[row]["filename_hr"])
        axes = figure.add_subplot(5, 4, place + 1)
        found = Found.of(record)
        measures, _ = found.measure(0.0, record.signal.shape[1] / record.sample_rate)
        title = f"PTB-XL {rows[row]['ecg_id']}: {caption(measures)}"
        draw_measured(axes, found.signal, record.sample_rate, measures, title, 2.5)
    figure.subplots_adjust(0.02, 0.005, 0.995, 0.985, 0.08, 0.08)
    figure.savefig(path)
    with Image.open(path) as picture:
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=32).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
