"""The gated delta net (Yang et al. 2024, "Gated Delta Networks"): a recurrent layer in place of attention.

Axes: B batch, T tokens, D width, K key heads, R value heads of a key head, C key width, V value width, W width of the
convolution, M chunks of N tokens.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from ecgbyte_jax.model.config import ATTENTION, DecoderConfig, DeltaConfig
from ecgbyte_jax.model.layers import ACTIVATIONS, Linear, Norm, normal, split_key

CHUNK = 64  # tokens, a power of two, see `delta_rule`

# What later tokens need of earlier ones: the last inputs of the convolutions of q, k and v, [B, W - 1, channels] each, and the
# state, float32 [B, K, R, C, V].
State = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def empty_state(config: DecoderConfig, delta: DeltaConfig, batch: int) -> State:
    """The state before the first token."""
    keys, values = delta.key_heads * delta.key_dim, delta.value_heads * delta.value_dim
    last = [jnp.zeros((batch, delta.conv_width - 1, width), config.dtype) for width in (keys, keys, values)]
    shape = (batch, delta.key_heads, delta.value_heads // delta.key_heads, delta.key_dim, delta.value_dim)
    return *last, jnp.zeros(shape, jnp.float32)


class CausalConv(nnx.Module):
    """A convolution of every channel with its own W weights, over a token and the W - 1 before it."""

    def __init__(self, channels: int, width: int, config: DecoderConfig, rngs: nnx.Rngs):
        self.kernel = nnx.Param(normal(rngs, (width, 1, channels), width, config))  # [W, 1, channels]

    def __call__(self, x: jax.Array, segment_ids: jax.Array, past: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Maps x [B, T, channels] to (x convolved, its last W - 1 inputs), within each example.

        past: the last inputs [B, W - 1, channels] of the one example in each row, which is padded on the left.
        """
        kernel, (_, tokens, _) = self.kernel[...].astype(x.dtype), x.shape
        before = len(kernel) - 1
        x = jnp.pad(jnp.where((segment_ids != 0)[..., None], x, 0), ((0, 0), (before, 0), (0, 0)))
        if past is not None:  # directly before the first token, after the padding
            first = tokens - jnp.sum(segment_ids != 0, axis=1)
            x = jax.vmap(lambda row, own, start: jax.lax.dynamic_update_slice_in_dim(row, own, start, 0))(x, past, first)
            segment_ids = jnp.ones_like(segment_ids)
        numbers = jnp.pad(segment_ids, ((0, 0), (before, 0)), constant_values=1)

        def term(place: int) -> jax.Array:
            same = numbers[:, place : place + tokens] == segment_ids
            return kernel[place] * jnp.where(same[..., None], x[:, place : place + tokens], 0)

        return sum(map(term, range(before)), kernel[before] * x[:, before:]), x[:, tokens:]


