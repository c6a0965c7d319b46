"""Scores on the validation split while a training goes on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.evaluate.answers import Answerer
from ecgbyte_jax.evaluate.metrics import measure
from ecgbyte_jax.inputs.controls import open_shown
from ecgbyte_jax.inputs.plan import TooFewRowsError
from ecgbyte_jax.inputs.prepared import Prepared
from ecgbyte_jax.model.build import Parts
from ecgbyte_jax.model.sharding import check_batch_size, put_batch, settle
from ecgbyte_jax.run.console import console
from ecgbyte_jax.run.workdir import Workdir
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.feed import plan_batches
from ecgbyte_jax.train.step import TrainState, answer_loss, answer_tokens


def make_validation(
    settings: Settings, workdir: Workdir, prepared: Prepared, parts: Parts, mesh: Mesh
) -> Callable[[TrainState], dict[str, float]] | None:
    """(state) -> {valid_loss, and valid_exact_match and valid_rouge_l where `train.valid_answers` is above 0}.

    The loss is the mean over the answer tokens of the same batches each time, without dropout. None where the split does not
    fill a batch.
    """
    if prepared.manifest.splits["valid"].sequences < settings.train.batch_size:
        return None
    try:
        _, batches = plan_batches(settings, prepared, "valid", 1.0, mesh)
    except TooFewRowsError as error:  # packed
        console.print(f"train: no validation, {error}")
        return None
    batches = [batches[i] for i in range(min(len(batches), settings.train.valid_batches))]
    match = _make_match(settings, workdir, prepared, parts, mesh) if settings.train.valid_answers else None

    @jax.jit
    def score(params: Any, frozen: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return answer_loss(nnx.merge(parts.graphdef, params, frozen), batch), answer_tokens(batch)

    def validate(state: TrainState) -> dict[str, float]:
        sums = [settle(score(state.params, parts.frozen, put_batch(batch, mesh))) for batch in batches]
        loss = {"valid_loss": float(sum(loss for loss, _ in sums) / sum(tokens for _, tokens in sums))}
        return loss | (match(state.params) if match else {})

    return validate


def _make_match(
    settings: Settings, workdir: Workdir, prepared: Prepared, parts: Parts, mesh: Mesh
) -> Callable[[Any], dict[str, float]]:
    """(trained parameters) -> the scores of greedy answers to the same questions each time, those that a verdict may be about.

    See `verdict.main_metric`.
    """
    size = settings.eval.batch_size
    check_batch_size(mesh, size, "eval.batch_size")
    greedy = replace(settings, eval=replace(settings.eval, temperature=0.0, seeds=(0,)))
    dataset = open_shown(prepared, "valid", settings.data.ecg, settings.signal.segment_length, settings.data_seed)
    count = min(settings.train.valid_answers, len(dataset))
    places = np.sort(np.random.default_rng(settings.data_seed).choice(len(dataset), count, replace=False))
    sequences = [dataset[int(place)] for place in places]
    prompts = [(sequence.ecgs, sequence.prompt) for sequence in sequences]
    tokenizer = ECGTokenizer.load(workdir.ecg_tokenizer)

    def match(params: Any) -> dict[str, float]:
        answerer = Answerer(greedy, prepared, tokenizer, parts.model(params), mesh)
        answers = [answer for start in range(0, count, size) for answer in answerer.answer(prompts[start : start + size])]
        scores = measure([sequence.answer for sequence in sequences], [answer.text for answer in answers]).overall()
        return {f"valid_{metric}": scores[metric] for metric in ("exact_match", "rouge_l")}

    return match
