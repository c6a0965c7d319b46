"""MERL: an ECG encoder trained to agree with the report, and with itself under dropout (Liu et al. 2024).

Axes: B batch, L samples, T places, C channels, D width of the space shared with the text, F width of the text's features.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.encoders.config import RESNETS, SHARED_WIDTH, EncoderConfig, count_places
from ecgbyte_jax.encoders.layers import Linear
from ecgbyte_jax.encoders.resnet import AttentionPool, ResNet
from ecgbyte_jax.encoders.scaling import scale_mv, scale_to_1

_DROPOUT = 0.1
_TEMPERATURE = 0.07


class Merl(nnx.Module):
    """A ResNet with attention pooling, two views of its mean, and the map from a frozen text encoder's pooled features."""

    def __init__(self, config: EncoderConfig, samples: int, text_width: int, rngs: nnx.Rngs):
        self.config, self.resnet = config, ResNet(RESNETS[config.size], rngs)
        self.samples, self.width = samples, self.resnet.channels
        channels = self.width
        self.to_shared = Linear(channels, SHARED_WIDTH, rngs)
        self.pool = AttentionPool(SHARED_WIDTH, count_places(samples), rngs)
        self.views = nnx.List([Linear(channels, SHARED_WIDTH, rngs, bias=False) for _ in range(2)])
        self.text_in, self.text_out = Linear(text_width, SHARED_WIDTH, rngs), Linear(SHARED_WIDTH, SHARED_WIDTH, rngs)

    def tokens(self, signals: jax.Array, training: bool = False) -> jax.Array:
        """The ResNet's channels at every place [B, T, C], of segments [B, 12, L] in mV."""
        scaled = 1000 * scale_to_1(signals) if self.config.published_scaling else scale_mv(signals)
        return self.resnet(scaled, training).swapaxes(1, 2)

    def features(self, signals: jax.Array) -> jax.Array:
        """The ResNet's mean over time [B, C] of segments [B, 12, L], which the second stage reads."""
        return jnp.mean(self.tokens(signals), axis=1)

    def drop_objective(self) -> None:
        """Leaves only what `tokens` needs."""
        for name in ("to_shared", "pool", "views", "text_in", "text_out"):
            delattr(self, name)

    def flops(self) -> float:
        """Of `tokens` of one segment."""
        return self.resnet.flops(self.samples)

    def loss(self, signals: jax.Array, reports: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """C(ecg, report) + C(view 1, view 2), float32 [], of segments [B, 12, L] and their reports' features [B, F].

        With x the ResNet's channels: ecg = pool(x W + b), report = W''' gelu(W'' f + b'') + b''', view i = dropout(mean over
        time of x) W_i (Liu et al. 2024, sections 3.2 and 3.3). noise: uniform [2, B, D]; a channel of a view is dropped where
        it is below 0.1, and the norms' running statistics move. None: as in validation, by these statistics, nothing dropped.
        """
        x = self.tokens(signals, training=noise is not None)  # [B, T, C]
        ecg, mean = self.pool(self.to_shared(x)), jnp.mean(x, axis=1)
        views = [view(mean) for view in self.views]  # [B, D] each
        if noise is not None:
            views = [jnp.where(drawn < _DROPOUT, 0, view / (1 - _DROPOUT)) for view, drawn in zip(views, noise)]
        text = self.text_out(jax.nn.gelu(self.text_in(reports), approximate=False))
        return jnp.sum(contrast(jnp.stack([ecg, views[0]]), jnp.stack([text, views[1]])))


def contrast(left: jax.Array, right: jax.Array, scale: jax.Array | float = 1 / _TEMPERATURE) -> jax.Array:
    """C = -sum over both directions of mean_i log(exp(s_ii / t) / sum_j exp(s_ij / t)), float32 [...], of rows [..., B, D].

    s: cosines, t: 1 / scale (van den Oord et al. 2018; Radford et al. 2021, section 2.3). Every row is contrasted with those of
    all devices: rows that a mesh splits are gathered. Rows that agree with all alike have a C of 2 ln B.
    """
    left, right = (rows * jax.lax.rsqrt(jnp.maximum(jnp.sum(rows**2, -1, keepdims=True), 1e-24)) for rows in (left, right))
    scores = left @ right.swapaxes(-1, -2) * scale  # [..., B, B]
    own = jnp.sum(left * right, axis=-1) * scale  # not their diagonal, of which each device would have to gather parts
    both = jax.nn.logsumexp(scores, axis=-1) + jax.nn.logsumexp(scores, axis=-2) - 2 * own
    return jnp.mean(both, axis=-1)
