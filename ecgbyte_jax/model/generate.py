"""Generation: one jitted prefill, then one while_loop over a key/value cache that ends when every row has ended.

The prompt's keys and values stay outside the loop, which would copy them for every token; only the new tokens' are inside.
Also the probabilities of given answers, after the same prefill.

Axes: B batch, T prompt tokens (left-padded), P shared prefixes, N new tokens at most, C candidates, V vocabulary, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model.config import LongScaling
from ecgbyte_jax.model.decoder import Cache, Decoder, unstack
from ecgbyte_jax.model.kernels.decode import decodes, padded
from ecgbyte_jax.model.kernels.fused import platform

# For GPUs, XLA joins products that share an operand, and would copy the weights and the cache for that, for every token.
_OPTIONS = {"xla_gpu_dot_merger_threshold_mb": 0}
_PIECE = 3000  # least tokens of a part of a prefill, see `_prefill`


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Decoding:
    """The complete state of decoding between two tokens."""

    step: jax.Array  # int32 []: tokens generated so far
    last: jax.Array  # int32 [B]: the token to feed next
    done: jax.Array  # bool [B]
    tokens: jax.Array  # int32 [B, N]
    log_probs: jax.Array  # float32 [B, N]
    cache: Cache  # of the prompt's last token and the new ones


@dataclass(frozen=True)
class _Sampling:
    """How the next token is chosen; temperature 0 always takes the likeliest one."""

    temperature: float
    top_k: int
    top_p: float


def generate(
    model: Decoder,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    max_new_tokens: int,
    *,
    shared: tuple[jax.Array, jax.Array] | None = None,
    signals: jax.Array | None = None,
    stop_ids: tuple[int, ...] = (),
    pad_id: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    return_log_probs: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Continues left-padded prompts: int32 [B, max_new_tokens].

    input_ids, attention_mask: [B, T]. shared: (ids, mask) [P, T'] of prefixes, each common to B / P consecutive rows.
    signals: [P, E, 12, L] of the ECGs that the prefixes show, or [B, E, 12, L] without them, see `Decoder.embed`. A row
    ends with its first stop id, which is kept, and is filled up with `pad_id`. Temperature 0 always takes the likeliest token;
    above 0 tokens are drawn with `key` from the `top_k` likeliest (0: all), and of those from the fewest that hold `top_p` of
    the probability. With one key per row, [B], a row's draws do not depend on the other rows. `return_log_probs` returns
    (tokens, float32 log-probabilities [B, max_new_tokens]) under the model's own distribution, 0 after a row's end. Prompts
    are cut to the longest one's length, rounded up, so that different lengths share few compiled programs.

    Rows of the vocabulary that are no token have logits of -inf (`DecoderConfig.spare_rows`), and are never chosen.

    Raises ConfigError for no rows, a row of only padding or with padding after a token, ids outside the vocabulary, more tokens
    than the model has positions, and impossible settings. With LongRoPE also where the new tokens would change a row's rotary
    frequencies (see `layer_ropes`): the cached keys and values would no longer be those of its tokens.
    """
    sampling = _Sampling(float(temperature), int(top_k), float(top_p))
    prompt = _lay_out(model, input_ids, attention_mask, shared, max_new_tokens, sampling, key)
    graphdef, state = nnx.split(model)
    key = jax.random.key(0) if key is None else key
    tokens, log_probs = _generate(graphdef, state, prompt, signals, key, max_new_tokens, tuple(stop_ids), pad_id, sampling)
    return (tokens, log_probs) if return_log_probs else tokens