class DeltaNet(nnx.Module):
    """The gated delta rule with its projections from and to the residual stream (section 3.4 of the paper).

    The rule's decay is exp(-exp(a_log) * softplus(decay(x) + dt_bias)), as in Mamba 2 (Dao & Gu 2024).
    """

    def __init__(self, config: DecoderConfig, delta: DeltaConfig, rngs: nnx.Rngs):
        self.config, self.delta = config, delta
        keys, values = delta.key_heads * delta.key_dim, delta.value_heads * delta.value_dim
        self.q = Linear(config.width, keys, False, config, rngs)
        self.k = Linear(config.width, keys, False, config, rngs)
        self.v = Linear(config.width, values, False, config, rngs)
        self.gate = Linear(config.width, values, False, config, rngs)
        self.beta = Linear(config.width, delta.value_heads, False, config, rngs)
        self.decay = Linear(config.width, delta.value_heads, False, config, rngs)
        self.conv_q = CausalConv(keys, delta.conv_width, config, rngs)
        self.conv_k = CausalConv(keys, delta.conv_width, config, rngs)
        self.conv_v = CausalConv(values, delta.conv_width, config, rngs)
        rates = jax.random.uniform(rngs.params(), (delta.value_heads,), minval=1.0, maxval=16.0)
        self.a_log = nnx.Param(jnp.log(rates).astype(config.param_dtype))
        self.dt_bias = nnx.Param(jnp.ones((delta.value_heads,), config.param_dtype))
        self.norm = Norm(delta.value_dim, replace(config, norm_offset=0.0), "rms")
        self.o = Linear(values, config.width, False, config, rngs)

    def __call__(
        self, x: jax.Array, segment_ids: jax.Array, past: State | None, key: jax.Array | None
    ) -> tuple[jax.Array, State]:
        """Maps x [B, T, D] to ([B, T, D], the state after these tokens); `key` draws LoRA's dropout.

        segment_ids: int32 [B, T], the example's number, rising from 1, 0 on padding, which may be at both ends of an example.
        past: the state after earlier tokens of example 1, with rows padded on the left; None: every example begins here.
        """
        cfg, (b, t, _) = self.delta, x.shape
        kx, ko = split_key(key, 2)
        act, last = ACTIVATIONS[self.config.activation], past or (None,) * 4
        projected = self.q(x, kx), self.k(x, kx), self.v(x, kx), self.gate(x, kx)
        q, k, v, gate = (checkpoint_name(part, ATTENTION) for part in projected)
        q, last_q = self.conv_q(q, segment_ids, last[0])
        k, last_k = self.conv_k(k, segment_ids, last[1])
        v, last_v = self.conv_v(v, segment_ids, last[2])
        q, k = (_unit(act(x).reshape(b, t, cfg.key_heads, -1).astype(jnp.float32)) for x in (q, k))  # [B, T, K, C]
        by_head = (b, t, cfg.key_heads, -1)
        v = act(v).reshape(*by_head, cfg.value_dim).astype(jnp.float32)  # [B, T, K, R, V]
        beta = jax.nn.sigmoid(self.beta(x, kx).astype(jnp.float32)).reshape(by_head)  # [B, T, K, R]
        steps = jax.nn.softplus(self.decay(x, kx).astype(jnp.float32) + self.dt_bias[...].astype(jnp.float32))
        log_decay = (-jnp.exp(self.a_log[...].astype(jnp.float32)) * steps).reshape(by_head)
        mixed, state = delta_rule(q * cfg.key_dim**-0.5, k, v, beta, log_decay, segment_ids, last[3])
        gate = jax.nn.silu(gate.astype(jnp.float32)).reshape(mixed.shape)
        gated = (self.norm(checkpoint_name(mixed, ATTENTION)) * gate).astype(x.dtype).reshape(b, t, -1)
        return checkpoint_name(self.o(gated, ko), ATTENTION), (last_q, last_k, last_v, state)


