"""CODE-15%, on small files in its layout: HDF5 with exam_id and tracings, and exams.csv."""

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_jax.corpora.example import Example, Rejected, split_of
from ecgbyte_jax.corpora.labels.code15 import SAMPLE_RATE, read_exams
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.synthetic import random_heart, synthesize
from ecgbyte_jax.errors import CorpusError, RecordError
from ecgbyte_jax.prepare.corpus import Corpus, Folders
from ecgbyte_jax.prepare.symbol_cache import record_key
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages.prepare import prepare

h5py = pytest.importorskip("h5py", reason="the extra code15 is not installed")

LABELS = ["1dAVb", "RBBB", "LBBB", "SB", "ST", "AF"]
COLUMNS = ["exam_id", "age", "is_male", "nn_predicted_age", *LABELS, "patient_id", "death", "timey", "normal_ecg", "trace_file"]
GOOD = dict.fromkeys([*LABELS, "normal_ecg"], "False") | {
    "age": "38", "is_male": "True", "nn_predicted_age": "40.16", "death": "", "timey": "", "trace_file": "exams_part0.hdf5",
}  # fmt: skip


def tracings(count: int) -> np.ndarray:
    """float32 [count, 4096, 12] in 1e-4 V: synthetic ECGs of 7 or 10 s between zeros, and an empty last row as in the set."""
    rows = np.zeros((count + 1, 4096, 12), np.float32)
    for number in range(count):
        rng = np.random.default_rng(number)
        samples = (2800, 4000)[number % 2]
        start = (4096 - samples) // 2
        rows[number, start : start + samples] = (synthesize(random_heart(rng), rng)[:, :samples] / 100).T
    return rows


def write_part(path: Path, ids: list[int], values: np.ndarray, **layout) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("exam_id", data=np.array([*ids, *[0] * (len(values) - len(ids))], np.int64))
        file.create_dataset("tracings", data=values, **layout)


def write_exams(root: Path, *changes: dict) -> None:
    rows = [GOOD | {"exam_id": str(n), "patient_id": f"{n // 2}"} | change for n, change in enumerate(changes, start=1)]
    with (root / "exams.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read(root: Path, types: tuple[str, ...] = ()) -> list[Example | Rejected]:
    return list(read_exams(root, types))


@pytest.fixture
def root(tmp_path) -> Path:
    """Four exams, the second with two labels; the rows of the part are in another order than those of the table."""
    write_exams(tmp_path, {}, {"RBBB": "True", "AF": "True", "is_male": "False", "age": "81"}, {}, {})
    write_part(tmp_path / "exams_part0.hdf5", [4, 2, 3, 1], tracings(4))
    return tmp_path


def test_exams_become_questions_in_the_order_of_the_part(root):
    examples = read(root)
    assert [*dict.fromkeys(e.id.partition("/")[0] for e in examples)] == ["4", "2", "3", "1"]
    asked = {e.id: (e.question, e.answer) for e in examples}
    names = "first degree atrioventricular block, right bundle branch block, left bundle branch block, sinus bradycardia, "
    names += "sinus tachycardia or atrial fibrillation"
    assert asked["2/findings"] == (
        f"Which of these does this ECG show: {names}?", "right bundle branch block, atrial fibrillation",
    )  # fmt: skip
    assert asked["1/findings"][1] == "none" and asked["2/age"][1] == "81" and asked["2/sex"][1] == "female"
    assert asked["2/atrial fibrillation"] == ("Does this ECG show atrial fibrillation?", "yes")
    assert {(e.id[0], e.patient, e.split) for e in examples} == {
        (str(n), f"{n // 2}", split_of(f"{n // 2}")) for n in range(1, 5)
    }


@pytest.mark.parametrize("layout", [{}, {"chunks": (2, 64, 1), "compression": "gzip"}])
def test_a_row_is_read_in_mv_and_without_the_zeros_around_it(root, layout):
    values = tracings(4)
    write_part(root / "exams_part0.hdf5", [4, 2, 3, 1], values, **layout)
    sources = {e.id.partition("/")[0]: e.records[0] for e in read(root)}
    for row, exam in enumerate("4231"):
        record = sources[exam].read()
        start, samples = ((648, 2800), (48, 4000))[row % 2]
        assert record.signal.shape == (12, samples) and record.signal.dtype == np.float32
        assert record.sample_rate == SAMPLE_RATE and record.leads == LEADS
        assert np.allclose(record.signal, values[row, start : start + samples].T / 10)
    assert sources["4"].part.rows == (2 if layout else 1)


def test_a_change_of_the_part_or_another_row_is_another_recording_to_the_cache(root):
    keys = [record_key(source) for source in dict.fromkeys(e.records[0] for e in read(root))]
    assert len({*keys}) == 4
    os.utime(root / "exams_part0.hdf5", (1, 1))
    changed = [record_key(source) for source in dict.fromkeys(e.records[0] for e in read(root))]
    assert not {*keys} & {*changed}
    os.utime(root / "exams_part0.hdf5", (1, 1))
    write_exams(root, *[{}] * 4)  # labels are not part of the signal
    assert changed == [record_key(source) for source in dict.fromkeys(e.records[0] for e in read(root))]


def test_the_unit_is_found_and_one_that_does_not_fit_is_refused(root):
    for scale, fits in ((1.0, True), (0.1, True), (10.0, False), (1e-4, False), (100.0, False)):
        write_part(root / "exams_part0.hdf5", [4, 2, 3, 1], scale * tracings(4))
        items = read(root)
        if fits:
            assert 1 < np.ptp(items[0].records[0].read().signal) < 5
        else:
            assert len(items) == 4 and all("1e-4 V or mV expected" in item.reason for item in items)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def without(path: Path, name: str) -> None:
    with h5py.File(path, "a") as file:
        del file[name]


@pytest.mark.parametrize(
    "damage, reason",
    [
        (Path.unlink, "no such part"),
        (cut, "truncated"),
        (lambda path: path.write_text("x"), "not readable as HDF5"),
        (lambda path: without(path, "tracings"), r"datasets ['exam_id'] found"),
        (lambda path: without(path, "exam_id"), r"datasets ['tracings'] found"),
        (lambda path: write_part(path, [4, 2, 3, 1], tracings(3)[:, :, :8]), "tracings float32[4, 4096, 8] and exam_id [4]"),
        (lambda path: write_part(path, [4, 2, 3, 1], tracings(2)), "tracings float32[3, 4096, 12] and exam_id [4]"),
        (lambda path: write_part(path, [4, 2, 3, 1], np.zeros((4, 4096, 12))), "no recording found"),
    ],
)
def test_the_exams_of_a_part_that_cannot_be_used_are_set_aside_and_those_of_others_read(root, damage, reason):
    write_exams(root, *[{}] * 4, {"trace_file": "exams_part1.hdf5"})
    write_part(root / "exams_part1.hdf5", [5], tracings(1))
    damage(root / "exams_part0.hdf5")
    items = read(root, ("single-choose",))
    assert Counter(map(type, items)) == {Rejected: 4, Example: 2}
    assert all(reason in item.reason and "\n" not in item.reason for item in items if isinstance(item, Rejected))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"exam_id": "2"}, "the exam_id is in an earlier row"),
        ({"exam_id": "x"}, "exam_id 'x'"),
        ({"patient_id": " "}, "patient_id ' '"),
        ({"AF": "1"}, "{'AF': '1'} found"),
        ({"trace_file": "../exams_part0.hdf5"}, "trace_file '../exams_part0.hdf5'"),
        ({"exam_id": "9"}, "no such exam_id"),
        ({"exam_id": "7"}, "the exam_id is there twice"),
    ],
)
def test_a_bad_exam_is_set_aside_and_the_others_are_read(root, change, reason):
    write_exams(root, {}, {}, change, {})
    write_part(root / "exams_part0.hdf5", [4, 2, 7, 7, 1], tracings(5))
    bad, *others = read(root, ("single-choose",))
    assert isinstance(bad, Rejected) and reason in bad.reason and {e.id[0] for e in others} == {"1", "2", "4"}


