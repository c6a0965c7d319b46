"""MERL's one-dimensional ResNets, and attention pooling (Liu et al. 2024; He et al. 2016; Radford et al. 2021).

Axes: B batch, L samples, T places after the ResNet (L / 16, rounded up), C channels, D width, W places of a filter.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.encoders.config import LEADS, ResNetConfig
from ecgbyte_jax.encoders.layers import Attention

_EPS, _MOMENTUM = 1e-5, 0.1
_EXPANSION = 4  # of a bottleneck's output


class Convolution(nnx.Module):
    """A convolution without bias, padded so that stride 1 keeps the length; He-normal filters [C out, C in, W]."""

    def __init__(self, n_in: int, n_out: int, size: int, stride: int, rngs: nnx.Rngs):
        deviation = (2 / (n_in * size)) ** 0.5
        self.kernel = nnx.Param(deviation * jax.random.normal(rngs.params(), (n_out, n_in, size)))
        self.stride, self.padding = stride, size // 2

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, C in, T] to [B, C out, ceil(T / stride)]."""
        return jax.lax.conv_general_dilated(x, self.kernel[...], (self.stride,), [(self.padding, self.padding)])


class BatchNorm(nnx.Module):
    """(x - mean) / sqrt(variance + 1e-5) * scale + bias by channel (Ioffe & Szegedy 2015).

    The mean and variance are those of the whole batch, over all devices, in training, which also moves the running ones by a
    tenth (the unbiased variance); otherwise these are taken.
    """

    def __init__(self, channels: int):
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.variance = nnx.BatchStat(jnp.zeros(channels)), nnx.BatchStat(jnp.ones(channels))

    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        """Normalises [B, C, T]."""
        mean, variance = self.mean[...], self.variance[...]
        if training:
            count = x.shape[0] * x.shape[2]
            batch_mean = jnp.mean(x, axis=(0, 2))
            batch_variance = jnp.mean((x - batch_mean[:, None]) ** 2, axis=(0, 2))
            self.mean[...] = mean + _MOMENTUM * (batch_mean - mean)
            self.variance[...] = variance + _MOMENTUM * (batch_variance * count / (count - 1) - variance)
            mean, variance = batch_mean, batch_variance
        factor = self.scale[...] * jax.lax.rsqrt(variance + _EPS)
        return (x - mean[:, None]) * factor[:, None] + self.bias[...][:, None]


class Residual(nnx.Module):
    """relu(f(x) + shortcut(x)): f is two convolutions of 3, or a bottleneck of 1, 3 and 1 (He et al. 2016, section 3.3)."""

    def __init__(self, n_in: int, width: int, stride: int, bottleneck: bool, rngs: nnx.Rngs):
        n_out = width * (_EXPANSION if bottleneck else 1)
        plan = [(n_in, width, 1, 1), (width, width, 3, stride), (width, n_out, 1, 1)]
        plan = plan if bottleneck else [(n_in, width, 3, stride), (width, n_out, 3, 1)]
        self.convolutions = nnx.List([Convolution(*sizes, rngs) for sizes in plan])
        self.norms = nnx.List([BatchNorm(sizes[1]) for sizes in plan])
        changes = stride > 1 or n_in != n_out
        self.shortcut = nnx.data(Convolution(n_in, n_out, 1, stride, rngs) if changes else None)
        self.shortcut_norm = nnx.data(BatchNorm(n_out) if changes else None)

    def __call__(self, x: jax.Array, training: bool) -> jax.Array:
        """Maps [B, C in, T] to [B, C out, ceil(T / stride)]."""
        y = x
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms), start=1):
            y = norm(convolution(y), training)
            y = jax.nn.relu(y) if number < len(self.norms) else y
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(x), training)
        return jax.nn.relu(x + y)

    def flops(self, places: int) -> tuple[float, int]:
        """Of the convolutions of one segment of so many places, and the places that it has afterwards."""
        counted, left = 0.0, places
        for convolution in self.convolutions:
            left = -(-left // convolution.stride)
            counted += 2.0 * convolution.kernel.size * left
        return counted + (2.0 * self.shortcut.kernel.size * left if self.shortcut else 0.0), left


class ResNet(nnx.Module):
    """A convolution of 7 with stride 2, not pooled, and four stages, whose first block halves the length from the second on."""

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs):
        self.config = config
        self.stem, self.stem_norm = Convolution(LEADS, config.width, 7, 2, rngs), BatchNorm(config.width)
        blocks, n_in = [], config.width
        for stage, count in enumerate(config.blocks):
            width = config.width << stage
            for number in range(count):
                stride = 2 if stage and not number else 1
                blocks.append(Residual(n_in, width, stride, config.bottleneck, rngs))
                n_in = width * (_EXPANSION if config.bottleneck else 1)
        self.blocks, self.channels = nnx.List(blocks), n_in

    def __call__(self, signals: jax.Array, training: bool = False) -> jax.Array:
        """Maps segments [B, 12, L] to [B, C, T]; in training, the running statistics of the norms move."""
        x = jax.nn.relu(self.stem_norm(self.stem(signals), training))  # [B, C, L / 2]
        for block in self.blocks:
            x = block(x, training)
        return x

    def flops(self, samples: int) -> float:
        """Of the convolutions of one segment."""
        places = -(-samples // self.stem.stride)
        counted = 2.0 * self.stem.kernel.size * places
        for block in self.blocks:
            more, places = block.flops(places)
            counted += more
        return counted


class AttentionPool(nnx.Module):
    """What a learned token takes from itself and all places, by attention of 4 heads with learned positions.

    Source: Radford et al. 2021, section 2.3, with a learned token instead of the mean. Positions are drawn from N(0, 1) / D.
    """

    def __init__(self, width: int, places: int, rngs: nnx.Rngs):
        self.token = nnx.Param(jax.random.normal(rngs.params(), (width,)))
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (places + 1, width)) / width)
        self.attention = Attention(width, 4, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, D]."""
        token = jnp.broadcast_to(self.token[...], (len(x), 1, x.shape[-1]))
        tokens = jnp.concatenate([token, x], axis=1) + self.positions[...]  # [B, T + 1, D]
        return self.attention(tokens[:, :1], tokens)[:, 0]
