import json
import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
import wfdb
from safetensors.numpy import load_file

from ecgbyte_jax.ecg.records import read_record
from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.inputs.prompt import render_prompt
from ecgbyte_jax.model.build import build_model
from ecgbyte_jax.model.hf import load_pretrained
from ecgbyte_jax.model.peft import save_adapter
from ecgbyte_jax.model.sharding import make_mesh
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.stages import export as stage
from ecgbyte_jax.stages.pipeline import run
from ecgbyte_jax.train.restore import positions
from tests.launch import finish, free_address, start_python, start_two
from tests.small import small_config
from tests.stages.asked import ask_example, asked

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
    config.model.scan_from = 1
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
    prepared = load_prepared(Workdir(workdir))
    sequences = open_split(prepared.shards, prepared.manifest, "test")
    for i in range(len(sequences)):
        sequence = render_prompt(prepared.ids, sequences[i].prompt, sequences[i].ecgs, config.prompt.max_length)
        ids = torch.tensor(sequence[None].astype(np.int64))
        mask = torch.ones_like(ids)
        with torch.no_grad():
            new = model.generate(ids, attention_mask=mask, max_new_tokens=config.eval.max_new_tokens, do_sample=False)
        text = tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True).strip()
        found[sequences[i].id, sequences[i].segment] = text
    assert found == answers and len(answers) == 16


def test_the_export_holds_every_token_and_no_lora(workdir):
    model, config = load_pretrained(workdir / "export")
    tokens = len(load_prepared(Workdir(workdir)).text_tokenizer)
    assert config.vocab_size % 128 == 0 and 0 <= config.vocab_size - tokens < 128
    assert all(block.attention.q.lora is None for block in model.blocks)


def test_a_second_export_does_nothing(workdir, capsys):
    before = {path: path.stat().st_mtime_ns for path in (workdir / "export").rglob("*.*")}
    run(trained_config(), workdir, ["export"])
    assert "export: settings and inputs have not changed" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (workdir / "export").rglob("*.*")}


def test_an_export_that_fails_leaves_the_one_before_and_a_link_s_end_gets_the_new_one(workdir, tmp_path, monkeypatch):
    config, folder = trained_config(), tmp_path / "w"
    shutil.copytree(workdir, folder, symlinks=True)
    shutil.move(folder / "export", tmp_path / "disk")
    (folder / "export").symlink_to(tmp_path / "disk")
    before = {path.name: path.read_bytes() for path in (tmp_path / "disk").glob("*.*")}
    config.export.checkpoint = "4"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(stage, "save_pretrained", full)
        run(config, folder, ["export"])
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "disk").glob("*.*")}
    run(config, folder, ["export"])
    assert (folder / "export").is_symlink() and not list(tmp_path.glob("disk.*"))
    after = {path.name: path.read_bytes() for path in (tmp_path / "disk").glob("*.*")}
    assert before.keys() == after.keys() and before["model.safetensors"] != after["model.safetensors"]


QUESTIONS = ["Does this ECG show sinus rhythm?", "Is the heart rate above 90 beats per minute?", "Which rhythm is this?"]


def test_the_example_answers_as_ask_does_without_jax_and_this_package(workdir):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    records = [str(path.with_suffix("")) for path in sorted((workdir / "synthetic/ptbxl").rglob("*_hr.hea"))[::14]]
    answers = ask_example(workdir / "export", records, QUESTIONS)
    assert answers == asked(trained_config(), workdir, records, QUESTIONS)
    assert len({answer for row in answers for answer in row}) > 4  # of 9


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda record: replace(record, leads=(*record.leads[:-1], "X")), r"leads \['V6'\] are missing"),
        (lambda record: replace(record, signal=record.signal[:, :700]), "70 samples found .* at least one segment of 100"),
    ],
    ids=["leads", "short"],
)
def test_the_example_refuses_an_unusable_record_in_one_line(workdir, tmp_path, change, message):
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    record = change(read_record(next((workdir / "synthetic/ptbxl").rglob("*_hr.hea"))))
    names, fmt = list(record.leads), ["16"] * len(record.leads)
    signal = record.signal.T.astype(np.float64)
    wfdb.wrsamp("r", 500, ["mV"] * len(names), names, signal, fmt=fmt, write_dir=str(tmp_path))
    process = start_python(str(workdir / "export/example.py"), str(tmp_path / "r"), "Why?")
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and re.fullmatch(rf"error: .*{message}.*\n", output)


