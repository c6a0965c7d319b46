"""CPSC 2018 and CSN: ten real recordings, and small ones in the same layout."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from ecgbyte_jax.corpora.example import Example, Rejected, split_of
from ecgbyte_jax.corpora.labels.challenge import CONDITIONS, CPSC, CSN, read_challenge
from ecgbyte_jax.corpora.labels.cpsc import REFERENCE
from ecgbyte_jax.corpora.labels.questions import Labelled, ask
from ecgbyte_jax.corpora.read import check_data
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.errors import CorpusError, RecordError, SettingsError
from ecgbyte_jax.prepare.corpus import open_corpus
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages.prepare import prepare


def write(
    root: Path, name: str, dx: str = "#Dx: 164889003,59118001", age: str = "85", sex: str = "Male", form: str = "4"
) -> None:
    """One second of a recording as the challenges write it: a header, and samples as MATLAB's `val` behind 24 bytes."""
    path = root / f"{name}.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = np.arange(12 * 500).reshape(12, 500).astype(np.int16)
    savemat(path, {"val": steps}, format=form)
    sums = steps.sum(axis=1).astype(np.int16)
    lines = [f"{path.name} 16+24 1000/mV 16 0 {row[0]} {sums[i]} 0 {LEADS[i]}" for i, row in enumerate(steps)]
    comments = [f"#Age: {age}", f"#Sex: {sex}", dx, "#Rx: Unknown"]
    path.with_suffix(".hea").write_text("\n".join([f"{path.stem} 12 500 500", *lines, *comments]) + "\n")


def read(root: Path, challenge=CSN, types=()) -> list[Example | Rejected]:
    return list(read_challenge(root, challenge, types))


def test_the_real_recordings_are_asked_about_by_name(shared):
    examples = read(shared / "data/cpsc2018", CPSC)
    assert len({e.patient for e in examples}) == 10 and len(examples) == 50
    first = {e.id: (e.question, e.answer, e.meta["question_type"]) for e in examples if e.patient == "A0001"}
    absent = next(id for id, (_, answer, _) in first.items() if answer == "no")
    assert first == {
        "A0001/findings": ("Which findings does this ECG show?", "right bundle branch block", "single-query"),
        "A0001/right bundle branch block": ("Does this ECG show right bundle branch block?", "yes", "single-verify"),
        absent: (f"Does this ECG show {absent[6:]}?", "no", "single-verify"),
        "A0001/age": ("How old is the patient of this ECG, in years?", "74", "single-query"),
        "A0001/sex": ("Is the patient of this ECG male or female?", "male", "single-choose"),
    }
    assert {e.split for e in examples} == {"train", "test"} and all(e.split == split_of(e.patient) for e in examples)


def test_the_real_recordings_are_prepared(shared, config, tmp_path):
    config.data.corpus, config.data.synthetic_records, config.data.root = "cpsc", 0, str(shared / "data/cpsc2018")
    prepare(Settings.of(config), Workdir(tmp_path))
    manifest = json.loads((tmp_path / "shards/manifest.json").read_text())
    assert {name: split["examples"] for name, split in manifest["splits"].items()} == {"train": 35, "valid": 0, "test": 15}


def test_codes_and_abbreviations_of_one_recording_are_the_same_questions(tmp_path):
    for folder, dx in (("early", "#Dx: AF,I-AVB,Normal"), ("late", "# Dx: 164889003,270492004, 426783006")):
        write(tmp_path / folder, "g1/A0001", dx)
    early, late = (read(tmp_path / folder, CPSC) for folder in ("early", "late"))
    assert [e.answer for e in early] == [e.answer for e in late]
    assert early[0].answer == "atrial fibrillation, first degree atrioventricular block, sinus rhythm"


def test_the_samples_of_a_matlab_file_are_read_as_they_were_written(tmp_path):
    write(tmp_path, "WFDBRecords/01/010/JS00001")
    (source,) = {e.records for e in read(tmp_path)}.pop()
    record = source.read()
    assert source == WfdbRecord(tmp_path, "WFDBRecords/01/010/JS00001") and record.leads == LEADS
    assert np.allclose(record.signal, np.arange(6000).reshape(12, 500) / 1000)
    write(tmp_path, "WFDBRecords/01/010/JS00001", form="5")  # whose samples begin elsewhere
    with pytest.raises(RecordError, match=r"JS00001\.mat: too long|do not match the header's checksum"):
        source.read()


def test_an_unknown_code_has_its_name_from_the_sets_own_table_or_is_its_own_name_and_counted(config, tmp_path, capsys):
    write(tmp_path, "JS00001", "#Dx: 164889003,777,888")
    write(tmp_path, "JS00002", "#Dx: 888")
    table = "Acronym Name,Full Name,Snomed_CT\nAFIB,Atrial Fibrillation,164889003\nODD,Odd Rhythm ,777\nNO,,888\n"
    (tmp_path / CONDITIONS).write_text(table)
    config.data.corpus, config.data.synthetic_records, config.data.root = "csn", 0, str(tmp_path)
    settings, workdir = Settings.of(config), Workdir(tmp_path / "w")
    corpus = open_corpus(settings, workdir, lineage.synthetic(settings, workdir))
    assert corpus.examples[0].answer == "atrial fibrillation, Odd Rhythm, SNOMED CT 888"
    assert "1 labels without a name are called by their codes: SNOMED CT 888 (2)" in capsys.readouterr().out


