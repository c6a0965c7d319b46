import csv
import json
import os
import shutil
from collections import Counter

import numpy as np
import pytest

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.corpora.ptbxl import DATABASE
from ecgbyte_jax.corpora.source import WfdbRecord
from ecgbyte_jax.ecg.records import read_record
from ecgbyte_jax.ecg.signal import CleanConfig, clean, segment
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ConfigError, CorpusError, ShardsError
from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.prepare import corpus
from ecgbyte_jax.prepare.cleaning import Cleaning
from ecgbyte_jax.prepare.symbol_cache import record_key
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import lineage
from ecgbyte_jax.stages import prepare as stage
from ecgbyte_jax.stages.prepare import prepare

FLAT = np.zeros(5000, "<i2")


@pytest.fixture
def folder(config, tmp_path):
    """Forty synthetic recordings outside the work directory; `config` reads their reports."""
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", 40, seed=0)
    config.data.corpus = "ptbxl"
    config.data.synthetic_records = 0
    config.data.root = str(tmp_path / "ptbxl")
    return tmp_path / "ptbxl"


def record(folder, number: int, ending: str):
    return folder / f"records500/00000/{number:05d}_hr.{ending}"


def edit_signal(folder, number: int, lead: int, values: np.ndarray) -> None:
    path = record(folder, number, "dat")
    signal = np.fromfile(path, "<i2").reshape(-1, 12)
    signal[:, lead] = values
    signal.tofile(path)
    header = path.with_suffix(".hea")
    head, *lines = header.read_text().splitlines()
    fields = [line.split() for line in lines if line and not line.startswith("#")]
    for line, total in zip(fields, signal.sum(axis=0, dtype=np.int64)):
        line[6] = str(total % 65536)
    header.write_text("\n".join([head, *(" ".join(line) for line in fields)]) + "\n")


def edit_row(folder, number: int, **fields) -> None:
    path = folder / DATABASE
    rows = list(csv.DictReader(path.open(newline="")))
    rows[number - 1] |= fields
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def quarantine(workdir) -> dict[str, dict]:
    return {line["id"]: line for line in map(json.loads, (workdir / "prepare/quarantine.jsonl").open())}


def written(workdir) -> int:
    manifest = json.loads((workdir / "shards/manifest.json").read_text())
    return sum(split["examples"] for split in manifest["splits"].values())


def test_shards_hold_the_tokens_of_the_cleaned_segments(config, prepared):
    opened = load_prepared(Workdir(prepared))
    tokenizer = ECGTokenizer.load(prepared / "tokenizer/ecg_tokenizer.json")
    sequences = open_split(opened.shards, opened.manifest, "test")
    assert len(sequences) == opened.manifest.splits["test"].examples == 16
    signal = config.signal
    cleaned = clean(
        read_record(prepared / "synthetic/ptbxl/records500/00000/00019_hr"), CleanConfig(signal.target_rate, band=signal.band)
    )
    expected = tokenizer.encode(segment(cleaned, signal.segment_length)[0])
    found = next(s for s in (sequences[i] for i in range(16)) if s.patient == "10")
    np.testing.assert_array_equal(found.ecgs[0], expected)
    assert opened.text_tokenizer.decode(found.prompt[3:]) == found.question
    assert opened.text_tokenizer.decode(found.text.ids[found.text.prompt : -1]) == found.answer


def test_segments_of_a_recording_each_make_a_sequence(config, folder, tmp_path):
    config.data.max_segments = 3
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    manifest = load_prepared(Workdir(tmp_path / "w")).manifest
    assert {name: (s.examples, s.sequences) for name, s in manifest.splits.items()} == {
        "train": (32, 96), "valid": (4, 12), "test": (4, 12)
    }  # fmt: skip


def test_a_second_run_does_no_work_and_a_changed_setting_is_reported(config, folder, tmp_path, monkeypatch, capsys):
    first = prepare(Settings.of(config), Workdir(tmp_path / "w"))
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_prepare", lambda *_: pytest.fail("prepared again"))
        assert prepare(Settings.of(config), Workdir(tmp_path / "w")) == first
    capsys.readouterr()
    config.signal.segment_length = 80
    assert prepare(Settings.of(config), Workdir(tmp_path / "w")) != first
    assert "signal.segment_length: 100 -> 80" in capsys.readouterr().out


