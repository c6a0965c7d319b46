"""MERL: an ECG encoder trained to agree with the report, and with itself under dropout (Liu et al. 2024).

Axes: B batch, L samples, T places, C channels, D width of the space shared with the text, F width of the text's features.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.encoders.layers import Linear
from ecgbyte_jax.encoders.resnet import AttentionPool, ResNet, ResNetConfig, count_places
from ecgbyte_jax.encoders.scaling import scale_to_1

_WIDTH, _TEXT_WIDTH = 256, 768
_DROPOUT = 0.1
_TEMPERATURE = 0.07


class Merl(nnx.Module):
    """A ResNet with attention pooling, two views of its mean, and the map from a frozen text encoder's pooled features.

    Segments come in mV; the ResNet reads them as 1000 u, u scaled to 0..1 by segment, as published.
    """

    def __init__(self, config: ResNetConfig, samples: int, rngs: nnx.Rngs):
        self.resnet = ResNet(config, rngs)
        self.to_shared = Linear(config.channels, _WIDTH, rngs)
        self.pool = AttentionPool(_WIDTH, count_places(samples), rngs)
        self.views = nnx.List([Linear(config.channels, _WIDTH, rngs, bias=False) for _ in range(2)])
        self.text_in, self.text_out = Linear(_TEXT_WIDTH, _WIDTH, rngs), Linear(_WIDTH, _WIDTH, rngs)

    def features(self, signals: jax.Array) -> jax.Array:
        """The ResNet's mean over time [B, C] of segments [B, 12, L], which the second stage reads."""
        return jnp.mean(self.resnet(1000 * scale_to_1(signals)), axis=2)

    def loss(self, signals: jax.Array, text: jax.Array, noise: jax.Array) -> jax.Array:
        """C(ecg, text) + C(view 1, view 2) of segments [B, 12, L] and text features [B, F], float32 [].

        noise: uniform [2, B, D]; a channel of a view is dropped where it is below 0.1. Moves the norms' running statistics.
        """
        x = self.resnet(1000 * scale_to_1(signals), training=True)  # [B, C, T]
        ecg = self.pool(self.to_shared(x.swapaxes(1, 2)))  # [B, D]
        mean = jnp.mean(x, axis=2)
        views = [jnp.where(drawn < _DROPOUT, 0, view(mean) / (1 - _DROPOUT)) for view, drawn in zip(self.views, noise)]
        text = self.text_out(jax.nn.gelu(self.text_in(text), approximate=False))
        return contrast(ecg, text) + contrast(*views)


def contrast(left: jax.Array, right: jax.Array) -> jax.Array:
    """-sum over both directions of mean_i log(exp(s_ii / t) / sum_j exp(s_ij / t)), float32 [], of rows [B, D].

    s: cosines, t = 0.07 (van den Oord et al. 2018; Radford et al. 2021, section 2.3). Every row is contrasted with those of all
    devices: rows that a mesh splits are gathered.
    """
    left, right = (rows / jnp.linalg.norm(rows, axis=-1, keepdims=True) for rows in (left, right))
    scores = left @ right.T / _TEMPERATURE  # [B, B]
    own = jnp.diagonal(scores)
    return sum(jnp.mean(jax.nn.logsumexp(scores, axis=axis) - own) for axis in (0, 1))
