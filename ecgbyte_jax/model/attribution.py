"""Which tokens of its prompt an answer comes from: attention, attention rollout and gradient x input.

Axes: T tokens of a sequence, P of them its prompt, A its answer, D width, H query heads, L layers, E ECGs, S their samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.attention import attend, causal_mask, within
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.layers import apply_norm
from ecgbyte_jax.model.rope import layer_ropes

_SHORTEST = 64  # sequences and answers are padded to a power of two, at least this, so that few programs are compiled


@dataclass(frozen=True, eq=False)
class Attribution:
    """How much each token of the prompt contributed to the answer, float32.

    attention, rollout: [A, P]; the row of an answer token is taken at the token before it, which predicted it. What a row
    lacks of 1 went to earlier answer tokens. gradient_input: [P], signed. log_probs: [A], of the answer's tokens.
    """

    attention: np.ndarray
    rollout: np.ndarray
    gradient_input: np.ndarray
    log_probs: np.ndarray


def attribute(
    model: Decoder,
    prompt: np.ndarray,
    answer: np.ndarray,
    layers: Sequence[int] = (),
    heads: Sequence[int] = (),
    signals: np.ndarray | None = None,
) -> Attribution:
    """Attributes `answer` [A] to `prompt` [P] (ids, unpadded), and to the vectors of `signals` float32 [E, 12, S] there.

    attention: the mean over the given layers and heads, or over all. rollout: attention through all layers, half of each
    layer's weight on the residual stream (Abnar & Zuidema 2020, section 3; mean over all heads). Delta nets have no attention
    weights: both leave these layers out. gradient_input: the input of the first block times the gradient of the answer's
    log-probability at it, summed over D (Shrikumar et al. 2016).

    Raises ConfigError for an empty prompt or answer, more tokens than the model has positions, and a layer or head that it
    lacks or that has no attention.
    """
    prompt, answer = np.asarray(prompt, np.int32), np.asarray(answer, np.int32)
    _check(model, prompt, answer, layers, heads)
    total, answer_tokens = len(prompt) + len(answer), len(answer)
    length = _padded(total)
    ids = np.pad(np.concatenate([prompt, answer]), (length - total, 0))
    answer_length = _padded(answer_tokens)
    layer_share = _shares(model.config.attention_layers, layers)
    head_share = _shares(range(model.config.heads), heads)
    graphdef, state = nnx.split(model)
    sizes = np.int32(total), np.int32(answer_tokens)
    arrays = _attribute(graphdef, state, ids, signals, *sizes, layer_share, head_share, min(answer_length, length - 1))
    attention, rollout, gradients, log_probs = map(np.asarray, arrays)
    rows, columns = slice(-answer_tokens - 1, -1), slice(length - total, length - answer_tokens)
    return Attribution(attention[rows, columns], rollout[rows, columns], gradients[columns], log_probs[-answer_tokens:])


def _padded(count: int) -> int:
    return max(_SHORTEST, 1 << (count - 1).bit_length())


def _check(model: Decoder, prompt: np.ndarray, answer: np.ndarray, layers: Sequence[int], heads: Sequence[int]) -> None:
    if not prompt.size or not answer.size:
        raise ConfigError(f"prompt of {prompt.size} and answer of {answer.size} tokens found, at least one token each expected")
    for name, chosen, count in (("layers", layers, model.config.layers), ("heads", heads, model.config.heads)):
        if not all(0 <= number < count for number in chosen):
            raise ConfigError(f"{name}: {tuple(chosen)} found, numbers from 0 to {count - 1} expected")
    if not set(layers) <= set(model.config.attention_layers):
        raise ConfigError(f"layers: {tuple(layers)} found, those with attention {model.config.attention_layers} expected")
    if len(prompt) + len(answer) > model.config.max_positions:
        raise ConfigError(
            f"prompt of {len(prompt)} and answer of {len(answer)} tokens found, together at most the model's "
            f"{model.config.max_positions} positions expected"
        )


def _shares(numbers: Sequence[int], chosen: Sequence[int]) -> np.ndarray:
    """The weight in the mean of each of these layers or heads, float32; none chosen means all."""
    included = np.isin(numbers, list(chosen or numbers))
    return (included / included.sum()).astype(np.float32)


@partial(jax.jit, static_argnums=(0, 8))
def _attribute(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    ids: jax.Array,
    signals: jax.Array | None,
    total: jax.Array,
    answer_tokens: jax.Array,
    layer_share: jax.Array,
    head_share: jax.Array,
    answer_length: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Attention and rollout [T, T], gradient x input [T] and log-probabilities [answer_length] of left-padded ids [T].

    `total` tokens are real, and the last `answer_tokens` of them are the answer, padded on the left to `answer_length`.
    """
    model: Decoder = nnx.merge(graphdef, state)
    ids, places = ids[None], jnp.arange(len(ids))
    valid = places >= len(places) - total
    positions = jnp.maximum(places - (len(places) - total), 0)[None]
    embedded = model.embed(ids, positions, None if signals is None else signals[None])

    def answer_log_prob(embedded: jax.Array) -> tuple[jax.Array, tuple]:
        hidden, weights = run_blocks(model, embedded, valid[None], positions, head_share)
        logits = model.logits(hidden[:, -answer_length - 1 : -1])[0]  # [answer_length, V]
        log_probs = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[0, -answer_length:, None], axis=1)[:, 0]
        is_answer = jnp.arange(answer_length) >= answer_length - answer_tokens
        return jnp.sum(jnp.where(is_answer, log_probs, 0.0)), (log_probs, weights)

    gradient, (log_probs, weights) = jax.grad(answer_log_prob, has_aux=True)(embedded)
    product = gradient.astype(jnp.float32) * embedded.astype(jnp.float32)  # [1, T, D]
    identity = jnp.eye(len(places))
    attention, rollout = jnp.zeros_like(identity), identity
    for share, (chosen_heads, all_heads) in zip(layer_share, weights):
        attention += share * chosen_heads
        rollout = (0.5 * all_heads + 0.5 * identity) @ rollout
    return attention, rollout, product.sum(axis=-1)[0], log_probs


def run_blocks(
    model: Decoder, x: jax.Array, valid: jax.Array, positions: jax.Array, head_share: jax.Array | None
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Runs all blocks on x [B, T, D]; returns the hidden states after the last norm, and row 0's attention weights by layer.

    valid: bool [B, T], False on padding. The weights of a layer with attention are two means over heads, [T, T] each: weighted
    by `head_share` [H], and over all heads equally. Where `head_share` is None the list is empty.
    """
    ropes = layer_ropes(model.config, positions, jnp.sum(valid, axis=1, keepdims=True))
    segment_ids = valid.astype(jnp.int32)
    mask, weights = causal_mask(segment_ids), []
    for block, rope, window in zip(model.layers(), ropes, model.config.layer_windows):
        if block.attention is None:
            x, _ = block(x, (segment_ids, None), None)
            continue
        near = within(mask, positions, positions, window)
        if head_share is not None:
            by_head = block.attention.weights(apply_norm(block.attention_norm, x), rope, near)[0]  # [H, T, T]
            weights.append((jnp.tensordot(head_share, by_head, 1), by_head.mean(axis=0)))
        x, _ = block(x, (rope, lambda q, k, v, near=near: attend(q, [(k, v)], [near], model.config)), None)
    return model.norm(x), weights
