"""The report of a small run, as it is made and where parts of the run are missing."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from ecgbyte_jax.asking.worth import check_evaluated
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ConfigError, ReportError
from ecgbyte_jax.explain.views import file_stem
from ecgbyte_jax.report.page import Page
from ecgbyte_jax.report.sections import add_settings, leads_cut
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import AttendSettings, Settings
from ecgbyte_jax.stages.attend import attend, choose_rows
from ecgbyte_jax.stages.report import _originals, _plain_views, _trained_with, report
from experiments import demo
from tests.test_main import SMALL


def small_settings() -> ConfigDict:
    """Those of the fixture `finished`."""
    config = demo.get_config()
    for setting in SMALL:
        name, value = setting.split("=")
        config.update_from_flattened_dict({name: float(value) if "." in value else int(value)})
    return config


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    shutil.copytree(finished[0], tmp_path / "w")
    return tmp_path / "w"


def test_a_run_ends_with_a_report_of_twelve_examples_and_their_attention(finished):
    workdir, printed = finished
    text = (workdir / "report.html").read_text()
    assert "Research software, not a medical device." in text and "report.html" in printed
    assert (
        text.count("<article") == 12 and text.count("<img") == 29
    )  # two an example, the top's, curves, three of the tokenizer
    assert "<h1>ECG-Byte on synthetic ECGs: run w</h1>" in text and "thousand" not in text
    for words in (
        "Curves. Training loss from",
        "another patient&#39;s ECG",
        "num_merges",
        "What was prepared",
        "Nothing was set aside",
    ):
        assert words in text, words
    rows = {(row["id"], row["segment"]) for row in map(json.loads, (workdir / "eval/generations.jsonl").open())}
    files = sorted((workdir / "attention").glob("*.npz"))
    assert len(files) == 12
    for file in files:
        with np.load(file, allow_pickle=False) as found:
            about = json.loads(str(found["about"]))
            assert (about["id"], about["segment"]) in rows
            assert found["attention"].shape == (12, 100) and found["attention"].min() >= 0
            np.testing.assert_allclose(found["attention"].sum(), found["tokens_attention"].sum(), rtol=1e-5)


def test_without_an_evaluation_nothing_is_overwritten(copied):
    shutil.rmtree(copied / "eval")
    before = {path: path.read_bytes() for path in copied.glob("*.*") if path.is_file()}
    with pytest.raises(ReportError, match="no finished evaluation"):
        report(Settings.of(small_settings()), Workdir(copied))
    assert before == {path: path.read_bytes() for path in copied.glob("*.*") if path.is_file()}


def test_what_is_missing_is_named_and_what_comes_from_data_is_text(copied):
    """No checkpoints, shards, tokenizer, metrics and recordings; an answer that would run a script."""
    for name in ("checkpoints", "shards", "tokenizer", "synthetic", "prepare/quarantine.jsonl", "metrics.jsonl", "config.json"):
        path = copied / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    rows = [json.loads(line) for line in (copied / "eval/generations.jsonl").open()]
    for row in rows:
        row |= {
            "answer": "<script>alert(1)</script> é漢",
            "reference": "",
            "log_prob": -1.0,
            "meta": {"question_type": "<b>type"},
        }
    rows[0]["reference"] = rows[0]["answer"]
    (copied / "eval/generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(Settings.of(small_settings()), Workdir(copied))
    text = (copied / "report.html").read_text()
    assert text.count('<dd class="right">') == 1 and text.count('<dd class="wrong">') == 11
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)&lt;/script&gt; é漢" in text and "<b>type" not in text
    for words in (
        "Without pictures: ",
        "no curves to show",
        "No shards in the run",
        "quarantine.jsonl is missing",
        "Without the settings of",
    ):
        assert words in text, words
    assert text.count("<article") == 12 and text.count("<img") == 1  # that of the scores
    report(Settings.of(small_settings()), Workdir(copied))  # again, as what was missing may be there now
    assert (copied / "report.html").read_text() == text


def test_settings_are_those_of_the_evaluated_checkpoint_whatever_config_json_says(copied):
    (copied / "config.json").write_text(json.dumps({"model": {"width": 4711}}))
    config, saved, unknown = _trained_with(Workdir(copied), json.loads((copied / "eval/results.json").read_text()))
    assert config["model"]["width"] == 32 and config["tokenizer"]["num_merges"] == 100 and not unknown
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", saved)
    page = Page("", "", [])
    add_settings(page, config, {"split": "test"})
    shown = {table.caption: dict(table.rows) for table in page.settings}
    assert shown["model"]["width"] == "32" and shown["eval"]["split"] == "test" and shown["run"] == {"seed": "0"}
    assert not page.settings_notes


@pytest.mark.slow
def test_answers_of_another_training_get_neither_its_settings_nor_its_attention(copied):
    marker = copied / "checkpoints/stage.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"result": "another training's, of as many steps"}))
    config, saved, unknown = _trained_with(Workdir(copied), json.loads((copied / "eval/results.json").read_text()))
    assert not config and not saved and "not of the training" in unknown
    with pytest.raises(ConfigError, match=r"the answers are not of the training in .*checkpoints; run --stage=eval again"):
        attend(Settings.of(small_settings()), Workdir(copied))
    report(Settings.of(small_settings()), Workdir(copied))
    text = (copied / "report.html").read_text()
    assert "Without attention: " in text and text.count("the answers are not of the training") >= 3


def test_answers_are_of_no_known_training_where_none_has_finished(tmp_path):
    with pytest.raises(ConfigError, match="no finished training, so it is unknown which one gave the answers"):
        check_evaluated(Workdir(tmp_path), {"checkpoint_step": 8})


@pytest.mark.slow
def test_answers_about_other_data_get_no_ecgs_of_the_data_that_is_here_now(copied):
    marker = copied / "prepare/stage.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"result": "of another preparation"}))
    report(Settings.of(small_settings()), Workdir(copied))
    text = (copied / "report.html").read_text()
    assert "Without pictures: " in text and text.count("not the data that the answers are about") == 3
    assert not json.loads((copied / "report_stage.json").read_text())["finished"]


def test_an_ecg_that_the_tokenizer_cuts_is_given_its_cleaned_original_where_the_recording_is_there(copied):
    settings, workdir = Settings.of(small_settings()), Workdir(copied)
    rows = [json.loads(line) for line in (copied / "eval/generations.jsonl").open()][:200]
    shown = list(_plain_views(workdir, json.loads((copied / "eval/results.json").read_text()), rows))
    quantizer = ECGTokenizer.load(workdir.ecg_tokenizer).quantizer
    originals = _originals(settings, workdir, rows, shown, quantizer)
    cut = [bool(leads_cut(view.ecgs[0].signal, quantizer)) for view in shown]
    assert [bool(signals) for signals in originals] == cut and 0 < sum(cut) < len(cut)
    half = (quantizer.high - quantizer.low) / 52 + 1e-5  # of a step
    for signals, view in zip(originals, shown):
        if signals:
            within = np.clip(signals[0], quantizer.low, quantizer.high)
            assert np.abs(within - view.ecgs[0].signal).max() <= half
    shutil.rmtree(copied / "synthetic")
    assert _originals(settings, workdir, rows, shown, quantizer) == [None] * len(rows)


@pytest.mark.slow
def test_without_checkpoints_the_ecgs_are_still_shown(copied):
    shutil.rmtree(copied / "checkpoints")
    report(Settings.of(small_settings()), Workdir(copied))
    text = (copied / "report.html").read_text()
    assert "Without attention: " in text and text.count("<img") == 17


@pytest.mark.slow
def test_the_same_run_gives_the_same_report(copied):
    """Attention and all: made twice, for one device and eight differ in the last bits."""
    made = []
    for _ in range(2):
        (copied / "report_stage.json").unlink()
        report(Settings.of(small_settings()), Workdir(copied))
        made.append({file: file.read_bytes() for file in [copied / "report.html", *(copied / "attention").iterdir()]})
    assert made[0] == made[1] and len(made[0]) == 13


@pytest.mark.slow
def test_attend_writes_arrays_and_pictures_of_named_examples(copied):
    config = small_settings()
    rows = [json.loads(line) for line in (copied / "eval/generations.jsonl").open()]
    config.attend.examples, config.attend.layers = (rows[3]["id"],), (1,)
    shutil.rmtree(copied / "attention")
    attend(Settings.of(config), Workdir(copied))
    expected = {file_stem(row) + end for row in rows if row["id"] == rows[3]["id"] for end in (".npz", ".png", ".svg")}
    assert {path.name for path in (copied / "attention").iterdir()} == expected
    config.attend.layers = (2,)
    with pytest.raises(ConfigError, match=r"layers: \(2,\) found, numbers from 0 to 1 expected"):
        attend(Settings.of(config), Workdir(copied))


def test_examples_are_chosen_by_their_ids():
    rows = [{"id": id, "segment": s, "seed": seed} for seed in (0, 42) for id in "ab" for s in (0, 1)]
    assert choose_rows(rows, AttendSettings(("b",)), 0, Workdir(Path("w"))) == [rows[2], rows[3]]
    with pytest.raises(ConfigError, match=r"attend.examples: \['c'\] found"):
        choose_rows(rows, AttendSettings(("b", "c")), 0, Workdir(Path("w")))
