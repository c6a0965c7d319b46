"""Findings in reports: what is stated, denied and uncertain, and the scores of missed and extra ones."""

import numpy as np
import pytest

from ecgbyte_jax.evaluate.findings import FINDINGS, count, findings_in, make_findings
from ecgbyte_jax.evaluate.intervals import draw
from ecgbyte_jax.evaluate.metrics import Scorers
from ecgbyte_jax.evaluate.results import make_results
from ecgbyte_jax.report.words import score_tables
from tests.evaluate.test_ecg_bench import row


@pytest.mark.parametrize(
    "report, stated",
    [
        ("sinusrhythmus linkstyp sonst normales ekg", {"sinus rhythm", "left axis deviation", "normal ECG"}),
        ("supraventrikulÄre extrasystole(n) sinusrhythmus", {"premature atrial beats", "sinus rhythm"}),
        ("ventrikulÄre extrasystole(n)", {"premature ventricular beats"}),
        ("fÖrmaksflimmer vÄnster kammarhypertrofi", {"atrial fibrillation", "left ventricular hypertrophy"}),
        ("Atrial fibrillation. Left bundle branch block. Abnormal ECG.", {"atrial fibrillation", "left bundle branch block"}),
        ("Sinus bradycardia with 1st degree A-V block", {"sinus rhythm", "sinus bradycardia", "first-degree AV block"}),
        ("Inferior infarct - age undetermined. Low QRS voltages", {"myocardial infarction", "low voltage"}),
        ("inferiorer infarkt     wahrscheinlich alt", {"myocardial infarction"}),
        ("qs complexes in v2 suggesting old anteroseptal myocardial infarction.", {"myocardial infarction"}),
        ("trace only requested.", set()),
    ],
)
def test_reports_of_every_language_state_their_findings(report, stated):
    assert findings_in(report) == dict.fromkeys(stated, True)


@pytest.mark.parametrize(
    "report",
    [
        "no evidence of atrial fibrillation.",
        "kein vorhofflimmern",
        "ohne vorhofflimmern",
        "inget fÖrmaksflimmer",
        "without ischaemia or atrial fibrillation.",
        "atrial fibrillation is not seen.",
        "no evidence of acute ischemia or infarction.",
        "no atrial fibrillation, left bundle branch block, or infarct",
        "keine zeichen einer akuten ischämie oder eines infarkts",
        "neither ischemia nor infarct",
        "atrial fibrillation is no longer present",
        "ischemia is unlikely",
        "infarkt unwahrscheinlich",
    ],
)
def test_a_denied_finding_is_none(report):
    assert findings_in(report) == {}


@pytest.mark.parametrize(
    "report",
    [
        "possible old inferior myocardial infarction.",
        "old anteroseptal myocardial infarction cannot be excluded.",
        "cannot rule out anteroseptal myocardial damage.",
        "verdacht auf inferioren infarkt",
        "septaler infarkt nicht auszuschliessen",
        "anterolateraler infarkt mÖglich",
        "fraglicher infarkt",
        "anteroseptal myokardskada bÖr ÖvervÄgas",
    ],
)
def test_an_uncertain_finding_is_not_stated(report):
    assert findings_in(report) == {"myocardial infarction": False}


def test_a_full_stop_ends_what_a_word_reaches_and_the_surest_mention_counts():
    assert findings_in("no ischaemia. atrial fibrillation.") == {"atrial fibrillation": True}
    assert findings_in("possible infarct. old infarct.") == {"myocardial infarction": True}
    assert findings_in("el-axel ej bestämmbar st-t sänkning") == {"ST depression": True}
    for report in ("no p waves, atrial fibrillation", "keine p-wellen vorhofflimmern"):
        assert findings_in(report) == {"atrial fibrillation": True}
    assert findings_in("inga p-våg funna vänster el-axel") == {"left axis deviation": True}
    assert findings_in("no ischaemia but atrial fibrillation") == {"atrial fibrillation": True}


REPORTS = [
    ("a", "sinus rhythm. lvh.", "sinus rhythm."),  # misses one
    ("a", "sinus rhythm.", "sinus rhythm. possible lvh."),  # has one more
    ("b", "possible lvh.", "lvh."),  # the reference is unsure
    ("c", "atrial fibrillation.", "sinus rhythm."),  # both
]


def test_missed_and_extra_findings_are_counted_but_not_where_the_reference_is_unsure():
    hits, missed, extra = count([r for _, r, _ in REPORTS], [a for _, _, a in REPORTS]).sum(axis=0).astype(int)
    names = [*FINDINGS]
    assert {names[i]: int(n) for i, n in enumerate(hits) if n} == {"sinus rhythm": 2}
    assert {names[i] for i in np.flatnonzero(missed)} == {"left ventricular hypertrophy", "atrial fibrillation"}
    assert {names[i] for i in np.flatnonzero(extra)} == {"left ventricular hypertrophy", "sinus rhythm"}


def test_scores_of_findings_and_of_a_resample_follow_from_the_counts():
    rows = [row(i, reference, answer, patient) for i, (patient, reference, answer) in enumerate(REPORTS)]
    found = make_findings(rows, {"model": "answer"}, 100, 0)
    assert found["scores"]["model"] == {
        "findings_micro_f1": pytest.approx(4 / 8),
        "findings_macro_f1": pytest.approx((4 / 5 + 0 + 0) / 3),  # sinus rhythm, hypertrophy, fibrillation
        "findings_missed": pytest.approx(2 / 4),
        "findings_extra": pytest.approx(2 / 4),
    }
    micro = [4 * a / (6 * a + 2 * c) for a, _, c in next(draw(3, 100, 0)).astype(int) if a or c]
    assert found["intervals"]["model"]["findings_micro_f1"] == pytest.approx(np.percentile(micro, [2.5, 97.5]).tolist())
    assert found["by_finding"]["model"]["sinus rhythm"] == [2, 0, 1]


def test_only_reports_have_findings_and_the_page_shows_them():
    rows = [row(i, reference, answer, patient, kind="") for i, (patient, reference, answer) in enumerate(REPORTS)]
    assert "findings" not in make_results(rows, Scorers(), 100, 0)
    results = make_results(rows, Scorers(), 100, 0, reports={""})
    tables = {table.caption.split(",")[0]: table for table in score_tables(results)}
    assert tables["Findings in 4 reports"].head == ("system", "micro F1", "macro F1", "missed findings", "extra findings")
    assert tables["The model's findings"].rows[0] == ("sinus rhythm", "2", "2", "0", "1")
    rows[0]["meta"]["question_type"] = "ptb-test-report"
    assert make_results(rows, Scorers(), 100, 0)["findings"]["reports"] == 1
    for part, each in zip(("ecg_qa", "ptbxl", "mimic", "cpsc"), rows):
        each["meta"] = {"mixture_part": part}
    assert make_results(rows, Scorers(), 100, 0, reports={"ptbxl", "mimic"})["findings"]["reports"] == 2
