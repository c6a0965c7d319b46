import ast
import csv

import pytest

from ecgbyte_jax.corpora.example import Example, Rejected
from ecgbyte_jax.corpora.ptbxl import DATABASE, read_reports
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.errors import CorpusError

COLUMNS = ["ecg_id", "patient_id", "report", "strat_fold", "filename_lr", "filename_hr"]
GOOD = ["7", "15709.0", "sinus rhythm", "3", "records100/00000/00007_lr", "records500/00000/00007_hr"]


def write(root, *rows, columns=COLUMNS):
    with (root / DATABASE).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def changed(**fields):
    return [fields.get(name, value) for name, value in zip(COLUMNS, GOOD)]


def test_a_row_becomes_an_example(tmp_path):
    write(tmp_path, GOOD)
    record = WfdbRecord(tmp_path, "records500/00000/00007_hr")
    assert list(read_reports(tmp_path, 500, "why?")) == [Example("7", "15709", "train", (record,), "why?", "sinus rhythm")]


def test_patients_may_have_names_and_the_file_a_byte_order_mark(tmp_path):
    write(tmp_path, changed(patient_id="P001"))
    path = tmp_path / DATABASE
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert next(read_reports(tmp_path, 500, "why?")).patient == "P001"


def test_a_row_that_is_not_utf_8_is_rejected(tmp_path):
    write(tmp_path, changed(report="sinusrhythmus schräg"))
    path = tmp_path / DATABASE
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))
    bad = next(read_reports(tmp_path, 500, "why?"))
    assert isinstance(bad, Rejected) and bad.reason == "line 2: the row is not UTF-8"


def test_100_hz_reads_the_other_files(tmp_path):
    write(tmp_path, GOOD)
    assert next(read_reports(tmp_path, 100, "why?")).records == (WfdbRecord(tmp_path, "records100/00000/00007_lr"),)


@pytest.mark.parametrize("fold, split", [("1", "train"), ("8", "train"), ("9", "valid"), ("10", "test")])
def test_folds_determine_the_splits(tmp_path, fold, split):
    write(tmp_path, changed(strat_fold=fold))
    assert next(read_reports(tmp_path, 500, "why?")).split == split


STATEMENTS = ",diagnostic,form,diagnostic_class\nNORM,1.0,,NORM\nNDT,1.0,1.0,STTC\nODD,1.0,,\nLAO/LAE,1.0,,HYP\nSR,,,\n"


@pytest.mark.parametrize(
    "codes, kept",
    [
        ("{'NORM': 100.0, 'SR': 0.0}", True),
        ("{'LAO/LAE': 50.0}", True),
        ("{'NDT': 0.0}", True),  # the published code ignores the likelihood
        ("{'SR': 100.0, 'ODD': 100.0}", False),
        ("{}", False),
    ],
)
def test_the_published_split_rejects_recordings_without_diagnostic_superclass(tmp_path, codes, kept):
    (tmp_path / "scp_statements.csv").write_text(STATEMENTS)
    write(tmp_path, [*changed(strat_fold="9"), codes], columns=[*COLUMNS, "scp_codes"])
    (item,) = read_reports(tmp_path, 500, "why?", published_split=True)
    assert item.split == "test" if kept else "no diagnostic superclass" in item.reason
    assert next(read_reports(tmp_path, 500, "why?")).split == "valid"


def test_the_published_split_of_the_real_rows(shared):
    """Counted with only the csv module: a recording is kept if one of its codes has a diagnostic class."""
    with (shared / "data/ptbxl/scp_statements.csv").open() as file:
        classes = {row[""]: row["diagnostic_class"] for row in csv.DictReader(file)}
    with (shared / "data/ptbxl" / DATABASE).open() as file:
        rows = list(csv.DictReader(file))
    kept = {row["ecg_id"] for row in rows if any(classes[code] for code in ast.literal_eval(row["scp_codes"]))}
    items = list(read_reports(shared / "data/ptbxl", 500, "why?", published_split=True))
    dropped = {item.id for item in items if isinstance(item, Rejected) and "superclass" in item.reason}
    assert dropped == {row["ecg_id"] for row in rows} - kept and 0 < len(dropped) < 20
    folds = {row["ecg_id"]: int(row["strat_fold"]) for row in rows}
    split = {item.id: item.split for item in items if isinstance(item, Example)}
    assert all(split[id] == ("train" if folds[id] < 8 else "valid" if folds[id] == 8 else "test") for id in split)


@pytest.mark.parametrize(
    "field, value", [("report", "  "), ("strat_fold", "x"), ("strat_fold", "11"), ("patient_id", ""), ("filename_hr", "")]
)
def test_a_bad_row_is_rejected_with_a_reason_and_the_others_are_read(tmp_path, field, value):
    write(tmp_path, changed(**{field: value}), GOOD)
    bad, good = read_reports(tmp_path, 500, "why?")
    assert isinstance(bad, Rejected) and bad.id == "7" and bad.reason and DATABASE in bad.file
    assert isinstance(good, Example)


def test_missing_database_says_where_to_get_it(tmp_path):
    with pytest.raises(CorpusError, match=r"PTB-XL 1\.0\.3 \(CC BY 4\.0.*physionet.*experiments/demo\.py needs no download"):
        list(read_reports(tmp_path, 500, "why?"))


def test_missing_column_and_odd_rate_are_named(tmp_path):
    write(tmp_path, GOOD[:-1], columns=COLUMNS[:-1])
    with pytest.raises(CorpusError, match="filename_hr"):
        list(read_reports(tmp_path, 500, "why?"))
    with pytest.raises(CorpusError, match="250 found"):
        list(read_reports(tmp_path, 250, "why?"))


def test_the_real_rows_are_all_accounted_for(shared):
    items = list(read_reports(shared / "data/ptbxl", 500, "why?"))
    rejected = [f for f in items if isinstance(f, Rejected)]
    assert len(items) == 388 and [(r.id, r.reason) for r in rejected] == [("443", "the answer is empty")]
    by_split = {
        split: {e.patient for e in items if isinstance(e, Example) and e.split == split} for split in ("train", "valid", "test")
    }
    assert not by_split["train"] & by_split["test"] and not by_split["train"] & by_split["valid"]
