"""A step's speed, and its model FLOP utilisation: the arithmetic that it needs, by what the devices could do in its time."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params

from ecgbyte_jax.inputs.plan import Plan
from ecgbyte_jax.model.build import Parts
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.train.chips import chip_of


def peak_flops() -> float | None:
    """FLOP/s of all devices together, None where it is not known (on a CPU, for example)."""
    chip = chip_of(jax.devices()[0])
    return None if chip is None else chip.flops * jax.device_count()


def step_figures(plan: Plan, parts: Parts, number: int, seconds: float) -> dict[str, float]:
    """What the log has of a step that took so many seconds: tokens a second, their share of the places, MFU where known."""
    planned, lengths = plan[number - 1], plan.lengths(number - 1)
    tokens, peak = int(lengths[:, 0].sum()), peak_flops()
    figures = {
        "real_tokens": round(tokens / (len(planned.rows) * planned.length), 4),
        "tokens_per_s": round(tokens / seconds, 1),
    }
    if peak:
        figures["mfu"] = round(step_flops(parts.config, parts.trained_in_decoder, lengths) / seconds / peak, 4)
    return figures


def step_flops(config: DecoderConfig, trained: int, lengths: np.ndarray) -> float:
    """What one step needs: 2 FLOPs a parameter and token forward, 2 for the activations' gradients, 2 for trained weights'.

    trained: the number of trained parameters; lengths: int [n, 2], the tokens and answer tokens of each sequence. Padding
    and the look-up of embeddings are not counted; the head counts for the answers' tokens alone. A delta net counts as its
    recurrence, whatever the chunks in which it is computed.
    """
    tokens, answers = lengths.sum(axis=0)
    attentions = len(config.attention_layers)
    attention = config.width * config.head_dim * ((3 if config.attention_gate else 2) * config.heads + 2 * config.kv_heads)
    blocks = attentions * attention + config.layers * (3 if config.gated else 2) * config.width * config.mlp_width
    pairs = np.sum(lengths[:, 0].astype(float) ** 2) / 2  # of a token and one that it sees
    mixing = 4 * attentions * config.heads * config.head_dim * pairs  # scores and sums, forward
    if config.delta:
        delta = config.delta
        keys, values = delta.key_heads * delta.key_dim, delta.value_heads * delta.value_dim
        blocks += len(delta.layers) * (config.width * (2 * keys + 3 * values + 2 * delta.value_heads))
        # Of each token: the convolution; the state decayed, read with the key, corrected, and read with the query.
        token_mixing = 2 * delta.conv_width * (2 * keys + values) + 7 * delta.key_dim * values
        mixing += len(delta.layers) * token_mixing * tokens
    return float(tokens * (4 * blocks + 2 * min(trained, blocks)) + 3 * mixing + 4 * answers * config.width * config.vocab_size)


def product_flops(function: Callable, *arguments: Any) -> float:
    """Of the matrix products and convolutions of a function of arrays (or their shapes): 2 a multiplication, nothing else.

    They are counted as the function is written, before a compiler sees it; of a loop, one round.
    """
    return _product_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _product_flops(jaxpr: Jaxpr) -> float:
    counted = 0.0
    for equation in jaxpr.eqns:
        counted += sum(map(_product_flops, jaxprs_in_params(equation.params)))
        out = equation.outvars[0].aval.shape
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            counted += 2.0 * math.prod(out) * math.prod(left[axis] for axis in summed)
        elif equation.primitive.name == "conv_general_dilated":
            kernel, places = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            counted += 2.0 * math.prod(out) * math.prod(kernel) / kernel[places[0]]
    return counted