def _unit(x: jax.Array) -> jax.Array:
    """The vectors x [..., C] of length 1."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6)


def delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    beta: jax.Array,
    log_decay: jax.Array,
    segment_ids: jax.Array,
    state: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """The gated delta rule: (outputs [B, T, K, R, V], the state [B, K, R, C, V] after the last token), float32.

    q, k: [B, T, K, C]; v: [B, T, K, R, V]; beta, log_decay: [B, T, K, R]; segment_ids, state: as in `DeltaNet.__call__`.
    A token decays the state S, corrects what S holds for its key, and reads S with its query:
    S <- exp(log_decay) S; S <- S + k beta (v - k S); output q S (equation 10 of the paper). Padding leaves S as it is, and
    every example begins with an S of zeros.

    A chunk of tokens is computed at once (section 3.3): the corrections u solve a triangular system, in which a token sees
    those before it of its own example, and S only where S ends in its example.
    """
    (b, tokens, _, c), value_dim = k.shape, v.shape[-1]
    n = min(CHUNK, 1 << (tokens - 1).bit_length())
    real = (segment_ids != 0)[..., None, None]
    beta, log_decay = (jnp.where(real, x, 0) for x in (beta, log_decay))

    def chunks(x: jax.Array) -> jax.Array:
        """[B, T, ...] to [M, B, ..., N], the last chunk filled up with padding."""
        x = jnp.pad(x, [(0, 0), (0, -tokens % n)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(b, -1, n, *x.shape[2:]), 2, -1).swapaxes(0, 1)

    q, k = (chunks(x).swapaxes(-1, -2) for x in (q, k))  # [M, B, K, N, C]
    v, beta, log_decay = chunks(v).swapaxes(-1, -2), chunks(beta), chunks(log_decay)  # [M, B, K, R, N, V], [M, B, K, R, N]
    numbers = chunks(segment_ids)[:, :, None, None]  # [M, B, 1, 1, N]
    # The example that the state belongs to after each chunk, and before it.
    after = jnp.maximum(jax.lax.cummax(numbers.max(axis=-1), axis=0), 1)  # [M, B, 1, 1]
    before = jnp.pad(after[:-1], ((1, 0), (0, 0), (0, 0), (0, 0)), constant_values=1)

    total = jnp.cumsum(log_decay, axis=-1)  # [M, B, K, R, N]
    seen = (numbers[..., :, None] == numbers[..., None, :]) & jnp.tri(n, dtype=bool)  # [M, B, 1, 1, N, N]
    decay = jnp.exp(jnp.where(seen, total[..., :, None] - total[..., None, :], -jnp.inf))
    from_state = jnp.where(numbers == before[..., None], jnp.exp(total), 0)  # [M, B, K, R, N]
    to_state = jnp.where(numbers == after[..., None], jnp.exp(total[..., -1:] - total), 0)
    kept = jnp.where(before == after, jnp.exp(total[..., -1]), 0)  # [M, B, K, R]

    k, q = k[:, :, :, None], q[:, :, :, None]  # [M, B, K, 1, N, C]
    sides = jnp.concatenate([v, from_state[..., None] * k], axis=-1) * beta[..., None]  # [M, B, K, R, N, V + C]
    if n > 1:
        sides = _invert(beta[..., None] * (k @ k.swapaxes(-1, -2)) * decay) @ sides
    reads = (q @ k.swapaxes(-1, -2)) * decay  # [M, B, K, R, N, N]

    def step(state: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        values, readers, queries, reads, keys, kept = chunk
        u = values - readers @ state  # [B, K, R, N, V]
        mixed = queries @ state + reads @ u
        return kept[..., None, None] * state + keys.swapaxes(-1, -2) @ u, mixed

    values, readers = sides[..., :value_dim], sides[..., value_dim:]
    parts = values, readers, from_state[..., None] * q, reads, to_state[..., None] * k, kept
    start = jnp.zeros((*v.shape[1:4], c, value_dim), jnp.float32) if state is None else state
    state, mixed = jax.lax.scan(step, start, parts)  # mixed [M, B, K, R, N, V]
    mixed = jnp.moveaxis(mixed.swapaxes(0, 1), -2, 2)  # [B, M, N, K, R, V]
    return mixed.reshape(b, -1, *mixed.shape[3:])[:, :tokens], state


@jax.custom_vjp
def _invert(system: jax.Array) -> jax.Array:
    """The inverse of [..., N, N] with ones on the diagonal, the given numbers below it, and zeros above; N is a power of two.

    From blocks of 1 on, each two of the diagonal become one: the inverse of D + B is I - I B I, where I is that of the blocks D
    and B is what lies between them. XLA's own solver waits for threads on CPUs, and hangs where several devices take them all.
    """
    n = system.shape[-1]
    places = jnp.arange(n)
    inverse = jnp.broadcast_to(jnp.eye(n), system.shape)
    for size in (1 << power for power in range(n.bit_length() - 1)):
        block = places // size
        between = (block[:, None] == block + 1) & (block % 2 == 0)
        own = jnp.where(between, system, 0)
        inverse = inverse - (own if size == 1 else _multiply(_multiply(inverse, own), inverse))
    return inverse


def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """Errors of an inverse are those of all that is computed with it: no shortened float32 here."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _invert_forward(system: jax.Array) -> tuple[jax.Array, jax.Array]:
    inverse = _invert(system)
    return inverse, inverse


def _invert_backward(inverse: jax.Array, inverse_bar: jax.Array) -> tuple[jax.Array]:
    transposed = inverse.swapaxes(-1, -2)
    return (-jnp.tril(_multiply(_multiply(transposed, inverse_bar), transposed), -1),)


_invert.defvjp(_invert_forward, _invert_backward)
