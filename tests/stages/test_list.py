"""The list of runs: every run has a line, whatever is missing or damaged in it."""

import json

import pytest

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.stages import list as listing
from ecgbyte_jax.stages.list import list_runs

CONFIG = {"data": {"corpus": "ecg_qa", "synthetic_records": 40}, "model": {"pretrained": "", "layers": 2, "width": 32}}
LORA = {"data": {"corpus": "mimic"}, "model": {"pretrained": "meta-llama/Llama-3.2-1B", "layers": 4}, "lora": {"rank": 16}}
RESULTS = {"scores": {"model": {"exact_match": 0.795}}}
VERDICT = {"verdict": {"sentence": "reads the ECG: +34.2 [29.8, 38.5]"}}


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """list_runs on the runs of the test; returns the cells by run."""
    shown = {}

    def call() -> dict:
        list_runs([tmp_path])
        return shown

    monkeypatch.setattr(listing, "text_table", lambda title, rows: shown.update({row.pop("run"): row for row in rows}))
    return call


def write(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_runs_at_any_depth_are_listed_with_data_model_score_verdict_and_age(lines, tmp_path):
    write(tmp_path / "a/config.json", CONFIG)
    write(tmp_path / "a/eval/results.json", RESULTS | VERDICT)
    write(tmp_path / "seeds/1/config.json", LORA)
    write(tmp_path / "no_run/notes.txt", "")
    write(tmp_path / "llama/config.json", {"model_type": "llama"})
    assert lines() == {
        "a": {
            "data": "ecg_qa, synthetic",
            "model": "2 layers x 32",
            "exact match": "79.5%",
            "age": "0 min",
            "verdict": "reads the ECG: +34.2 [29.8, 38.5]",
        },
        "seeds/1": {
            "data": "mimic",
            "model": "Llama-3.2-1B, LoRA 16",
            "exact match": "-",
            "age": "0 min",
            "verdict": "no evaluation",
        },
    }


def test_what_a_model_reads_in_the_place_of_tokens_is_said(lines, tmp_path):
    write(tmp_path / "tokens/config.json", CONFIG | {"ecg_input": {"kind": "tokens"}, "encoder": {"kind": "merl"}})
    write(tmp_path / "spans/config.json", LORA | {"ecg_input": {"kind": "elf_patch"}, "encoder": {"kind": "merl"}})
    write(tmp_path / "merl/config.json", CONFIG | {"ecg_input": {"kind": "encoder"}, "encoder": {"kind": "merl"}})
    models = {run: cells["model"] for run, cells in lines().items()}
    assert models == {
        "tokens": "2 layers x 32", "spans": "Llama-3.2-1B, LoRA 16, reads elf_patch", "merl": "2 layers x 32, reads merl",
    }  # fmt: skip


def test_each_evaluation_of_a_run_has_a_line(lines, tmp_path):
    write(tmp_path / "a/config.json", CONFIG)
    write(tmp_path / "a/eval/results.json", RESULTS | VERDICT)
    write(tmp_path / "a/eval/valid/results.json", {"scores": {"model": {"exact_match": 0.5}}})
    write(tmp_path / "a/eval/valid.old-1/results.json", RESULTS)  # set aside
    write(tmp_path / "b/config.json", CONFIG)
    write(tmp_path / "b/eval/best/results.json", RESULTS)
    assert {run: cells["exact match"] for run, cells in lines().items()} == {
        "a": "79.5%",
        "a valid": "50.0%",
        "b best": "79.5%",
    }


@pytest.mark.parametrize(
    "results", ["{", "[]", "\xff", '{"scores": 3}', '{"scores": {"model": {"exact_match": "x"}}, "verdict": 1}']
)
def test_a_damaged_run_is_listed_with_what_is_wrong(lines, tmp_path, results):
    write(tmp_path / "a/config.json", "nothing")
    write(tmp_path / "a/eval/results.json", results)
    cells = lines()["a"]
    assert cells["exact match"] == cells["data"] == cells["model"] == "-"
    assert cells["verdict"].startswith("config.json is damaged; ") and "results.json" in cells["verdict"]


def test_results_without_a_verdict_are_those_of_an_earlier_version(lines, tmp_path):
    write(tmp_path / "a/config.json", CONFIG)
    write(tmp_path / "a/eval/results.json", RESULTS)
    assert lines()["a"]["exact match"] == "79.5%" and lines()["a"]["verdict"] == ""


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^--runs: no folder '.*nowhere'"):
        list_runs([tmp_path / "nowhere"])
