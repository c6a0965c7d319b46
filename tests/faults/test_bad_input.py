"""Bad input of every kind: set aside with its own reason, counted, and none stops the rest."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.corpora.ptbxl import DATABASE
from ecgbyte_jax.errors import CorpusError, ShardsError
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages.prepare import prepare
from tests.stages.test_prepare import edit_row, edit_signal, quarantine, record, written
from tests.test_main import ROOT

RECORDS = 40


@pytest.fixture
def folder(config, tmp_path) -> Path:
    """Forty synthetic recordings; `config` reads their reports, and up to 90% of them may be bad."""
    write_demo(tmp_path / "ptbxl", tmp_path / "ecgqa", RECORDS, seed=0)
    config.data.corpus, config.data.synthetic_records, config.data.root = "ptbxl", 0, str(tmp_path / "ptbxl")
    config.data.max_bad_fraction = 0.9
    return tmp_path / "ptbxl"


def header(folder: Path, number: int, old: str, new: str, count: int = 1) -> None:
    path = record(folder, number, "hea")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def truncate(folder, number):
    data = record(folder, number, "dat")
    data.write_bytes(data.read_bytes()[:-1200])


def one_second(folder, number):
    """Half a segment is left of it."""
    data = record(folder, number, "dat")
    signal = np.fromfile(data, "<i2").reshape(-1, 12)[:500]
    signal.tofile(data)
    header(folder, number, " 500 5000", " 500 500")
    edit_signal(folder, number, 0, signal[:, 0])


def eleven_leads(folder, number):
    data = record(folder, number, "dat")
    np.ascontiguousarray(np.fromfile(data, "<i2").reshape(-1, 12)[:, :11]).tofile(data)
    lines = record(folder, number, "hea").read_text().replace("_hr 12 500", "_hr 11 500").splitlines()
    record(folder, number, "hea").write_text("\n".join(lines[:12]) + "\n")


def all_leads(folder, number, values):
    for lead in range(12):
        edit_signal(folder, number, lead, values)


BAD = {
    "truncated .dat": (truncate, "truncated"),
    "missing .hea": (lambda f, n: record(f, n, "hea").unlink(), "hea: no such file"),
    "missing .dat": (lambda f, n: record(f, n, "dat").unlink(), "dat: no such file"),
    "wrong checksum": (
        lambda f, n: record(f, n, "dat").write_bytes(record(f, n, "dat").read_bytes()[:-2] + b"\x07\x07"), "checksum"
    ),
    "wrong sample count": (lambda f, n: header(f, n, " 500 5000", " 500 4000"), "too long"),
    "gain 0": (lambda f, n: header(f, n, " 1000.0(0)/mV", " 0(0)/mV"), "gain of 0"),
    "unknown format": (lambda f, n: header(f, n, ".dat 16 ", ".dat 99 ", 12), "formats ['99'] found"),
    "eleven leads": (eleven_leads, "leads ['V6'] are missing"),
    "doubled lead": (lambda f, n: header(f, n, " V6", " V5"), "leads ['V5'] are there twice"),
    "a lead of NaN": (lambda f, n: edit_signal(f, n, 7, np.full(5000, -32768, "<i2")), "missing samples (NaN)"),
    "a flat lead": (lambda f, n: edit_signal(f, n, 4, np.full(5000, 70, "<i2")), "leads ['aVL'] are flat"),
    "all zero": (lambda f, n: all_leads(f, n, np.zeros(5000, "<i2")), "'I', 'II', 'III'"),
    "beyond 20 mV": (lambda f, n: edit_signal(f, n, 8, np.arange(5000) * 5), "reach 25.0 mV"),
    "one second": (one_second, "at least one segment of 100 expected"),
    "leaves the root": (lambda f, n: edit_row(f, n, filename_hr="../../etc/passwd"), "inside the data's root"),
    "signal file elsewhere": (lambda f, n: header(f, n, ".dat", "/../x.dat", 12), "files beside the header expected"),
    "empty answer": (lambda f, n: edit_row(f, n, report=" "), "the answer is empty"),
    "unknown fold": (lambda f, n: edit_row(f, n, strat_fold="0"), "strat_fold 0"),
    "a record twice": (
        lambda f, n: edit_row(f, n, filename_hr="records500/00000/00001_hr"), "00001_hr' is in an earlier row"
    ),
    "an id twice": (lambda f, n: edit_row(f, n, ecg_id="1"), "an earlier example has the same id"),
}  # fmt: skip


def test_each_kind_has_its_own_reason_and_none_stops_the_rest(config, folder, tmp_path):
    config.signal.segment_length = 100
    expected = {}
    for number, (name, (spoil, reason)) in enumerate(BAD.items(), start=2):
        spoil(folder, number)
        expected["1" if name == "an id twice" else str(number)] = reason
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    found = quarantine(tmp_path / "w")
    assert {id: expected[id] in line["reason"] for id, line in found.items()} == dict.fromkeys(expected, True), found
    assert len({line["reason"] for line in found.values()}) == len(BAD)
    assert written(tmp_path / "w") + len(found) == RECORDS


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_what_cannot_be_read_today_stops_and_is_tried_again(config, folder, tmp_path, monkeypatch, number):
    """A file that the system does not give is no bad recording: nothing is made without it, and nothing remembers it."""
    prepare(Settings.of(config), Workdir(tmp_path / "whole"))
    fromfile, failing = np.fromfile, {str(record(folder, 3, "dat")), str(record(folder, 20, "dat"))}

    def failing_sometimes(file, *args, **more):
        if str(file) in failing:
            raise OSError(number, os.strerror(number), str(file))
        return fromfile(file, *args, **more)

    monkeypatch.setattr(np, "fromfile", failing_sometimes)
    with pytest.raises(CorpusError, match=rf"00003_hr\.dat: cannot be read.*{os.strerror(number)}.*the same command"):
        prepare(Settings.of(config), Workdir(tmp_path / "w"))
    failing.discard(str(record(folder, 3, "dat")))  # recording 20 is a test patient's, no percentile comes from it
    with pytest.raises(CorpusError, match=r"1 of 40 recordings .*00020_hr\.dat: cannot be read"):
        prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert not (tmp_path / "w/shards").exists()
    failing.clear()
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert not quarantine(tmp_path / "w") and written(tmp_path / "w") == RECORDS
    for file in ("tokenizer/ecg_tokenizer.json", "shards/manifest.json", "shards/ecg-00000.array_record"):
        assert (tmp_path / "w" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_rows_of_another_width_or_no_utf_8_are_set_aside(config, folder, tmp_path):
    path = folder / DATABASE
    lines = path.read_bytes().splitlines()
    lines[3], lines[5] = lines[3] + b",more", lines[5].replace(b"synthetic", b"\xff\xfe")
    path.write_bytes(b"\n".join(lines) + b"\n")
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    reasons = {id: line["reason"] for id, line in quarantine(tmp_path / "w").items()}
    assert reasons == {"line 4": "line 4: 29 fields found, 28 expected", "line 6": "line 6: the row is not UTF-8"}
    assert written(tmp_path / "w") == RECORDS - 2


def test_bad_questions_are_set_aside(config, folder, tmp_path):
    config.data.corpus = "ecg_qa"
    path = tmp_path / "ecgqa/ptbxl/template/train/00000.json"
    rows = json.loads(path.read_text())
    rows[0]["ecg_id"], rows[1]["answer"] = [999], []
    del rows[2]["answer"]
    path.write_text(json.dumps(rows))
    (path.parent / "00001.json").write_text("[{")
    (path.parent / "00002.json").write_bytes(b'["\xff"]')
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    reasons = [line["reason"] for line in quarantine(tmp_path / "w").values()]
    words = [
        "ecg_id 999 is not in",
        "answer is empty",
        "an object with the fields",
        "not readable as JSON",
        "not readable as JSON",
    ]
    assert len(reasons) == 5 and all(word in reason for word, reason in zip(words, reasons)), reasons
    assert written(tmp_path / "w") == 4 * RECORDS - 3


def test_a_wrong_root_a_missing_table_and_nothing_left_are_named(config, folder, tmp_path):
    with (folder / DATABASE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    config.data.max_bad_fraction = 1.0
    for number in range(1, len(rows) + 1):
        edit_row(folder, number, report="")
    with pytest.raises(CorpusError, match="40 examples read, none of them usable for training"):
        prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert len(quarantine(tmp_path / "w")) == 40 and not (tmp_path / "w/shards").exists()
    (folder / DATABASE).unlink()
    with pytest.raises(CorpusError, match=r"data\.root: no ptbxl_database\.csv in"):
        prepare(Settings.of(config), Workdir(tmp_path / "v"))


@pytest.mark.parametrize("limit", [10_000, 60_000])
def test_a_full_disk_is_one_clear_error_and_the_same_command_goes_on(config, folder, tmp_path, limit):
    """A limit on the size of files simulates the full disk: the same system calls fail."""
    script = (
        "import json, resource, sys\nfrom ml_collections import ConfigDict\n"
        "from ecgbyte_jax.errors import ShardsError\nfrom ecgbyte_jax.stages.prepare import prepare\n"
        "from pathlib import Path\nfrom ecgbyte_jax.run.workdir import Workdir\nfrom ecgbyte_jax.settings import Settings\n"
        "settings = Settings.of(ConfigDict(json.loads(sys.argv[1])))\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "try:\n    prepare(settings, Workdir(Path(sys.argv[2])))\nexcept ShardsError as error:\n    sys.exit(f'why: {error}')\n"
    )
    command = [sys.executable, "-c", script, config.to_json(), str(tmp_path / "w")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 1 and "why: " in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "w/shards/manifest.json").exists() and not list((tmp_path / "w").rglob("*.partial"))
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    prepare(Settings.of(config), Workdir(tmp_path / "whole"))
    for name in ("manifest.json", "train-00000.array_record", "ecg-00000.array_record"):
        assert (tmp_path / "w/shards" / name).read_bytes() == (tmp_path / "whole/shards" / name).read_bytes()


def test_a_shard_on_a_full_disk_is_reported_and_leaves_nothing(tmp_path):
    script = (
        "import os, resource, sys\nfrom pathlib import Path\nfrom ecgbyte_jax.errors import ShardsError\n"
        "from ecgbyte_jax.inputs.shards import write_shard\nresource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "try:\n    write_shard(Path(sys.argv[1]), (os.urandom(1000) for _ in range(int(sys.argv[2]))))\n"
        "except ShardsError as error:\n    sys.exit(f'why: {error}')\n"
    )
    for count, code in (("5000", 1), ("20", 0)):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / count), count], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code and ("why: " in done.stderr) == bool(code), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["20"]


def test_a_damaged_part_of_the_cache_is_named_or_made_again(config, folder, tmp_path):
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    (part,) = (tmp_path / "w/cache/symbols").rglob("*.symbols")
    whole = part.read_bytes()
    config.prompt.max_length = 200  # another run of the stage on the same cache
    part.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ShardsError, match=r"\.symbols: damaged \(checksum\); delete it"):
        prepare(Settings.of(config), Workdir(tmp_path / "w"))
    part.write_bytes(whole[:-100])
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert part.read_bytes() == whole


def test_other_texts_need_no_cleaning(config, folder, tmp_path, monkeypatch):
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    from ecgbyte_jax.prepare import cleaning

    monkeypatch.setattr(cleaning, "clean", lambda *_: pytest.fail("cleaned again"))
    config.prompt.max_length, config.prompt.text_vocab_size = 200, 300
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    config.data.corpus, config.prepare.cache = "ecg_qa", str(tmp_path / "w/cache")
    config.tokenizer.file = str(tmp_path / "w/tokenizer/ecg_tokenizer.json")
    prepare(Settings.of(config), Workdir(tmp_path / "questions"))
    assert written(tmp_path / "questions") == 4 * RECORDS


def test_rows_of_a_table_that_no_stage_can_hold_are_set_aside(config, folder, tmp_path):
    rows = [
        {"record": f"records500/00000/{number:05d}_hr", "question": "why?", "answer": "so", "patient": number, "split": split}
        for number, split in enumerate(["train"] * 30 + ["valid"] * 5 + ["test"] * 5, start=1)
    ]
    bad = [{"note": "\ud800"}, {"id": "\ud800"}, {"note": 2**70}, {"question_type": 7}, {"patients": 5}]
    lines = [json.dumps(row | fields) for row, fields in zip(rows, [*bad, *[{"question_type": None}] * 35])]
    lines[5] = lines[5].replace('"why?"', "7" * 5000)
    table = tmp_path / "t.jsonl"
    table.write_text("\n".join(lines))
    config.data.corpus, config.data.table = "own", str(table)
    prepare(Settings.of(config), Workdir(tmp_path / "w"))
    assert sorted(quarantine(tmp_path / "w")) == [f"line {number}" for number in range(1, 7)]
    assert written(tmp_path / "w") == RECORDS - 6


@pytest.fixture
def conversations(folder) -> Path:
    """ECG-Chat's file about the recordings, each as another patient's of MIMIC-IV-ECG; the fourth to seventh are bad."""
    entries = []
    for number in range(1, RECORDS + 1):
        name = f"p1000/p100000{number:02d}/s{number}/{number}"
        for ending in ("hea", "dat"):
            path = folder / f"files/{name}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = record(folder, number, ending).read_bytes()
            path.write_bytes(content.replace(f"{number:05d}_hr".encode(), str(number).encode()) if ending == "hea" else content)
        talk = [{"from": "human", "value": f"<ecg>\nWhat {number}?"}, {"from": "gpt", "value": "This."}]
        entries.append({"ecg": name, "conversations": talk})
    entries[4] = {"ecg": entries[4]["ecg"]}
    entries[5]["conversations"][1]["value"] = " "
    entries[6]["ecg"] += "1"
    file = folder / "pretrain_mimic.json"
    file.write_bytes(json.dumps(entries).encode().replace(b"What 4?", b"What \xff?"))
    return file


def test_bad_conversations_are_set_aside_and_counted(config, conversations, tmp_path):
    config.data.corpus = "ecg_chat"
    prepare(Settings.of(config), Workdir(tmp_path / "run"))
    bad = {id: line["reason"] for id, line in quarantine(tmp_path / "run").items()}
    assert bad.pop("3").endswith("not UTF-8") and "fields ecg (a path) and conversations" in bad.pop("4")
    assert bad.pop("5") == "entry 5: the answer is empty" and "no such file" in bad.pop("6/0") and not bad
    assert written(tmp_path / "run") == RECORDS - 4


@pytest.mark.parametrize("damage", ["cut", "broken", "object"])
def test_a_broken_file_of_conversations_is_named_in_one_line(config, conversations, tmp_path, damage):
    text = conversations.read_bytes()
    broken = {"cut": text[:-30], "broken": text.replace(b'"from"', b'"from', 1), "object": b"{" + text + b"}"}[damage]
    conversations.write_bytes(broken)
    config.data.corpus = "ecg_chat"
    with pytest.raises(CorpusError, match=r"pretrain_mimic\.json: ") as error:
        prepare(Settings.of(config), Workdir(tmp_path / "run"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert not (tmp_path / "run/shards").exists()