def score_candidates(
    model: Decoder,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    candidates: jax.Array,
    candidates_mask: jax.Array,
    *,
    shared: tuple[jax.Array, jax.Array] | None = None,
    signals: jax.Array | None = None,
) -> jax.Array:
    """The log-probability of every candidate answer of a row after its prompt, float32 [B, C] in nats.

    candidates, candidates_mask: int32, bool [B, C, N], padded on the left, with the tokens that end an answer, if these are to
    count: it is the sum over all tokens of a candidate, 0 for one of none. The prompts are as in `generate`, and gone through
    once for all candidates. Raises ConfigError as `generate` does.
    """
    if candidates.ndim != 3 or candidates.shape != candidates_mask.shape or len(candidates) != len(input_ids):
        raise ConfigError(
            f"candidates {candidates.shape} and candidates_mask {candidates_mask.shape} found, "
            f"[{len(input_ids)}, C, N] expected"
        )
    longest, bad_row = map(int, _measure_candidates(candidates, candidates_mask, model.config.vocab_size))
    if bad_row >= 0:
        raise ConfigError(
            f"candidates: row {bad_row} found with padding after a token, or ids outside the vocabulary, "
            f"0 to {model.config.vocab_size - 1} expected"
        )
    prompt = _lay_out(model, input_ids, attention_mask, shared, max(longest, 1), _Sampling(0.0, 0, 1.0), None)
    return _score_candidates(*nnx.split(model), prompt, signals, candidates, candidates_mask)


def lower_generation(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    prompt: tuple[int, int],
    max_new_tokens: int,
    sharding: NamedSharding,
    signals: jax.ShapeDtypeStruct | None = None,
) -> jax.stages.Lowered:
    """The program that `generate` runs for prompts of (rows, tokens), lowered for the current mesh; `state` may be abstract."""
    ids = jax.ShapeDtypeStruct(prompt, jnp.int32, sharding=sharding)
    there = jax.ShapeDtypeStruct(prompt, bool, sharding=sharding)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return _generate.lower(graphdef, state, [(ids, there)], signals, key, max_new_tokens, (), 0, _Sampling(0.0, 0, 1.0))


def _lay_out(
    model: Decoder,
    input_ids: jax.Array,
    attention_mask: jax.Array,
    shared: tuple[jax.Array, jax.Array] | None,
    new: int,
    sampling: _Sampling,
    key: jax.Array | None,
) -> list[tuple[jax.Array, jax.Array]]:
    """The parts of the prompts, cut to few lengths; raises ConfigError as `generate` does."""
    parts = [(input_ids, attention_mask)] if shared is None else [shared, (input_ids, attention_mask)]
    longest = _check(model, parts, new, sampling, key)
    if isinstance(model.config.rope_scaling, LongScaling):
        _check_frequencies(parts, new, model.config.rope_scaling.original_max_positions)
    lengths: tuple[int, ...] = (_round(longest[0]),)
    if shared is not None:  # coarser, since every pair of lengths is a program
        lengths = _round(longest[0], steps=4), 1 if longest[1] == 1 else _round(longest[1], least=8, steps=4)
    return _cut(parts, lengths)


def _check(
    model: Decoder, parts: list[tuple[jax.Array, jax.Array]], new: int, sampling: _Sampling, key: jax.Array | None
) -> list[int]:
    """The longest row's length in each part of the prompts; raises ConfigError as `generate` does."""
    rows = len(parts[-1][0])
    for ids, mask in parts:
        if ids.ndim != 2 or ids.shape != mask.shape or not ids.size or rows % len(ids):
            raise ConfigError(
                f"input_ids {ids.shape} and attention_mask {mask.shape} found, [B, T] for both expected, or [P, T] for shared "
                "prefixes where P divides B; no size may be 0"
            )
        if not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ConfigError(f"input_ids: {ids.dtype} found, whole numbers expected")
    measures = [np.asarray(numbers).tolist() for numbers in _measure(parts, model.config.vocab_size)]
    shortest, shortest_rows, longest, longest_prompt, gap_rows, unknown_rows = measures
    for length, shortest_row, gap_row, unknown_row in zip(shortest, shortest_rows, gap_rows, unknown_rows):
        if length == 0:
            raise ConfigError(f"attention_mask: row {shortest_row} found with only padding, at least one token expected")
        if gap_row >= 0:
            raise ConfigError(f"attention_mask: row {gap_row} found with padding after a token, 0s and then 1s expected")
        if unknown_row >= 0:
            last_id = model.config.vocab_size - 1
            raise ConfigError(f"input_ids: row {unknown_row} found with ids outside the vocabulary, 0 to {last_id} expected")
    if longest_prompt + new > model.config.max_positions:
        raise ConfigError(
            f"a prompt of {longest_prompt} tokens and {new} new ones found, at most the model's {model.config.max_positions} "
            "positions expected"
        )
    for name, value, fits, expected in (
        ("max_new_tokens", new, new >= 1, "1 or more"),
        ("temperature", sampling.temperature, sampling.temperature >= 0, "0 or more"),
        ("top_k", sampling.top_k, 0 <= sampling.top_k <= model.config.vocab_size, "0 to the vocabulary's size"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "above 0, 1 at most"),
    ):
        if not fits:
            raise ConfigError(f"{name}: {value} found, {expected} expected")
    if sampling.temperature > 0 and key is None:
        raise ConfigError(f"temperature: {sampling.temperature} found without a `key`, which drawing tokens needs")
    return longest


