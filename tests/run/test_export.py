import json
import shutil

import numpy as np
import pytest

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prompt import render
from ecgbyte_jax.model.hf import load_pretrained
from ecgbyte_jax.run import export as stage
from ecgbyte_jax.run.pipeline import run
from ecgbyte_jax.run.prepare import load_prepared
from tests.run.conftest import small_config

pytestmark = pytest.mark.slow  # a demo is trained


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The small demo with LoRA beside trained embeddings of the ECG tokens, run from recordings to the export."""
    folder = tmp_path_factory.mktemp("export")
    run(trained_config(), folder, ["prepare", "train", "eval", "export"])
    return folder


def trained_config():
    config = small_config()
    config.lora.rank = 4
    config.model.scan_layers = True
    config.model.train_new_embeddings = True
    config.model.vocab_multiple = 128
    config.eval.batch_size = 8
    return config


def test_the_export_answers_as_the_checkpoint_does_through_transformers(workdir):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(workdir / "export").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(workdir / "export")
    rows = [json.loads(line) for line in (workdir / "eval/generations.jsonl").open()]
    answers = {(row["id"], row["segment"]): row["answer"] for row in rows}
    config, found = trained_config(), {}
    prepared = load_prepared(config, workdir)
    sequences = open_split(prepared.shards, prepared.manifest, "test")
    for i in range(len(sequences)):
        sequence, _ = render(prepared.ids, sequences[i].ecgs, sequences[i].question_ids, None, config.prompt.max_length)
        ids = torch.tensor(sequence[None].astype(np.int64))
        mask = torch.ones_like(ids)
        with torch.no_grad():
            new = model.generate(ids, attention_mask=mask, max_new_tokens=config.eval.max_new_tokens, do_sample=False)
        text = tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True).strip()
        found[sequences[i].id, sequences[i].segment] = text
    assert found == answers and len(answers) == 16


def test_the_export_holds_every_token_and_no_lora(workdir):
    model, config = load_pretrained(workdir / "export")
    tokens = len(load_prepared(trained_config(), workdir).text_tokenizer)
    assert config.vocab_size % 128 == 0 and 0 <= config.vocab_size - tokens < 128
    assert all(block.attention.q.lora is None for block in model.blocks)


def test_a_second_export_does_nothing(workdir, capsys):
    before = {path: path.stat().st_mtime_ns for path in (workdir / "export").iterdir()}
    run(trained_config(), workdir, ["export"])
    assert "export: settings and inputs have not changed" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (workdir / "export").iterdir()}


def test_an_export_that_fails_leaves_the_one_before_and_a_link_s_end_gets_the_new_one(workdir, tmp_path, monkeypatch):
    config, folder = trained_config(), tmp_path / "w"
    shutil.copytree(workdir, folder, symlinks=True)
    shutil.move(folder / "export", tmp_path / "disk")
    (folder / "export").symlink_to(tmp_path / "disk")
    before = {path.name: path.read_bytes() for path in (tmp_path / "disk").iterdir()}
    config.export.checkpoint = "4"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(stage, "save_pretrained", full)
        run(config, folder, ["export"])
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "disk").iterdir()}
    run(config, folder, ["export"])
    assert (folder / "export").is_symlink() and not list(tmp_path.glob("disk.*"))
    after = {path.name: path.read_bytes() for path in (tmp_path / "disk").iterdir()}
    assert before.keys() == after.keys() and before["model.safetensors"] != after["model.safetensors"]


def full(*_, **__):
    raise OSError("full")


def test_an_adapter_of_a_model_from_scratch_is_refused(workdir):
    config = trained_config()
    config.export.adapter = True
    with pytest.raises(ConfigError, match=r"needs LoRA .* on a pretrained model"):
        run(config, workdir, ["export"])
