"""Generation: one jitted prefill, then one while_loop over a key/value cache that ends when every row has ended.

Axes: B batch, T prompt tokens (left-padded), N new tokens at most, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

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
    cache: Cache


@dataclass(frozen=True)
class _Sampling:
    """How the next token is chosen; temperature 0 takes the likeliest one."""

    temperature: float
    top_k: int
    top_p: float


def generate(
    model: Decoder,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    max_new_tokens: int,
    *,
    stop_ids: tuple[int, ...] = (),
    pad_id: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    return_log_probs: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Continues left-padded prompts: int32 [B, max_new_tokens].

    input_ids, attention_mask: [B, T]. A row ends with its first stop id, which is kept; `pad_id` fills the rest. Temperature
    0 always takes the likeliest token; above, tokens are drawn by `key` from the `top_k` likeliest (0: all) and of those
    from the fewest that hold `top_p` of the probability; with a key for each row [B] its draws do not depend on the other
    rows. `return_log_probs` gives (tokens, log-probabilities float32 [B, max_new_tokens]) by the model's own distribution, 0
    behind a row's end. Prompts are cut to the longest one's length, rounded up, so that different lengths share few compiled
    programs.

    Raises ConfigError for a row of padding alone, more tokens than the model has positions, and impossible settings.
    """
    sampling = _Sampling(float(temperature), int(top_k), float(top_p))
    _check(model, input_ids, attention_mask, max_new_tokens, sampling, key)
    input_ids, attention_mask = _round_length(jnp.asarray(input_ids), jnp.asarray(attention_mask))
    graphdef, state = nnx.split(model)
    key = jax.random.key(0) if key is None else key
    tokens, log_probs = _generate(
        graphdef, state, input_ids, attention_mask, key, max_new_tokens, tuple(stop_ids), pad_id, sampling
    )
    return (tokens, log_probs) if return_log_probs else tokens


def _check(model: Decoder, input_ids, attention_mask, new: int, sampling: _Sampling, key: jax.Array | None) -> None:
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
        raise ConfigError(f"input_ids {input_ids.shape} and attention_mask {attention_mask.shape} found, [B, T] twice wanted")
    lengths = jnp.sum(jnp.asarray(attention_mask) != 0, axis=1)
    if int(lengths.min()) == 0:
        raise ConfigError(f"attention_mask: row {int(lengths.argmin())} is padding alone, one token or more wanted")
    if int(lengths.max()) + new > model.config.max_positions:
        raise ConfigError(
            f"a prompt of {int(lengths.max())} tokens and {new} new ones found, at most the model's "
            f"{model.config.max_positions} positions wanted"
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


def _round_length(input_ids: jax.Array, attention_mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Prompts [B, T'] as long as the longest one, rounded up to 32, 36, 40, ..., 64, 72, ...: eight lengths an octave."""
    longest, length = int(jnp.sum(attention_mask != 0, axis=1).max()), input_ids.shape[1]
    lengths = (size for power in range(5, 32) for size in range(2**power, 2 ** (power + 1), 2 ** (power - 3)))
    target = next(size for size in lengths if size >= longest)
    if target <= length:
        return input_ids[:, length - target :], attention_mask[:, length - target :]
    room = ((0, 0), (target - length, 0))
    return jnp.pad(input_ids, room), jnp.pad(attention_mask, room)


@partial(jax.jit, static_argnums=(0, 5, 6, 7, 8))
def _generate(graphdef, state, input_ids, attention_mask, key, max_new_tokens, stop_ids, pad_id, sampling):
    model: Decoder = unstack(nnx.merge(graphdef, state))
    rows, prompt = input_ids.shape
    valid = jnp.pad(attention_mask.astype(bool), ((0, 0), (0, max_new_tokens)), constant_values=True)  # [B, T + N]
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
        hidden, cache = model.hidden(now.last[:, None], valid, cache=now.cache)
        return record(replace(now, cache=cache), hidden)

    def unfinished(now: _Decoding) -> jax.Array:
        return (now.step < max_new_tokens) & ~now.done.all()

    # The last token of the prompt goes with the new ones: of the others only the last block's keys and values are needed,
    # and the compiler leaves the rest of that block out.
    _, cache = model.hidden(input_ids[:, :-1], valid, cache=Cache.empty(model.config, rows, prompt + max_new_tokens))
    start = _Decoding(
        step=jnp.int32(0),
        last=input_ids[:, -1],
        done=jnp.zeros(rows, bool),
        tokens=jnp.full((rows, max_new_tokens), pad_id, jnp.int32),
        log_probs=jnp.zeros((rows, max_new_tokens), jnp.float32),
        cache=cache,
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