def _check_frequencies(parts: list[tuple[jax.Array, jax.Array]], new: int, original: int) -> None:
    """Raises ConfigError where LongRoPE's frequencies would change in a row, or differ between rows of a shared prefix."""
    lengths = np.asarray(_prompt_lengths(parts))
    is_long = lengths > original
    changing = np.flatnonzero(~is_long & (lengths + new > original))
    if changing.size:
        row = changing[0]
        raise ConfigError(
            f"row {row}: a prompt of {lengths[row]} tokens and {new} new ones found, together at most {original} "
            "or a longer prompt expected: after original_max_position_embeddings tokens the rotary frequencies are others"
        )
    by_prefix = is_long.reshape(len(parts[0][0]), -1)
    if (by_prefix != by_prefix[:, :1]).any():
        raise ConfigError(
            f"shared: a prefix found in prompts of up to and of more than {original} tokens, one of the two expected: after "
            "original_max_position_embeddings tokens the rotary frequencies are others"
        )


def _prompt_lengths(parts: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """The number of tokens of each row's complete prompt, int32 [B]."""
    rows = len(parts[-1][0])
    return sum((jnp.repeat(jnp.sum(mask != 0, axis=1), rows // len(mask)) for _, mask in parts), jnp.int32(0))


@partial(jax.jit, static_argnums=1)
def _measure(parts: list[tuple[jax.Array, jax.Array]], vocab_size: int) -> tuple[jax.Array, ...]:
    """For each part of the prompts: the least number of tokens, its row, the largest number; then that of a complete prompt.

    Last, for each part, a row whose mask has a 0 after a 1, and a row with ids outside the vocabulary; -1: no such row.
    """
    masks = [mask != 0 for _, mask in parts]
    lengths = [jnp.sum(mask, axis=1) for mask in masks]
    totals = sum((jnp.repeat(part, len(masks[-1]) // len(part)) for part in lengths), jnp.int32(0))
    by_part = jnp.array([[part.min(), part.argmin(), part.max()] for part in lengths]).T

    def first_row(bad: jax.Array) -> jax.Array:
        rows = bad.any(axis=1)
        return jnp.where(rows.any(), rows.argmax(), -1)

    gap_rows = [first_row(mask[:, :-1] & ~mask[:, 1:]) for mask in masks]
    unknown_rows = [first_row(mask & ((ids < 0) | (ids >= vocab_size))) for mask, (ids, _) in zip(masks, parts)]
    return *by_part, totals.max(), jnp.array(gap_rows), jnp.array(unknown_rows)


@partial(jax.jit, static_argnums=2)
def _measure_candidates(candidates: jax.Array, there: jax.Array, vocab_size: int) -> tuple[jax.Array, jax.Array]:
    """The largest number of tokens, and a row whose mask has a 0 after a 1 or that has ids outside the vocabulary, or -1."""
    gaps = there[..., :-1] & ~there[..., 1:]
    bad = gaps.any(axis=(1, 2)) | (there & ((candidates < 0) | (candidates >= vocab_size))).any(axis=(1, 2))
    return there.sum(axis=2).max(), jnp.where(bad.any(), bad.argmax(), -1)


def _round(longest: int, least: int = 32, steps: int = 8) -> int:
    """The length rounded up to 32, 36, 40, ..., 64, 72, ...: `least` and up, `steps` lengths per octave."""
    octaves = (least << power for power in range(32))
    return next(size for low in octaves for size in range(low, 2 * low, low // steps) if size >= longest)


@partial(jax.jit, static_argnums=1)
def _cut(parts: list[tuple[jax.Array, jax.Array]], lengths: tuple[int, ...]) -> list[tuple[jax.Array, jax.Array]]:
    """The left-padded parts (ids, mask) [B, T], cut or padded on the left to `lengths`."""

    def cut(rows: jax.Array, length: int) -> jax.Array:
        return jnp.pad(rows, ((0, 0), (max(length - rows.shape[1], 0), 0)))[:, -length:]

    return [(cut(ids, length), cut(mask, length).astype(bool)) for (ids, mask), length in zip(parts, lengths)]


@partial(jax.jit, static_argnums=(0, 5, 6, 7, 8), compiler_options=_OPTIONS)
def _generate(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    prompt: list[tuple[jax.Array, jax.Array]],
    signals: jax.Array | None,
    key: jax.Array,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
    sampling: _Sampling,
) -> tuple[jax.Array, jax.Array]:
    """The tokens and their log-probabilities, [B, max_new_tokens] each, as `generate` describes them."""
    model: Decoder = unstack(nnx.merge(graphdef, state))
    *shared, (input_ids, there) = prompt
    rows, lengths = len(input_ids), _prompt_lengths(prompt)
    stops = jnp.array(stop_ids, jnp.int32)

    def record(now: _Decoding, hidden: jax.Array) -> _Decoding:
        """Chooses the next token of each row from the last of the hidden states [B, T, D]."""
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
        hidden, token = model.extend(now.last[:, None], jnp.ones((rows, 1), bool), (*past, now.cache), lengths)
        return record(replace(now, cache=now.cache.put(token, now.step)), hidden)

    def unfinished(now: _Decoding) -> jax.Array:
        return (now.step < max_new_tokens) & ~now.done.all()

    # The prompt's last token is fed with the new ones. Of the other tokens only the last block's keys and values are needed,
    # and the compiler drops the rest of that block.
    past: tuple[Cache, ...] = ()
    for ids, mask in [*shared, (input_ids[:, :-1], there[:, :-1])]:
        if ids.shape[1]:
            past += (_prefill(model, ids, mask, past, lengths.reshape(len(ids), -1)[:, 0], None if past else signals),)
    if decodes(model.config, rows, [len(part.there) for part in past]):  # by a kernel, for which other lengths are copied
        past = tuple(part.widened(padded(part.there.shape[1])) for part in past)
    start = _Decoding(
        step=jnp.int32(0),
        last=input_ids[:, -1],
        done=jnp.zeros(rows, bool),
        tokens=jnp.full((rows, max_new_tokens), pad_id, jnp.int32),
        log_probs=jnp.zeros((rows, max_new_tokens), jnp.float32),
        cache=Cache.empty(model.config, rows, max_new_tokens, past),
    )
    end = jax.lax.while_loop(unfinished, extend, start)
    return end.tokens, end.log_probs


@partial(jax.jit, static_argnums=0, compiler_options=_OPTIONS)
def _score_candidates(
    graphdef: nnx.GraphDef,
    state: nnx.State,
    prompt: list[tuple[jax.Array, jax.Array]],
    signals: jax.Array | None,
    candidates: jax.Array,
    there: jax.Array,
) -> jax.Array:
    """As `score_candidates` describes it."""
    model: Decoder = unstack(nnx.merge(graphdef, state))
    *shared, (input_ids, prompt_there) = prompt
    (rows, count, most), lengths = candidates.shape, _prompt_lengths(prompt)
    past: tuple[Cache, ...] = ()
    for ids, mask in shared:
        past += (_prefill(model, ids, mask, past, lengths.reshape(len(ids), -1)[:, 0], signals),)
    hidden, question = model.extend(input_ids, prompt_there, past, lengths, None if past else signals)
    first = jnp.argmax(there, axis=2, keepdims=True)  # [B, C, 1]
    begins = jnp.take_along_axis(candidates, first, axis=2)[..., 0]
    total = _log_probs(model, hidden[:, -1:], begins[:, None])[:, 0]  # [B, C]
    if most > 1:
        fed, fed_there = candidates[..., :-1].reshape(-1, most - 1), there[..., :-1].reshape(-1, most - 1)
        hidden, _ = model.extend(fed, fed_there, (*past, question), jnp.repeat(lengths, count))
        hidden = hidden.reshape(rows, count, most - 1, -1).swapaxes(0, 1)  # [C, B, N - 1, D]
        targets = candidates[..., 1:].swapaxes(0, 1)[..., None]
        # Candidate by candidate: their logits would take C times the memory of a generation's.
        log_probs = jax.lax.map(lambda one: _log_probs(model, *one)[..., 0], (hidden, targets))  # [C, B, N - 1]
        total += jnp.where(there[..., :-1], log_probs.swapaxes(0, 1), 0.0).sum(axis=2)
    return jnp.where(there.any(axis=2), total, 0.0)


def _log_probs(model: Decoder, hidden: jax.Array, ids: jax.Array) -> jax.Array:
    """Those of ids [B, T, n] after hidden states [B, T, D], float32 [B, T, n]."""
    logits = model.logits(hidden)  # [B, T, V]
    return jnp.take_along_axis(logits, ids, axis=2) - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def _prefill(
    model: Decoder,
    ids: jax.Array,
    there: jax.Array,
    past: tuple[Cache, ...],
    lengths: jax.Array,
    signals: jax.Array | None,
) -> Cache:
    """The cache of ids [B, T], parts of prompts of `lengths` [B] tokens.

    On a single CPU device a large batch is split into parts that run in parallel and fit the CPU's caches: a quarter faster.
    """
    lone = platform() == "cpu" and jax.device_count() == 1 and not past
    pieces = max((n for n in (1, 2, 4) if lone and len(ids) % n == 0 and ids.size >= n * _PIECE), default=1)
    shown = [None] * pieces if signals is None else jnp.split(signals, pieces)
    split = zip(*(jnp.split(rows, pieces) for rows in (ids, there, lengths)), shown)
    caches = [model.extend(piece, there, past, lengths, signals)[1] for piece, there, lengths, signals in split]
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), *caches)


def _choose(logits: jax.Array, sampling: _Sampling, key: jax.Array) -> jax.Array:
    """The next token of each row, int32 [B], from float32 logits [B, V]."""
    if sampling.temperature == 0:
        return logits.argmax(axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k:
        least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p < 1:
        falling = jnp.sort(logits, axis=-1, descending=True)
        shares = jax.nn.softmax(falling, axis=-1)
        # A token is kept where the likelier ones hold less than top_p (Holtzman et al. 2020).
        kept = jnp.cumsum(shares, axis=-1) - shares < sampling.top_p
        least = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return _each(jax.random.categorical, key)(key, logits).astype(jnp.int32)


def _each(draw: Callable[[jax.Array, jax.Array], jax.Array], key: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`draw(key, values)` for one key, or row by row for keys [B]; a scalar value is common to all rows."""
    return draw if key.ndim == 0 else lambda keys, values: jax.vmap(draw, (0, 0 if values.ndim else None))(keys, values)