def test_an_age_that_is_none_is_not_asked_and_zeros_alone_are_no_ecg(root):
    write_exams(root, {"age": "-3"}, {"age": ""}, {"age": "999"}, {"age": "40.5"})
    values = tracings(4)
    values[2] = 0
    write_part(root / "exams_part0.hdf5", [4, 2, 3, 1], values)
    examples = read(root)
    assert not [e for e in examples if e.id.endswith("/age")]
    with pytest.raises(RecordError, match=r"exams_part0\.hdf5#3: zeros alone found"):
        next(e for e in examples if e.id.startswith("3/")).records[0].read()


def test_a_part_that_is_truncated_after_it_was_opened_is_a_bad_recording(root):
    source = read(root)[0].records[0]
    cut(root / "exams_part0.hdf5")
    with pytest.raises(RecordError, match=r"cannot be read: .*truncated"):
        source.read()


def test_without_the_table_it_says_where_to_get_the_set(tmp_path):
    with pytest.raises(CorpusError, match=r"no exams\.csv .*zenodo"):
        read(tmp_path)


def test_what_is_read_is_written_or_set_aside(config, tmp_path):
    count = 24
    write_exams(tmp_path, *[{"AF": str(n % 3 == 0)} for n in range(count)])
    values = tracings(count)
    values[3, :, 4] = 7.0  # a flat lead, found in cleaning
    write_part(tmp_path / "exams_part0.hdf5", [*range(1, count)], values)
    config.data.corpus, config.data.synthetic_records, config.data.root = "code15", 0, str(tmp_path)
    config.data.max_bad_fraction = 0.2
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    bad = (tmp_path / "w/prepare/quarantine.jsonl").read_text().splitlines()
    corpus = Corpus.of(read(tmp_path, config.data.question_types), Folders(tmp_path, tmp_path, tmp_path), tmp_path / "q", 1.0)
    of_flat = sum(e.records[0].exam == "4" for e in corpus.examples)
    assert len(bad) == 1 + of_flat and sum("flat" in line for line in bad) == of_flat