def test_shards_behind_a_link_leave_what_else_lies_there(config, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/thesis.tex").write_text("mine")
    (tmp_path / "w").mkdir()
    (tmp_path / "w/shards").symlink_to(tmp_path / "disk")
    for length in (100, 80):
        config.signal.segment_length = length
        prepare(Settings.of(config), Workdir(tmp_path / "w"))
        assert (tmp_path / "disk/manifest.json").is_file() and (tmp_path / "disk/thesis.tex").read_text() == "mine"
    (tmp_path / "disk/thesis.tex").unlink()
    assert lineage.prepared(Settings.of(config), Workdir(tmp_path / "w")).finished()


def test_a_changed_recording_is_prepared_again(config, folder, tmp_path):
    first = prepare(Settings.of(config), Workdir(tmp_path / "w"))
    edit_signal(folder, 5, 0, np.arange(5000) % 300)
    assert prepare(Settings.of(config), Workdir(tmp_path / "w")) != first


def test_a_touched_recording_is_read_again_and_gives_the_same_outputs(config, folder, tmp_path):
    first = prepare(Settings.of(config), Workdir(tmp_path / "w"))
    os.utime(record(folder, 5, "dat"), (1, 1))
    assert prepare(Settings.of(config), Workdir(tmp_path / "w")) == first


def test_a_copied_run_with_its_own_recordings_is_finished(config, prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path / "copy", copy_function=shutil.copy)  # with new times
    monkeypatch.setattr(stage, "_prepare", lambda *_: pytest.fail("prepared again"))
    copied = prepare(Settings.of(config), Workdir(tmp_path / "copy"))
    assert copied == prepare(Settings.of(config), Workdir(prepared))


@pytest.mark.parametrize("ending", ["hea", "mat"])
def test_a_recording_whose_samples_lie_in_a_mat_file_is_prepared_again(config, folder, tmp_path, ending, capsys):
    """As in the sets of the PhysioNet challenges: the header names another ending than .dat."""
    rename_signal(folder, 5)
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    changed = WfdbRecord(folder, "records500/00000/00005_hr")
    key = record_key(changed)
    os.utime(record(folder, 5, ending), (1, 1))
    assert record_key(changed) != key
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert "running again, because its inputs are not the same" in capsys.readouterr().out
    assert not quarantine(tmp_path / "w")


def rename_signal(folder, number: int) -> None:
    record(folder, number, "dat").rename(record(folder, number, "mat"))
    header = record(folder, number, "hea")
    header.write_text(header.read_text().replace(".dat", ".mat"))


def test_the_files_of_a_recording_are_looked_at_once(config, folder, tmp_path, monkeypatch):
    seen = Counter()
    monkeypatch.setattr(
        corpus, "record_key", lambda record, *rest, **how: seen.update([record]) or record_key(record, *rest, **how)
    )
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert len(seen) == 40 and set(seen.values()) == {1}


def test_preparing_twice_gives_the_same_bytes(config, folder, tmp_path):
    files = {}
    for name in ("a", "b"):
        prepare(Settings.of(config), Workdir(tmp_path / name))
        paths = [p for p in (tmp_path / name).rglob("*") if p.is_file() and not {"cache", "cost.json"} & {*p.parts}]
        files[name] = {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in paths}
    assert files["a"] == files["b"] and len(files["a"]) == 16


def test_bad_recordings_and_rows_are_set_aside_with_file_and_reason(config, folder, tmp_path):
    config.data.max_bad_fraction = 0.5
    data = record(folder, 1, "dat")
    data.write_bytes(data.read_bytes()[:1001])
    record(folder, 2, "hea").unlink()
    edit_signal(folder, 3, 4, FLAT)
    edit_signal(folder, 4, 7, np.full(5000, -32768, "<i2"))  # WFDB's mark of a missing sample
    edit_row(folder, 5, filename_hr="records500/00000/99999_hr")
    edit_row(folder, 6, report="")
    edit_row(folder, 7, strat_fold="eleven")
    edit_row(folder, 8, report="word " * 600)
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    found = quarantine(tmp_path / "w")
    reasons = ["truncated", r"no such file", "flat", "NaN", "99999_hr", "empty", "strat_fold", "no room"]
    assert {id: next((r for r in reasons if r in line["file"] + line["reason"]), None) for id, line in found.items()} == {
        "1": "truncated", "2": "no such file", "3": "flat", "4": "NaN", "5": "no such file", "6": "empty",
        "7": "strat_fold", "8": "no room",
    }  # fmt: skip
    assert "00003_hr" in found["3"]["file"] and "99999_hr" in found["5"]["file"]
    assert written(tmp_path / "w") + len(found) == 40


def test_of_two_rows_with_the_same_id_the_second_is_set_aside(config, folder, tmp_path):
    edit_row(folder, 6, ecg_id="5")
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert [line["reason"] for line in quarantine(tmp_path / "w").values()] == ["an earlier example has the same id"]
    assert written(tmp_path / "w") == 39


def test_text_that_spells_a_special_token_stays_text(config, folder, tmp_path):
    edit_row(folder, 20, report="a signal_97 <eos> <sig_end>")
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    opened = load_prepared(Workdir(tmp_path / "w"))
    sequences = open_split(opened.shards, opened.manifest, "test")
    text = next(s.text for s in (sequences[i] for i in range(4)) if "signal_97" in s.answer)
    ids = text.ids[text.prompt : -1]
    assert not {opened.ids.eos, opened.ids.sig_end, int(opened.ids.ecg[0])} & set(ids.tolist())
    assert opened.text_tokenizer.decode(ids) == "a signal_97 <eos> <sig_end>"


@pytest.mark.parametrize("output", ["shards/train-00000.array_record", "shards/manifest.json", "tokenizer/text/tokenizer.json"])
def test_a_missing_output_is_made_again(config, folder, tmp_path, output):
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    (tmp_path / "w" / output).unlink()
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert (tmp_path / "w" / output).is_file()


def test_settings_that_leave_the_shards_alone_do_not_make_them_again(config, folder, tmp_path):
    first = prepare(Settings.of(config), Workdir(tmp_path / "w"))
    config.data.max_bad_fraction = 0.5
    assert prepare(Settings.of(config), Workdir(tmp_path / "w")) == first


def test_synthetic_recordings_replace_nothing_of_the_user_s(config, tmp_path):
    precious = tmp_path / "w/synthetic/ptbxl/precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    (tmp_path / "questions").mkdir()
    config.data.ecgqa_root = str(tmp_path / "questions")
    with pytest.raises(CorpusError, match="not this project's"):
        prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert precious.read_text() == "mine"
    prepare(Settings.of(config), Workdir(tmp_path / "v"))
    assert not list((tmp_path / "questions").iterdir())


def test_a_damaged_manifest_or_shard_is_named(config, folder, tmp_path):
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    opened = load_prepared(Workdir(tmp_path / "w"))
    shard = tmp_path / "w/shards/test-00000.array_record"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(ShardsError, match=r"a file of split 'test' .* is damaged"):
        open_split(opened.shards, opened.manifest, "test")
    manifest = tmp_path / "w/shards/manifest.json"
    manifest.write_text(manifest.read_text()[:-20])
    with pytest.raises(ShardsError, match=r"manifest\.json: damaged"):
        load_prepared(Workdir(tmp_path / "w"))


def test_too_many_bad_examples_stop_the_stage(config, folder, tmp_path):
    for number in (1, 2, 3):
        record(folder, number, "dat").unlink()
    with pytest.raises(CorpusError, match=r"3 of 40 examples cannot be used, more than data\.max_bad_fraction 0\.05.*00001_hr"):
        prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert len(quarantine(tmp_path / "w")) == 3
    with pytest.raises(ConfigError, match="'prepare' has not finished"):
        lineage.prepared(Settings.of(config), Workdir(tmp_path / "w")).require()


def test_a_stage_that_died_half_way_is_run_again_whole(config, folder, tmp_path, monkeypatch):
    prepare(Settings.of(config), Workdir(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(stage, "write_manifest", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(Settings.of(config), Workdir(tmp_path / "w"))
    (tmp_path / "w/tokenizer/stage.json.0123.partial").touch()
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert not list((tmp_path / "w").rglob("*.partial"))
    for name in ("manifest.json", "train-00000.array_record"):
        assert (tmp_path / "w/shards" / name).read_bytes() == (tmp_path / "whole/shards" / name).read_bytes()


def test_no_recording_of_the_test_set_touches_the_tokenizer(config, folder, tmp_path):
    prepare(Settings.of(config), Workdir(tmp_path / "a"))
    for number in (17, 18, 19, 20, 37, 38, 39, 40):  # folds 9 and 10
        edit_signal(folder, number, 1, np.arange(5000) % 2000)
    prepare(Settings.of(config), Workdir(tmp_path / "b"))
    assert (tmp_path / "a/tokenizer/ecg_tokenizer.json").read_bytes() == (
        tmp_path / "b/tokenizer/ecg_tokenizer.json"
    ).read_bytes()


def test_the_pretrained_folder_s_text_tokenizer_is_used(config, folder, tmp_path):
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    shutil.copytree(tmp_path / "w/tokenizer/text", tmp_path / "llama")
    config.model.pretrained = str(tmp_path / "llama")
    prepare(Settings.of(config), Workdir(tmp_path / "v"))
    ours, theirs = (load_prepared(Workdir(tmp_path / name)).text_tokenizer for name in ("w", "v"))
    assert ours.get_vocab() == theirs.get_vocab()


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.model", "tokenizer_config.json"])
def test_every_file_of_a_pretrained_text_tokenizer_is_an_input(tmp_path, name):
    for file in ("config.json", "model.safetensors", "README.md", name):
        (tmp_path / file).write_text("{}")
    first = lineage._text_tokenizer(str(tmp_path))
    os.utime(tmp_path / name, (1, 1))  # a copy of the same files is the same tokenizer
    (tmp_path / "model.safetensors").write_text("others")
    assert lineage._text_tokenizer(str(tmp_path)) == first
    (tmp_path / name).write_text("[]")  # as long
    changed = lineage._text_tokenizer(str(tmp_path))
    (tmp_path / name).unlink()
    assert len({first, changed, lineage._text_tokenizer(str(tmp_path))}) == 3


def test_questions_asked_once_are_not_in_the_manifest(config, folder, tmp_path):
    """A conversation's turns hold all before them, so that nearly every question of ECG-Chat is another."""
    asked = [(n, f"Number {n}?", "yes" if n % 3 else "no") for n in range(1, 38)]
    asked += [(38, "Again?", "no"), (39, "Again?", "no"), (40, "Again?", "yes")]
    with (tmp_path / "own.jsonl").open("w") as file:
        for number, question, answer in asked:
            row = {
                "record": f"records500/00000/{number:05d}_hr",
                "question": question,
                "answer": answer,
                "patient": str(number),
            }
            file.write(json.dumps(row | ({"split": "train"} if number >= 38 else {})) + "\n")
    config.data.corpus, config.data.table = "own", str(tmp_path / "own.jsonl")
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert load_prepared(Workdir(tmp_path / "w")).manifest.commonest == {"": "yes", "Again?": "no"}


def test_recordings_of_the_percentiles_are_cleaned_once(config, folder, tmp_path, monkeypatch):
    cleaned, whole = [], Cleaning.whole
    monkeypatch.setattr(Cleaning, "whole", lambda self, record: cleaned.append(record) or whole(self, record))
    prepare(Settings.of(config), Workdir(tmp_path / "once"))
    assert len(cleaned) == len(set(cleaned)) == 40
    assert not list((tmp_path / "once/cache/clean").iterdir())


def test_a_run_that_ends_leaves_another_s_signals_in_their_shared_cache(config, folder, tmp_path, monkeypatch):
    config.prepare.cache = str(tmp_path / "cache")
    prepare(Settings.of(config), Workdir(tmp_path / "alone"))
    shutil.rmtree(tmp_path / "cache")
    savez, began = np.savez, []

    def another_run_ends_first(*given, **arrays):
        if not began:
            began.append(True)
            prepare(Settings.of(config), Workdir(tmp_path / "other"))
        savez(*given, **arrays)

    monkeypatch.setattr(np, "savez", another_run_ends_first)
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    for name in ("w", "other"):
        assert (tmp_path / name / "shards/manifest.json").read_bytes() == (tmp_path / "alone/shards/manifest.json").read_bytes()
    assert began and not list((tmp_path / "cache/clean").iterdir())
