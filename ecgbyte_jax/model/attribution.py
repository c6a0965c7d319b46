"""Where an answer comes from: attention, attention rollout and gradient x input on each token of the prompt.

Axes: T tokens of a sequence, P of them its prompt, A its answer, D width, H query heads, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.attention import causal_mask, rope_angles, within
from ecgbyte_jax.model.decoder import Decoder

_SHORTEST = 64  # sequences and answers are padded to a power of two from here, so that they share few compiled programs


@dataclass(frozen=True, eq=False)
class Attribution:
    """What each token of the prompt is to the answer, float32.

    attention, rollout: [A, P], a row for each answer token, of the place that it was chosen at (the one before it); what a
    row lacks of 1 went to the answer's earlier tokens. gradient_input: [P], signed; log_probs: [A], of the answer's tokens.
    """

    attention: np.ndarray
    rollout: np.ndarray
    gradient_input: np.ndarray
    log_probs: np.ndarray


def attribute(
    model: Decoder, prompt: np.ndarray, answer: np.ndarray, layers: Sequence[int] = (), heads: Sequence[int] = ()
) -> Attribution:
    """Attributes `answer` [A] to `prompt` [P] (ids, unpadded).

    attention: the mean over the chosen layers and heads, all where none is named. rollout: attention through all layers, half
    of each layer's taken by the residual stream (Abnar & Zuidema 2020, section 3; mean over all heads). gradient_input: the
    gradient of the answer's log-probability by what enters the first block, times that, summed over D (Shrikumar et al. 2016).

    Raises ConfigError for an empty prompt or answer, and a layer or head that the model lacks.
    """
    prompt, answer = np.asarray(prompt, np.int32), np.asarray(answer, np.int32)
    _check(model, prompt, answer, layers, heads)
    total, last = len(prompt) + len(answer), len(answer)
    length = _padded(total)
    ids = np.pad(np.concatenate([prompt, answer]), (length - total, 0))
    room = _padded(last)  # places at the end that hold every answer token
    layer_share = _shares(model.config.layers, layers)
    head_share = _shares(model.config.heads, heads)
    graphdef, state = nnx.split(model)
    sizes = np.int32(total), np.int32(last)
    found = _attribute(graphdef, state, ids, *sizes, layer_share, head_share, min(room, length - 1))
    attention, rollout, gradients, log_probs = map(np.asarray, found)
    rows, columns = slice(-last - 1, -1), slice(length - total, length - last)
    return Attribution(attention[rows, columns], rollout[rows, columns], gradients[columns], log_probs[-last:])


def _padded(count: int) -> int:
    return max(_SHORTEST, 1 << (count - 1).bit_length())


def _check(model: Decoder, prompt: np.ndarray, answer: np.ndarray, layers: Sequence[int], heads: Sequence[int]) -> None:
    if not prompt.size or not answer.size:
        raise ConfigError(f"prompt of {prompt.size} and answer of {answer.size} tokens found, at least one each wanted")
    for name, chosen, count in (("layers", layers, model.config.layers), ("heads", heads, model.config.heads)):
        if not all(0 <= number < count for number in chosen):
            raise ConfigError(f"{name}: {tuple(chosen)} found, of 0 to {count - 1} of this model wanted")
    if len(prompt) + len(answer) > model.config.max_positions:
        raise ConfigError(
            f"{len(prompt)} tokens and {len(answer)} of the answer found, at most the model's {model.config.max_positions} "
            "positions wanted"
        )


def _shares(count: int, chosen: Sequence[int]) -> np.ndarray:
    """What each of `count` counts for in the mean, float32."""
    among = np.isin(np.arange(count), list(chosen) or np.arange(count))
    return (among / among.sum()).astype(np.float32)


@partial(jax.jit, static_argnums=(0, 7))
def _attribute(graphdef, state, ids, total, last, layer_share, head_share, room):
    """ids [T], padded on the left, the answer its `last` tokens -> attention, rollout [T, T], [T], log-probabilities [room]."""
    model: Decoder = nnx.merge(graphdef, state)
    ids, places = ids[None], jnp.arange(len(ids))
    valid = places >= len(places) - total
    positions = jnp.maximum(places - (len(places) - total), 0)[None]
    embedded = model.embed(ids, positions)

    def answer_log_prob(embedded: jax.Array) -> tuple[jax.Array, tuple]:
        hidden, weights = run_blocks(model, embedded, valid[None], positions, head_share)
        logits = model.logits(hidden[:, -room - 1 : -1])[0]  # [room, V]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[0, -room:, None], axis=1)[:, 0]
        return jnp.sum(jnp.where(jnp.arange(room) >= room - last, chosen, 0.0)), (chosen, weights)

    gradient, (log_probs, weights) = jax.grad(answer_log_prob, has_aux=True)(embedded)
    product = gradient.astype(jnp.float32) * embedded.astype(jnp.float32)  # [1, T, D]
    identity = jnp.eye(len(places))
    attention, rollout = jnp.zeros_like(identity), identity
    for share, (chosen, mean) in zip(layer_share, weights):
        attention += share * chosen
        rollout = (0.5 * mean + 0.5 * identity) @ rollout
    return attention, rollout, product.sum(axis=-1)[0], log_probs


def run_blocks(model, x, valid, positions, head_share):
    """x [B, T, D] through all blocks: (hidden states behind the last norm, of each layer the attention weights of row 0).

    Of each layer two means over heads, [T, T]: by `head_share` [H], and over all; no weights where it is None.
    """
    rope = None if model.config.rope_theta is None else rope_angles(model.config, positions)
    mask = causal_mask(valid.astype(jnp.int32))
    weights = []
    for block, window in zip(model.layers(), model.config.layer_windows):
        seen = within(mask, positions, positions, window)
        if head_share is not None:
            found = block.attention.weights(block.attention_norm(x), rope, seen)[0]  # [H, T, T]
            weights.append((jnp.tensordot(head_share, found, 1), found.mean(axis=0)))
        x, _ = block(x, rope, [seen], [], None)
    return model.norm(x), weights
