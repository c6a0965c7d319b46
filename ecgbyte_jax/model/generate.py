"""Generation: one jitted prefill, then one while_loop over a key/value cache that ends when every row has ended.

The prompt's keys and values stay outside the loop, which would copy them for every token; inside it are the new tokens' alone.

Axes: B batch, T prompt tokens (left-padded), P beginnings that rows share, N new tokens at most, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.decoder import Cache, Decoder, unstack


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Decoding:
    """The whole state of decoding between two tokens."""

    step: jax.Array  # int32 []: tokens generated so far
    last: jax.Array  # int32 [B]: the token to feed next
    done: jax.Array  # bool [B]
    tokens: jax.Array  # int32 [B, N]
    log_probs: jax.Array  # float32 [B, N]
    cache: Cache  # of the new tokens, and the prompt's last one


@dataclass(frozen=True)
class _Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest one."""

    temperature: float
    top_k: int
    top_p: float


class Shared(NamedTuple):
    """What several prompts begin with: input_ids and attention_mask [P, T], left-padded; row b begins with number rows[b]."""

    input_ids: jax.Array
    attention_mask: jax.Array
    rows: jax.Array  # int32 [B]


def generate(
    model: Decoder,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    max_new_tokens: int,
    *,
    shared: Shared | None = None,
    stop_ids: tuple[int, ...] = (),
    pad_id: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    return_log_probs: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Continues left-padded prompts: int32 [B, max_new_tokens].

    input_ids, attention_mask: [B, T], behind what a row shares with others, which is computed once. A row ends with its first
    stop id, which is kept; `pad_id` fills the rest. Temperature 0 always takes the likeliest token; above, tokens are drawn by
    `key` from the `top_k` likeliest (0: all) and of those from the fewest that hold `top_p` of the probability; with a key for
    each row [B] its draws do not depend on the other rows. `return_log_probs` gives (tokens, log-probabilities float32
    [B, max_new_tokens]) by the model's own distribution, 0 behind a row's end. Prompts are cut to the longest one's length,
    rounded up, so that different lengths share few compiled programs.

    Raises ConfigError for a row of padding alone, more tokens than the model has positions, and impossible settings.
    """
    sampling = _Sampling(float(temperature), int(top_k), float(top_p))
    _check(model, input_ids, attention_mask, shared, max_new_tokens, sampling, key)
    if shared is None:
        prompt = _round_length(input_ids, attention_mask)
    else:  # what is left of each prompt is short: fewer lengths, so that few pairs of them are compiled
        prompt = _round_length(input_ids, attention_mask, least=8, steps=2)
        shared = Shared(*_round_length(shared.input_ids, shared.attention_mask), jnp.asarray(shared.rows))
    graphdef, state = nnx.split(model)
    key = jax.random.key(0) if key is None else key
    tokens, log_probs = _generate(graphdef, state, shared, *prompt, key, max_new_tokens, tuple(stop_ids), pad_id, sampling)
    return (tokens, log_probs) if return_log_probs else tokens


def _check(
    model: Decoder, input_ids, attention_mask, shared: Shared | None, new: int, sampling: _Sampling, key: jax.Array | None
) -> None:
    prompts = {"": (input_ids, attention_mask)} | ({} if shared is None else {"shared ": shared[:2]})
    for whose, (ids, mask) in prompts.items():
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise ConfigError(f"{whose}input_ids {ids.shape} and attention_mask {mask.shape} found, [B, T] twice wanted")
        lengths = _lengths(mask)
        if int(lengths.min()) == 0:
            raise ConfigError(f"{whose}attention_mask: row {int(lengths.argmin())} is padding alone, one token or more wanted")
    lengths = _lengths(attention_mask)
    longest = int((lengths if shared is None else lengths + _lengths(shared.attention_mask)[shared.rows]).max())
    if longest + new > model.config.max_positions:
        raise ConfigError(
            f"a prompt of {longest} tokens and {new} new ones found, at most the model's {model.config.max_positions} "
            "positions wanted"
        )
    for name, value, fits, wanted in (
        ("max_new_tokens", new, new >= 1, "1 or more"),
        ("temperature", sampling.temperature, sampling.temperature >= 0, "0 or more"),
        ("top_k", sampling.top_k, 0 <= sampling.top_k <= model.config.vocab_size, "0 to the vocabulary's size"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "above 0, 1 at most"),
    ):
        if not fits:
            raise ConfigError(f"{name}: {value} found, {wanted} wanted")
    if sampling.temperature > 0 and key is None:
        raise ConfigError("temperature: above 0 tokens are drawn at random, which needs a `key`")


def _lengths(attention_mask: jax.Array) -> jax.Array:
    return jnp.sum(jnp.asarray(attention_mask) != 0, axis=1)


def _round_length(input_ids, attention_mask, least: int = 32, steps: int = 8) -> tuple[jax.Array, jax.Array]:
    """Prompts [B, T'] as long as the longest one, rounded up: 32, 36, 40, ..., 64, 72, ...: `steps` lengths an octave."""
    input_ids, attention_mask = jnp.asarray(input_ids), jnp.asarray(attention_mask)
    longest, length = int(_lengths(attention_mask).max()), input_ids.shape[1]
    octaves = (least << power for power in range(32))
    target = next(size for low in octaves for size in range(low, 2 * low, low // steps) if size >= longest)
    if target <= length:
        return input_ids[:, length - target :], attention_mask[:, length - target :]
    room = ((0, 0), (target - length, 0))
    return jnp.pad(input_ids, room), jnp.pad(attention_mask, room)


@partial(jax.jit, static_argnums=(0, 6, 7, 8, 9))
def _generate(graphdef, state, shared, input_ids, attention_mask, key, max_new_tokens, stop_ids, pad_id, sampling):
    model: Decoder = unstack(nnx.merge(graphdef, state))
    rows, there = len(input_ids), attention_mask.astype(bool)
    stops = jnp.array(stop_ids, jnp.int32)

    def record(now: _Decoding, hidden: jax.Array) -> _Decoding:
        """Chooses the next token of each row by the last hidden state [B, T, D]."""
        logits = model.logits(hidden[:, -1:])[:, 0]  # [B, V]
        token = _choose(logits, sampling, _each(jax.random.fold_in, key)(key, now.step))  # [B]
        chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
        log_prob = jnp.where(now.done, 0.0, chosen - jax.nn.logsumexp(logits, axis=-1))
        token = jnp.where(now.done, pad_id, token)
        return replace(
            now,
            step=now.step + 1,
            last=token,
            done=now.done | jnp.isin(token, stops),
            tokens=now.tokens.at[:, now.step].set(token),
            log_probs=now.log_probs.at[:, now.step].set(log_prob),
        )

    def extend(now: _Decoding) -> _Decoding:
        hidden, token = model.extend(now.last[:, None], jnp.ones((rows, 1), bool), (*prompt, now.cache))
        return record(replace(now, cache=now.cache.put(token, now.step)), hidden)

    def unfinished(now: _Decoding) -> jax.Array:
        return (now.step < max_new_tokens) & ~now.done.all()

    # The last token of the prompt goes with the new ones: of the others only the last block's keys and values are needed,
    # and the compiler leaves the rest of that block out.
    prompt = ()
    if shared is not None:
        _, begun = model.extend(shared.input_ids, shared.attention_mask.astype(bool))
        prompt = (jax.tree.map(lambda x: x[shared.rows], begun),)
    prompt += (model.extend(input_ids[:, :-1], there[:, :-1], prompt)[1],)
    start = _Decoding(
        step=jnp.int32(0),
        last=input_ids[:, -1],
        done=jnp.zeros(rows, bool),
        tokens=jnp.full((rows, max_new_tokens), pad_id, jnp.int32),
        log_probs=jnp.zeros((rows, max_new_tokens), jnp.float32),
        cache=Cache.empty(model.config, rows, max_new_tokens),
    )
    end = jax.lax.while_loop(unfinished, extend, start)
    return end.tokens, end.log_probs


def _choose(logits: jax.Array, sampling: _Sampling, key: jax.Array) -> jax.Array:
    """The next token of each row, int32 [B], by float32 logits [B, V]."""
    if sampling.temperature == 0:
        return logits.argmax(axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        falling = jnp.sort(logits, axis=-1, descending=True)
        shares = jax.nn.softmax(falling, axis=-1)
        # A token stays where those likelier than it hold less than top_p (Holtzman et al. 2020).
        kept = jnp.cumsum(shares, axis=-1) - shares < sampling.top_p
        least = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return _each(jax.random.categorical, key)(key, logits).astype(jnp.int32)


def _each(draw: Callable[[jax.Array, jax.Array], jax.Array], key: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`draw(key, what)` for one key, or row by row for keys [B]; a number is the same for every row."""
    return draw if key.ndim == 0 else lambda keys, what: jax.vmap(draw, (0, 0 if what.ndim else None))(keys, what)
