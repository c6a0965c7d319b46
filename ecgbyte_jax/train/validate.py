"""Scores on the validation split while a training goes on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ShardsError
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
    fill a batch. Of a mixture, also valid_loss_NAME of every corpus that fills one.
    """
    if prepared.manifest.splits["valid"].sequences < settings.train.batch_size:
        return None
    try:
        _, batches = plan_batches(settings, prepared, "valid", 1.0, mesh)
    except TooFewRowsError as error:  # packed
        console.print(f"train: no validation, {error}")
        return None
    batches = [batches[i] for i in range(min(len(batches), settings.train.valid_batches))]
    by_part = _batches_by_part(settings, prepared, mesh)
    match = _make_match(settings, workdir, prepared, parts, mesh) if settings.train.valid_answers else None

    @jax.jit
    def score(params: Any, frozen: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return answer_loss(nnx.merge(parts.graphdef, params, frozen), batch), answer_tokens(batch)

    def loss(state: TrainState, batches: list[dict[str, np.ndarray]]) -> float:
        sums = [settle(score(state.params, parts.frozen, put_batch(batch, mesh))) for batch in batches]
        return float(sum(loss for loss, _ in sums) / sum(tokens for _, tokens in sums))

    def validate(state: TrainState) -> dict[str, float]:
        losses = {"valid_loss": loss(state, batches)}
        losses |= {f"valid_loss_{name}": loss(state, own) for name, own in by_part.items()}
        return losses | (match(state.params) if match else {})

    return validate


def _batches_by_part(settings: Settings, prepared: Prepared, mesh: Mesh) -> dict[str, list[dict[str, np.ndarray]]]:
    """Validation batches of each corpus of a mixture that fills one, as many of all together as of the whole split."""
    shares, batches_of = settings.data.shares, {}
    for name in shares:
        try:
            _, batches = plan_batches(settings, prepared, "valid", 1.0, mesh, name)
        except ShardsError:  # has no sequences in this split, or too few
            continue
        most = max(1, settings.train.valid_batches // len(shares))
        batches_of[name] = [batches[i] for i in range(min(len(batches), most))]
    return batches_of


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
    names = np.array([sequence.part for sequence in sequences])
    prompts = [(sequence.ecgs, sequence.prompt) for sequence in sequences]
    tokenizer = ECGTokenizer.load(workdir.ecg_tokenizer)

    def match(params: Any) -> dict[str, float]:
        answerer = Answerer(greedy, prepared, tokenizer, parts.model(params), mesh)
        answers = [answer for start in range(0, count, size) for answer in answerer.answer(prompts[start : start + size])]
        pairs = measure([sequence.answer for sequence in sequences], [answer.text for answer in answers])
        groups = {"": pairs} | {f"_{name}": pairs.rows(np.flatnonzero(names == name)) for name in sorted({*names} - {""})}
        scores = {of: group.overall() for of, group in groups.items()}
        return {f"valid_{metric}{of}": scores[of][metric] for of in groups for metric in ("exact_match", "rouge_l")}

    return match
