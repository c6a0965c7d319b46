import pytest

from ecgbyte_jax.corpora.example import Example, Rejected, split_of
from ecgbyte_jax.corpora.mimic import read_reports
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.errors import CorpusError
from tests.corpora.layouts import mimic_name, write_csv


def write(root, *changes, reports=True):
    """Three studies of two patients; `changes` apply to their rows of record_list.csv."""
    rows = [
        {"subject_id": p, "study_id": s, "path": mimic_name(p, s)} for p, s in ((10000032, 1), (10000032, 2), (10000099, 3))
    ]
    for number, change in enumerate(changes):
        rows[number] |= change
    write_csv(root / "record_list.csv", rows)
    if reports:
        lines = {"report_1": "", "report_2": "End"}
        write_csv(root / "machine_measurements.csv", [{"study_id": n, "report_0": f"Line {n}."} | lines for n in (1, 2, 3)])


def test_a_recording_becomes_an_example_with_its_lines_joined(tmp_path):
    write(tmp_path)
    items = list(read_reports(tmp_path, "why?"))
    record = WfdbRecord(tmp_path, "files/p1000/p10000032/s1/1")
    assert items[0] == Example("1", "10000032", split_of("10000032"), (record,), "why?", "Line 1. End")
    assert len(items) == 3 and items[0].split == items[1].split


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"path": "../../etc/passwd"}, "inside the data's root"),
        ({"subject_id": ""}, "the subject_id is empty"),
        ({"study_id": "9"}, "no row with this study_id"),
        ({"path": mimic_name(10000032, 1)}, "is in an earlier row"),
    ],
)
def test_a_bad_row_is_rejected_and_the_others_are_read(tmp_path, change, reason):
    write(tmp_path, {}, change)
    first, bad, last = read_reports(tmp_path, "why?")
    assert isinstance(first, Example) and isinstance(last, Example) and isinstance(bad, Rejected) and reason in bad.reason


def test_missing_tables_say_where_to_get_them(tmp_path):
    with pytest.raises(CorpusError, match=r"no record_list\.csv .*physionet"):
        list(read_reports(tmp_path, "why?"))
    write(tmp_path, reports=False)
    with pytest.raises(CorpusError, match=r"no machine_measurements\.csv .*physionet"):
        list(read_reports(tmp_path, "why?"))
