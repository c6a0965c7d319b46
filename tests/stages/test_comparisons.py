"""Questions that compare two ECGs, from the real files to scores."""

import json

import numpy as np
import pytest

from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prepared import load_prepared
from ecgbyte_jax.inputs.prompt import render
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.stages.pipeline import run
from experiments import ecg_qa_ptb


@pytest.mark.slow
def test_prompts_of_two_ecgs_are_prepared_trained_and_evaluated(shared, tmp_path):
    config = ecg_qa_ptb.get_config("tiny")
    config.data.root, config.data.split, config.data.question_types = str(shared / "data/ptbxl"), "official", ()
    config.data.max_segments, config.tokenizer.num_merges, config.prompt.max_length = 1, 200, 256
    config.model.width, config.model.layers, config.model.mlp_width = 32, 2, 64
    config.train.batch_size, config.train.epochs, config.train.checkpoint_every = 16, 0.5, 10
    config.eval.split, config.eval.max_new_tokens = "valid", 8
    run(config, tmp_path, ["prepare", "train", "eval"])

    opened = load_prepared(Workdir(tmp_path))
    sequences = open_split(opened.shards, opened.manifest, "train")
    found = [sequences[i] for i in range(len(sequences))]
    pairs = [sequence for sequence in found if len(sequence.ecgs) == 2]
    assert 150 < len(pairs) < len(found) and {len(sequence.ecgs) for sequence in found} == {1, 2}
    ids, loss = render(opened.ids, pairs[0].text, pairs[0].ecgs, 256)
    assert [np.count_nonzero(ids == mark) for mark in (opened.ids.sig_start, opened.ids.sig_end)] == [2, 2]
    assert opened.text_tokenizer.decode(ids[loss][:-1]) == pairs[0].answer and ids[loss][-1] == opened.ids.eos

    losses = [line["loss"] for line in map(json.loads, (tmp_path / "metrics.jsonl").open()) if "loss" in line]
    assert len(losses) > 10 and np.isfinite(losses).all() and losses[-1] < losses[0]
    answers = [json.loads(line) for line in (tmp_path / "eval/generations.jsonl").open()]
    assert len(answers) == opened.manifest.splits["valid"].sequences > 0