@pytest.mark.parametrize("age, sex", [("NaN", "Unknown"), ("-1", ""), ("300", "other")])
def test_what_is_not_known_of_a_patient_is_not_asked(tmp_path, age, sex):
    write(tmp_path, "JS00001", age=age, sex=sex)
    assert {e.meta["attribute_type"] for e in read(tmp_path)} == {"finding"}


@pytest.mark.parametrize("dx", ["#Rx: Unknown", "#Dx:", "#Dx: Unknown"])
def test_a_recording_without_diagnosis_is_set_aside(tmp_path, dx):
    write(tmp_path, "JS00001", dx)
    write(tmp_path, "JS00002")
    bad, *good = read(tmp_path)
    assert isinstance(bad, Rejected) and "no diagnosis found" in bad.reason and {e.patient for e in good} == {"JS00002"}


def test_a_recording_that_is_there_twice_is_read_once_and_others_sets_are_not(tmp_path):
    for name in ("a/JS00001", "b/JS00001", "a/HR00001"):
        write(tmp_path, name)
    bad, *good = read(tmp_path)
    assert "also at" in bad.reason and {str(e.records[0]) for e in good} == {str(tmp_path / "a/JS00001")}
    with pytest.raises(CorpusError, match=r"no recording of this set in .*physionet"):
        read(tmp_path, CPSC)


def write_first_release(root: Path, *rows: str, **recordings: dict) -> None:
    """Recordings as CPSC's own files hold them, in sets, with one table of their labels."""
    root.mkdir(parents=True, exist_ok=True)
    (root / REFERENCE).write_text("\n".join(["Recording,First_label,Second_label,Third_label", *rows]) + "\n")
    for number, (name, about) in enumerate(recordings.items()):
        path = root / f"TrainingSet{number + 1}/{name}.mat"
        path.parent.mkdir(exist_ok=True)
        savemat(path, {"ECG": about | {"data": np.arange(6000).reshape(12, 500) / 1000}}, do_compression=number % 2 == 0)


def test_the_first_release_asks_the_same_questions_as_its_copy_with_headers(tmp_path):
    write(tmp_path / "copy", "A0001", "#Dx: 59118001", age="74")
    write(tmp_path / "copy", "A0002", "#Dx: 164889003,429622005", age="Unknown", sex="Female")
    about = {"A0001": {"sex": "Male", "age": 74.0}, "A0002": {"sex": "Female", "age": np.nan}}
    write_first_release(tmp_path / "own", "A0001,5,,", "A0002,2,8,", **about)
    copy, own = ([(e.id, e.split, e.question, e.answer) for e in read(tmp_path / name, CPSC)] for name in ("copy", "own"))
    assert own == copy and {id for id, *_ in own} >= {"A0001/age", "A0001/sex", "A0002/sex"}
    sources = dict.fromkeys(source for e in read(tmp_path / "own", CPSC) for source in e.records)
    for source in sources:
        record = source.read()
        assert np.allclose(record.signal, np.arange(6000).reshape(12, 500) / 1000)
        assert (record.leads, record.sample_rate, record.signal.dtype) == (LEADS, 500.0, np.float32)
    with pytest.raises(CorpusError, match="no recording of this set"):
        read(tmp_path / "own", CSN)


def test_rows_and_files_of_the_first_release_that_do_not_fit_are_set_aside(tmp_path):
    known = {"sex": "Male", "age": 74.0}
    rows = ("A0001,5,,", "A0002,10,,", "A0003,1,,", "A0004,1,,", "A0004,2,,", "A0001,5,,")
    write_first_release(tmp_path, *rows, A0001=known, A0002=known, A0004=known, A0005=known)
    (tmp_path / "A0001.mat").write_bytes(b"not MATLAB")
    found = read(tmp_path, CPSC)
    reasons = {item.id: item.reason for item in found if isinstance(item, Rejected) and item.id != "A0001"}
    assert reasons == {
        "A0002": "line 3: labels ['10'] found, numbers from 1 to 9 expected",
        "A0003": "no file A0003.mat",
        "A0004": "line 6: labels ('AF',) found, and ('Normal',) in an earlier row",
        "A0005": "no row in REFERENCE.csv",
    }
    assert {e.patient for e in found if isinstance(e, Example)} == {"A0001"}
    (doubled,) = (item for item in found if isinstance(item, Rejected) and item.id == "A0001")
    assert "also at" in doubled.reason and "TrainingSet1" in doubled.file
    (source,) = {e.records for e in found if isinstance(e, Example) and e.patient == "A0001"}.pop()
    with pytest.raises(RecordError, match=r"A0001\.mat: not readable as MATLAB"):
        source.read()


def test_about_every_label_half_of_the_questions_are_answered_yes():
    rng = np.random.default_rng(0)
    drawn = rng.choice(["a", "b", "c"], 1000, p=[0.5, 0.3, 0.2])
    recordings = [Labelled(str(n), str(n), "train", WfdbRecord(Path(), str(n)), (label,)) for n, label in enumerate(drawn)]
    verified = [*ask(recordings, ("single-verify",))]
    assert len({e.id for e in verified}) == 2000
    for label in "abc":
        answers = Counter(e.answer for e in verified if e.question == f"Does this ECG show {label}?")
        assert 0.4 < answers["yes"] / answers.total() < 0.6, label
    assert [*ask(recordings, ("single-verify",))] == verified


def test_settings_without_effect_on_these_sets_are_refused(config):
    config.data.corpus, config.data.published_split = "csn", True
    config.data.question_types = ("comparison_irrelevant-query",)
    with pytest.raises(SettingsError, match=r"question_types.*expected for 'csn'; data\.published_split: 'csn'"):
        check_data(Settings.of(config).data)
