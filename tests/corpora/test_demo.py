import csv
import filecmp
import json

import numpy as np

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.corpora.example import Example
from ecgbyte_jax.corpora.ptbxl import read_reports
from ecgbyte_jax.ecg.records import LEADS, read_record
from ecgbyte_jax.ecg.synthetic import random_heart, synthesize


def test_layout_and_columns_are_ptbxl_s(tmp_path, shared):
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 3, seed=0)
    with (tmp_path / "ptbxl/ptbxl_database.csv").open() as ours, (shared / "data/ptbxl/ptbxl_database.csv").open() as theirs:
        assert next(csv.reader(ours)) == next(csv.reader(theirs))
    assert (tmp_path / "ptbxl/scp_statements.csv").is_file()
    real = (shared / "data/ptbxl/records500/00000/00003_hr.hea").read_text().split()
    made = (tmp_path / "ptbxl/records500/00000/00003_hr.hea").read_text().split()
    assert made[0:4] == real[0:4] and made[5:7] == real[5:7]


def test_records_hold_the_synthetic_signal(tmp_path):
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 2, seed=5)
    record = read_record(tmp_path / "ptbxl/records500/00000/00002_hr")
    rng = np.random.default_rng([5, 2])
    heart = random_heart(rng)
    rng.integers(25, 89), rng.integers(2)  # age and sex are drawn in between
    np.testing.assert_allclose(record.signal * 1000, synthesize(heart, rng), atol=1e-3)
    assert record.leads == LEADS


def test_answers_follow_from_the_parameters(tmp_path):
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 40, seed=1)
    answers = {}
    for split in ("train", "valid", "test"):
        for row in json.loads((tmp_path / f"ecgqa/ptbxl/template/{split}/00000.json").read_text()):
            answers[row["ecg_id"][0], row["template_id"]] = row["answer"]
    for id in range(1, 41):
        heart = random_heart(np.random.default_rng([1, id]))
        assert answers[id, 0] == ["yes" if heart.voltage < 0.5 else "no"]
        assert (answers[id, 1] == ["none"]) == (heart.block == "") and (heart.block or "none") in answers[id, 1][0]
        assert (heart.infarction or "none") in answers[id, 2][0]
        assert (answers[id, 3] == ["atrial fibrillation"]) == heart.fibrillation


def test_the_reports_are_read_as_ptbxl_s(tmp_path):
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 20, seed=0)
    examples = list(read_reports(tmp_path / "ptbxl", 500, "why?"))
    assert all(isinstance(e, Example) for e in examples) and {e.split for e in examples} == {"train", "valid", "test"}


def test_the_same_seed_writes_the_same_files(tmp_path):
    for name in ("a", "b"):
        write_demo(tmp_path / name / "ptbxl", tmp_path / name / "ecgqa", 4, seed=2)
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    _, different, missing = filecmp.cmpfiles(tmp_path / "a", tmp_path / "b", files, shallow=False)
    assert len(files) == 13 and not different and not missing
