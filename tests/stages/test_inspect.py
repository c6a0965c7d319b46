import io

import pytest
from rich.console import Console

from ecgbyte_jax.errors import ConfigError, ShardsError
from ecgbyte_jax.inputs.shards import read_manifest
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import inspect as module
from ecgbyte_jax.stages.inspect import inspect
from ecgbyte_jax.stages.prepare import prepare
from tests.small import small_config


def test_it_shows_counts_lengths_answers_and_a_prompt_and_changes_nothing(prepared, capsys):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    inspect(Settings.of(small_config()), Workdir(prepared))
    shown = capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    summary = read_manifest(prepared / "shards").splits["train"]
    row = next(line for line in shown.splitlines() if line.split()[:1] == ["train"]).split()
    assert row[1:4] == [str(summary.examples), str(summary.sequences), str(summary.ecg_cut)]
    assert int(row[-1]) == summary.longest_sequence
    for words in ("samples clipped", "single-verify", "different answers", "<sig_start> signal_", "more <sig_end>", "<eos>"):
        assert words in shown, words


def test_the_supervised_tokens_are_coloured(prepared, monkeypatch):
    file = io.StringIO()
    coloured = Console(file=file, force_terminal=True, color_system="standard", soft_wrap=True, highlight=False)
    monkeypatch.setattr(module, "console", coloured)
    inspect(Settings.of(small_config()), Workdir(prepared))
    line = file.getvalue().splitlines()[-1]
    plain, _, supervised = line.partition("\x1b[1;32m")
    assert plain.startswith("<bos> <sig_start> ") and "<sig_end>" in plain and "?" in plain and "\x1b" not in plain
    assert "<eos>" in supervised


def test_unfinished_or_damaged_shards_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="'prepare' has not finished"):
        inspect(Settings.of(small_config()), Workdir(tmp_path))
    prepare(Settings.of(small_config()), Workdir(tmp_path))
    shard = tmp_path / "shards/train-00000.array_record"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ShardsError, match=r"train-00000.* damaged \(checksum\)"):
        inspect(Settings.of(small_config()), Workdir(tmp_path))
