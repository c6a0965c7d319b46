"""Greedy generation: one jitted prefill, then one while_loop over a key/value cache.

Axes: B batch, T prompt tokens (left-padded), N new tokens at most, V vocabulary.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.model.decoder import Cache, Decoder


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Decoding:
    """The whole state of decoding between two tokens."""

    step: jax.Array  # int32 []: tokens generated so far
    last: jax.Array  # int32 [B]: the token to feed next
    done: jax.Array  # bool [B]
    tokens: jax.Array  # int32 [B, N]
    cache: Cache


def generate(
    model: Decoder,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    max_new_tokens: int,
    *,
    stop_ids: tuple[int, ...] = (),
    pad_id: int = 0,
) -> jax.Array:
    """The likeliest next tokens of left-padded prompts, one at a time: int32 [B, max_new_tokens].

    input_ids, attention_mask: [B, T]. A row ends with its first stop id, which is kept; `pad_id` fills the rest.
    """
    graphdef, state = nnx.split(model)
    return _generate(graphdef, state, input_ids, attention_mask, max_new_tokens, stop_ids, pad_id)


@partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _generate(graphdef, state, input_ids, attention_mask, max_new_tokens, stop_ids, pad_id):
    model: Decoder = nnx.merge(graphdef, state)
    rows, prompt = input_ids.shape
    valid = jnp.pad(attention_mask.astype(bool), ((0, 0), (0, max_new_tokens)), constant_values=True)  # [B, T + N]
    stops = jnp.array(stop_ids, jnp.int32)

    def next_token(hidden: jax.Array) -> jax.Array:
        return model.logits(hidden[:, -1:])[:, 0].argmax(axis=-1).astype(jnp.int32)  # [B]

    def record(now: _Decoding, token: jax.Array) -> _Decoding:
        token = jnp.where(now.done, pad_id, token)
        tokens = now.tokens.at[:, now.step].set(token)
        done = now.done | jnp.isin(token, stops)
        return replace(now, step=now.step + 1, last=token, done=done, tokens=tokens)

    def extend(now: _Decoding) -> _Decoding:
        hidden, cache = model.hidden(now.last[:, None], valid, cache=now.cache)
        return record(replace(now, cache=cache), next_token(hidden))

    def unfinished(now: _Decoding) -> jax.Array:
        return (now.step < max_new_tokens) & ~now.done.all()

    hidden, cache = model.hidden(input_ids, valid, cache=Cache.empty(model.config, rows, prompt + max_new_tokens))
    start = _Decoding(
        step=jnp.int32(0),
        last=jnp.zeros(rows, jnp.int32),
        done=jnp.zeros(rows, bool),
        tokens=jnp.full((rows, max_new_tokens), pad_id, jnp.int32),
        cache=cache,
    )
    return jax.lax.while_loop(unfinished, extend, record(start, next_token(hidden))).tokens
