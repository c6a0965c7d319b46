import ast
import csv
from collections import Counter

import pytest

from ecgbyte_jax.corpora.example import Example, Rejected
from ecgbyte_jax.corpora.labels.statements import read_statements
from ecgbyte_jax.corpora.ptbxl import DATABASE, STATEMENTS
from ecgbyte_jax.errors import CorpusError

COLUMNS = ["ecg_id", "patient_id", "report", "strat_fold", "filename_lr", "filename_hr", "scp_codes", "age", "sex"]
NAMES = """,description,diagnostic_class,diagnostic_subclass
NORM,normal ECG,NORM,NORM
ISCAL,ischemic in anterolateral leads,STTC,ISCA
ISCAS,ischemic in anteroseptal leads,STTC,ISCA
SR,sinus rhythm,,
"""


def write(root, *codes: str, age="61.0", sex="1") -> None:
    (root / STATEMENTS).write_text(NAMES)
    with (root / DATABASE).open("w", newline="") as file:
        rows = [[n, n, "report", n, f"lr/{n}", f"hr/{n}", text, age, sex] for n, text in enumerate(codes, start=1)]
        csv.writer(file).writerows([COLUMNS, *rows])


def answers(root, label_set: str, question_types=("single-query", "single-choose")) -> dict[str, str]:
    items = [*read_statements(root, 500, label_set, question_types)]
    return {item.id: item.answer if isinstance(item, Example) else item.reason for item in items}


def test_a_statement_counts_whatever_its_likelihood_in_the_set_that_is_asked_for(tmp_path):
    write(tmp_path, "{'ISCAL': 0.0, 'ISCAS': 100.0, 'SR': 0.0}", "{'NORM': 35.0}", "{'SR': 0.0}")
    found = answers(tmp_path, "statements")
    assert found["1/findings"] == "ischemic in anterolateral leads, ischemic in anteroseptal leads, sinus rhythm"
    assert (found["2/findings"], found["3/findings"]) == ("normal ECG", "sinus rhythm")
    assert (found["1/age"], found["1/sex"]) == ("61", "female")
    for label_set, first in (("subclasses", "ischemia in anterior leads"), ("superclasses", "ST/T change")):
        found = answers(tmp_path, label_set)
        assert (found["1/findings"], found["2/findings"]) == (first, "normal ECG")
        assert found["3"] == f"no label of the set '{label_set}'"


def test_unknown_statements_keep_their_code_and_what_cannot_be_read_is_rejected(tmp_path):
    write(tmp_path, "{'NORM': 0.0, 'NEW': 0.0}", "NORM", "['NORM']", "{3: 1}", age="300.0", sex="")
    items = [*read_statements(tmp_path, 500, "statements", ("single-query",))]
    rejected, (known,) = items[:3], items[3:]
    assert all(item.reason == "scp_codes: a dictionary of statements expected" for item in rejected)
    assert known.answer == "normal ECG, SCP-ECG NEW" and known.meta["unnamed"] == ["SCP-ECG NEW"]


def test_without_the_names_of_the_statements_nothing_is_read(tmp_path):
    write(tmp_path, "{}")
    (tmp_path / STATEMENTS).unlink()
    with pytest.raises(CorpusError, match=r"data.root: no scp_statements.csv in .*, which names PTB-XL's statements"):
        next(read_statements(tmp_path, 500, "statements", ()))


@pytest.mark.parametrize(("label_set", "count"), [("superclasses", 5), ("subclasses", 23), ("statements", 71)])
def test_the_real_labels_are_those_of_the_tables(shared, label_set, count):
    """Counted with only the csv module, by code."""
    root = shared / "data/ptbxl"
    column = {"superclasses": "diagnostic_class", "subclasses": "diagnostic_subclass", "statements": ""}[label_set]
    with (root / STATEMENTS).open() as file:
        classes = {row[""]: row[column] for row in csv.DictReader(file)}
    with (root / DATABASE).open() as file:
        rows = [({classes[c] for c in ast.literal_eval(row["scp_codes"])} - {""}, row) for row in csv.DictReader(file)]
    assert len({*classes.values()} - {""}) == count
    items = [*read_statements(root, 500, label_set, ("single-verify",))]
    shown = Counter(item.question for item in items if isinstance(item, Example) and item.answer == "yes")
    assert sorted(shown.values()) == sorted(Counter(label for labels, _ in rows for label in labels).values())
    aside = {item.id for item in items if isinstance(item, Rejected)}
    assert aside == {row["ecg_id"] for labels, row in rows if not labels}
    folds = {row["ecg_id"]: int(row["strat_fold"]) for _, row in rows}
    assert all(item.strata[0].fold == folds[item.id.partition("/")[0]] for item in items if isinstance(item, Example))
