"""The server over every kind of run: conversations with LoRA, a quantised base, vectors of the signal."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from ecgbyte_jax.corpora.demo import write_demo
from ecgbyte_jax.inputs.text import train_text_tokenizer
from ecgbyte_jax.stages.pipeline import run
from tests import tiny_llama
from tests.chat_folders import chat_tokenizer
from tests.serve.service import Client, served
from tests.small import small_config
from tests.stages.asked import asked

QUESTIONS = ("What is the heart rate?", "Does this ECG show atrial fibrillation?")


def conversations(folder: Path) -> ConfigDict:
    """LoRA and trained embeddings on an instruct model's folder, of conversations of two questions."""
    write_demo(folder, folder / "questions", 20, 0)
    turns = [("user", QUESTIONS[0]), ("assistant", "About 70."), ("user", QUESTIONS[1]), ("assistant", "no")]
    messages = [{"role": role, "content": content} for role, content in turns]
    records = [f"records500/00000/{number:05d}_hr" for number in range(1, 21)]
    splits = ["train"] * 12 + ["valid"] * 4 + ["test"] * 4
    rows = [
        {"record": record, "patient": f"p{number}", "split": split, "messages": messages}
        for number, (record, split) in enumerate(zip(records, splits))
    ]
    (folder / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = small_config()
    config.data.corpus, config.data.synthetic_records = "own", 0
    config.data.root, config.data.table = str(folder), str(folder / "table.jsonl")
    llama = tiny_llama.write_llama(folder / "llama", chat_tokenizer("chatml"), np.random.default_rng(0))
    config.model.pretrained, config.prompt.format, config.prompt.max_length = str(llama), "chat", 256
    config.model.train_new_embeddings, config.lora.rank, config.train.epochs = True, 4, 1.0
    return config


def quantised(folder: Path) -> ConfigDict:
    """LoRA on kernels in four bits, with stacked layers."""
    tokenizer = train_text_tokenizer(["Does this ECG show sinus rhythm? yes no none"] * 3, 320)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_llama, "WIDTH", 64)
        patch.setattr(tiny_llama, "HEAD_DIM", 16)
        llama = tiny_llama.write_llama(folder / "llama", tokenizer, np.random.default_rng(0))
    config = small_config()
    config.model.pretrained, config.model.quantize, config.model.vocab_multiple = str(llama), "nf4", 1
    config.model.scan_from, config.lora.rank = 1, 4
    return config


def vectors(folder: Path) -> ConfigDict:
    """Spans of the signal in the place of ECG tokens."""
    config = small_config()
    config.ecg_input.kind, config.ecg_input.vectors = "elf_patch", 4
    return config


def upload(client: Client, header: Path) -> str:
    signals = header.with_suffix(".dat")
    status, recording = client.upload((header.name, header.read_bytes()), (signals.name, signals.read_bytes()))
    assert status == 201, recording
    return recording["id"]


@pytest.mark.slow
@pytest.mark.parametrize("make", [conversations, quantised, vectors])
def test_every_kind_of_run_answers_as_ask_does(make, tmp_path):
    config, folder = make(tmp_path), tmp_path / "run"
    run(config, folder, ["prepare", "train"])
    headers = sorted((folder / "synthetic/ptbxl" if config.data.synthetic_records else tmp_path).rglob("*_hr.hea"))[:2]
    expected = asked(config, folder, [str(header.with_suffix("")) for header in headers], list(QUESTIONS))
    with served(folder, slots=4) as client:
        ids = [upload(client, header) for header in headers]
        pairs = [(question, id) for question in QUESTIONS for id in ids]
        with ThreadPoolExecutor(4) as pool:
            answers = [*pool.map(lambda pair: client.ask(*pair), pairs)]
        again = client.ask(*pairs[0])  # after what was read of its ECG
        status, attention = client.post(
            "/v1/attention", {"recordings": [ids[0]], "question": QUESTIONS[0], "answer": "yes", "segment": 0}
        )
    found = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert found == [text for answers in expected for text in answers]
    assert again["choices"][0]["message"]["content"] == found[0]
    assert status == 200, attention