def test_the_card_has_the_scores_of_the_exported_checkpoint_alone(workdir, tmp_path, capsys):
    config, folder = trained_config(), tmp_path / "w"
    shutil.copytree(workdir, folder)
    (folder / "export/ecgbyte_numpy/__pycache__").mkdir()
    (folder / "export/ecgbyte_numpy/__pycache__/signal.cpython-311.pyc").write_text("as an example leaves it")
    assert "Of this very checkpoint" in (folder / "export/README.md").read_text()
    config.export.checkpoint = "4"
    run(config, folder, ["export"])
    text = (folder / "export/README.md").read_text()
    assert "**Not evaluated.** The evaluation in the run's folder is of checkpoint" in text and "| model |" not in text
    assert not list(folder.glob("export.old-*"))
    config.eval.checkpoint = "4"
    run(config, folder, ["eval", "export"])
    assert "checkpoint 4 " in (folder / "export/README.md").read_text()
    assert "| model |" in (folder / "export/README.md").read_text()
    shutil.rmtree(folder / "eval")
    run(config, folder, ["export"])
    assert "**Not evaluated.** The run has no evaluation" in (folder / "export/README.md").read_text()


def test_an_evaluation_of_the_export_is_kept_when_its_card_changes(workdir, tmp_path, capsys):
    config, folder = trained_config(), tmp_path / "w"
    shutil.copytree(workdir, folder)
    config.eval.checkpoint = str(folder / "export")
    run(config, folder, ["eval", "export"])
    assert "is of an exported folder" in (folder / "export/README.md").read_text()
    capsys.readouterr()
    run(config, folder, ["eval", "export"])
    shown = capsys.readouterr().out
    assert "eval: settings and inputs have not changed" in shown and "export: settings and inputs have not changed" in shown


def full(*_, **__):
    raise OSError("full")


def test_an_adapter_of_a_model_from_scratch_is_refused(workdir):
    config = trained_config()
    config.export.adapter = True
    with pytest.raises(ConfigError, match=r"needs LoRA .* on a pretrained model"):
        run(config, workdir, ["export"])


def test_two_processes_that_share_the_model_write_the_export_of_one(workdir, tmp_path):
    shutil.copytree(workdir, tmp_path / "w")
    shutil.rmtree(tmp_path / "w/export")
    settings = ("lora.rank=4", "model.scan_from=1", "model.train_new_embeddings=true", "model.vocab_multiple=128")
    flags = [f"--config.{setting}" for setting in (*settings, "mesh.data=1", "mesh.tensor=2")]
    outputs = [finish(process) for process in start_two(tmp_path / "w", "--stage=export", *flags)]
    assert "exported" in outputs[0] and "exported" not in outputs[1]
    names = [{path.name for path in (folder / "export").iterdir()} for folder in (workdir, tmp_path / "w")]
    assert names[0] == names[1]
    one, two = (load_file(folder / "export/model.safetensors") for folder in (workdir, tmp_path / "w"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-6, err_msg=name)


def write_adapter(folder):
    """The adapter of a model with LoRA on every kernel, split over all devices."""
    settings, mesh = Settings.of(trained_config()), make_mesh(1, 1, -1)
    with jax.set_mesh(mesh):
        parts = build_model(settings.model, settings.lora, settings.seed, positions(settings), 512, mesh)
        trained = jax.tree.map(lambda leaf: leaf + 1, parts.trained)  # b is 0 at first
        save_adapter(parts.model(trained), folder, base="base", grown=True)


def test_two_processes_that_share_the_model_write_the_adapter_of_one(tmp_path):
    code = (
        "import sys, jax; jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))\n"
        "from tests.stages.test_export import write_adapter; write_adapter(sys.argv[3])"
    )
    address = free_address()
    for process in [start_python("-c", code, address, str(number), str(tmp_path / "two")) for number in range(2)]:
        finish(process)
    write_adapter(tmp_path / "one")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-6, err_msg=name)
