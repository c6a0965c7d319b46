"""A run on a quantised base (QLoRA): training, evaluation and export from the same kernels in few bits."""

import json
import shutil

import numpy as np
import pytest

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.inputs.text import train_text_tokenizer
from ecgbyte_jax.model.hf import load_pretrained
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages.pipeline import run
from ecgbyte_jax.stages.train import train
from ecgbyte_jax.train import feed
from ecgbyte_jax.train.restore import open_trained
from tests import tiny_llama


@pytest.fixture
def quantised(config, tmp_path, rng, monkeypatch):
    monkeypatch.setattr(tiny_llama, "WIDTH", 64)
    monkeypatch.setattr(tiny_llama, "HEAD_DIM", 16)
    tokenizer = train_text_tokenizer(["Does this ECG show sinus rhythm? yes no none"] * 3, 320)
    config.model.pretrained = str(tiny_llama.write_llama(tmp_path / "llama", tokenizer, rng))
    config.model.quantize, config.model.scan_from, config.lora.rank = "nf4", 1, 4
    config.model.vocab_multiple = 1
    config.optim.peak_rate, config.optim.warmup = 1e-2, 2
    return config


def losses(folder) -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line["loss"]) for line in lines]


@pytest.mark.slow
def test_a_quantised_run_trains_resumes_answers_and_is_exported(quantised, tmp_path, monkeypatch):
    folder, killed = tmp_path / "w", tmp_path / "killed"
    run(quantised, folder, ["prepare"])
    shutil.copytree(folder, killed)
    run(quantised, folder, ["train", "eval", "export"])
    with monkeypatch.context() as patch:
        put, calls = feed.put_batch, iter(range(100))
        patch.setattr(feed, "put_batch", lambda *a: put(*a) if next(calls) < 7 else pytest.fail("killed", pytrace=False))
        with pytest.raises(pytest.fail.Exception):
            train(Settings.of(quantised), Workdir(killed))
    assert 4 < losses(killed)[-1][0] < 8
    train(Settings.of(quantised), Workdir(killed))
    assert losses(killed) == losses(folder) and losses(folder)[-1][1] < losses(folder)[0][1]

    exported, _ = load_pretrained(folder / "export")
    trained, ids = open_trained(Settings.of(quantised), Workdir(folder), "last").model, np.arange(24).reshape(2, 12)
    np.testing.assert_allclose(exported(ids), trained(ids)[..., : exported.config.vocab_size], atol=1e-4)
    assert "the base's kernels were quantised (nf4)" in (folder / "export/README.md").read_text()
    quantised.export.adapter = True
    run(quantised, folder, ["export"])
    assert (folder / "export/adapter_config.json").is_file()
    quantised.model.quantize = "int8"
    with pytest.raises(ConfigError, match=r"run with other settings .*model\.quantize: nf4 -> int8"):
        run(quantised, folder, ["eval"])
