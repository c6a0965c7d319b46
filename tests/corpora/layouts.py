"""Data in the layouts of other data sets, written from real PTB-XL recordings."""

import csv
import json
from pathlib import Path

import numpy as np
import wfdb

from ecgbyte_jax.ecg.records import read_record

MIMIC_LEADS = ["I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6"]
GAIN = 200.0  # adu/mV


def mimic_name(patient: int, study: int) -> str:
    """The path of a recording as record_list.csv writes it."""
    return f"files/p{patient // 10000}/p{patient}/s{study}/{study}"


def write_mimic(root: Path, originals: list[Path], patients: list[int]) -> list[int]:
    """Writes recordings with MIMIC's folders, lead order, gain and two tables; returns the study ids."""
    studies = [40_000_000 + number for number in range(len(originals))]
    rows = []
    for original, patient, study in zip(originals, patients, studies):
        record, path = read_record(original), root / mimic_name(patient, study)
        path.parent.mkdir(parents=True, exist_ok=True)
        signal = record.signal[[record.leads.index(lead) for lead in MIMIC_LEADS]]
        wfdb.wrsamp(
            path.name, fs=500, units=["mV"] * 12, sig_name=MIMIC_LEADS, d_signal=np.round(signal.T * GAIN).astype(np.int64),
            fmt=["16"] * 12, adc_gain=[GAIN] * 12, baseline=[0] * 12, write_dir=str(path.parent),
        )  # fmt: skip
        rows.append({"subject_id": patient, "study_id": study, "file_name": study, "path": mimic_name(patient, study)})
    write_csv(root / "record_list.csv", rows)
    lines = [f"report_{n}" for n in range(18)]
    reports = [
        dict.fromkeys(["subject_id", "study_id", *lines], "")
        | {"subject_id": row["subject_id"], "study_id": row["study_id"], "report_0": "Sinus rhythm", "report_2": "Normal ECG."}
        for row in rows
    ]
    write_csv(root / "machine_measurements.csv", reports)
    return studies


def write_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
