import csv
import json
import shutil

import numpy as np
import pytest

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.records import LEADS
from ecgbyte_jax.ecg.symbols import Quantizer, spell
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages.prepare import prepare
from ecgbyte_jax.stages.tokenizer import tokenizer
from tests.small import small_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    config = small_config()
    config.tokenizer.merges_csv = True
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer(Settings.of(config), Workdir(folder))
    return folder


def test_it_makes_the_tokenizer_that_prepare_makes(workdir, prepared):
    file = "tokenizer/ecg_tokenizer.json"
    assert (workdir / file).read_bytes() == (prepared / file).read_bytes()


def test_the_tokenizer_tells_what_it_was_trained_on(workdir):
    training = ECGTokenizer.load(workdir / "tokenizer/ecg_tokenizer.json").training
    assert (training.num_merges, training.boundary) == (100, "")
    assert (training.segments, training.symbols) == (32, 32 * 12 * small_config().signal.segment_length)  # 80% of 40 recordings
    assert len(training.corpus_sha256) == 64


def test_the_report_holds_compression_and_errors_of_both_sides(workdir):
    report = json.loads((workdir / "tokenizer/report.json").read_text())
    assert list(report["symbols a token"]) == ["100"]
    for side in ("training", "unseen"):
        assert 2 < report["symbols a token"]["100"][side] < 50
        assert set(report["error in mV"][side]) == set(LEADS)
        quantizer = ECGTokenizer.load(workdir / "tokenizer/ecg_tokenizer.json").quantizer
        half_a_bin = (quantizer.high - quantizer.low) / 52
        assert all(0 < lead["mean"] < half_a_bin for lead in report["error in mV"][side].values())


def test_merges_csv_spells_every_merge(workdir):
    trained = ECGTokenizer.load(workdir / "tokenizer/ecg_tokenizer.json")
    rows = list(csv.DictReader((workdir / "tokenizer/merges.csv").open(newline="")))
    assert len(rows) == 100
    for merge, row in enumerate(rows):
        assert (int(row["id"]), int(row["published_id"])) == (26 + merge, 256 + merge)
        assert [int(row["left"]), int(row["right"])] == trained.bpe.merges[merge].tolist()
        assert row["symbols"] == spell(trained.bpe.token(26 + merge)) and len(row["symbols"]) == int(row["length"])
    counts = np.array([int(row["count"]) for row in rows])
    np.testing.assert_array_equal(counts, trained.bpe.counts)


def test_a_second_run_changes_no_file_and_shows_the_report(workdir, capsys):
    config = small_config()
    config.tokenizer.merges_csv = True
    before = {path: path.read_bytes() for path in (workdir / "tokenizer").iterdir()}
    tokenizer(Settings.of(config), Workdir(workdir))
    shown = capsys.readouterr().out
    assert "nothing to do" in shown and "symbols a token" in shown
    assert before == {path: path.read_bytes() for path in (workdir / "tokenizer").iterdir()}


def test_a_boundary_is_kept_by_every_token(tmp_path):
    config = small_config()
    config.tokenizer.boundary = "lead"
    config.tokenizer.num_merges = 2000  # more than there are pairs within leads
    tokenizer(Settings.of(config), Workdir(tmp_path))
    trained = ECGTokenizer.load(tmp_path / "tokenizer/ecg_tokenizer.json")
    assert trained.training.boundary == "lead"
    assert max(len(token) for token in trained.bpe.tokens) <= config.signal.segment_length


def test_a_look_at_other_merges_does_not_get_into_the_shards(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    files = [path for path in (*prepared.glob("shards/*"), prepared / "tokenizer/ecg_tokenizer.json")]
    config = small_config()
    config.tokenizer.num_merges = 50
    tokenizer(Settings.of(config), Workdir(tmp_path))
    assert ECGTokenizer.load(tmp_path / "tokenizer/ecg_tokenizer.json").bpe.vocab_size == 76
    prepare(Settings.of(small_config()), Workdir(tmp_path))
    for file in files:
        assert (tmp_path / file.relative_to(prepared)).read_bytes() == file.read_bytes(), file


def test_a_published_tokenizer_is_looked_at_as_it_is(tmp_path):
    config = small_config()
    config.tokenizer.merges_csv = True
    letters = [np.array([letter], np.uint8) for letter in range(26)]
    given = ECGTokenizer(Quantizer(-0.5, 0.5), BPE([*letters, np.full(4, 11, np.uint8), np.full(3, 12, np.uint8)]))
    given.save(tmp_path / "given.json")
    config.tokenizer.file = str(tmp_path / "given.json")
    tokenizer(Settings.of(config), Workdir(tmp_path / "w"))
    assert (tmp_path / "w/tokenizer/ecg_tokenizer.json").read_bytes() == (tmp_path / "given.json").read_bytes()
    assert list(json.loads((tmp_path / "w/tokenizer/report.json").read_text())["symbols a token"]) == ["2"]
    rows = list(csv.DictReader((tmp_path / "w/tokenizer/merges.csv").open(newline="")))
    assert [(row["symbols"], row["count"]) for row in rows] == [("llll", ""), ("mmm", "")]
