"""From the signal of an ECG to vectors that a language model reads in place of its tokens.

Axes: B batch, L samples, N vectors of an ECG, T features of an encoder, D their width, H width of the language model, F
filters.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.encoders.config import LEADS, EcgInputConfig, EncoderConfig, count_features
from ecgbyte_jax.encoders.encoder import make_encoder
from ecgbyte_jax.encoders.layers import LayerNorm, Linear, token_vector
from ecgbyte_jax.encoders.scaling import scale_mv

_HEADS = 4  # of the attention to an encoder's features
_FILTERS = ((3, 64), (7, 128))  # samples and number of filters of the two convolutions


class SpanMap(nnx.Module):
    """ELF: one linear map of each of N spans of the signal, all leads together, [12 L / N] to [H]; N = 1 is its base form.

    Source: ECG-Bench's encoder-free connectors.
    """

    def __init__(self, samples: int, vectors: int, width: int, rngs: nnx.Rngs):
        self.vectors, self.frozen = vectors, ()
        self.map = Linear(LEADS * samples // vectors, width, rngs)

    def __call__(self, signals: jax.Array) -> jax.Array:
        """Maps segments [B, 12, L] in mV to [B, N, H]."""
        spans = scale_mv(signals).reshape(len(signals), LEADS, self.vectors, -1).swapaxes(1, 2)  # [B, N, 12, L / N]
        return self.map(spans.reshape(len(signals), self.vectors, -1))

    def shares(self, signals: jax.Array) -> jax.Array:
        """Of how much of each span a vector is made: [B, N, N]."""
        return jnp.broadcast_to(jnp.eye(self.vectors), (len(signals), self.vectors, self.vectors))

    def flops(self) -> float:
        """Of one segment, forward."""
        return 2.0 * self.vectors * self.map.kernel.size


class Convolutions(nnx.Module):
    """ELF: 64 filters of 3 samples, 128 of 7, a ReLU after each, the mean over time, a linear map; one vector.

    Source: ECG-Bench's encoder-free connectors.
    """

    def __init__(self, samples: int, width: int, rngs: nnx.Rngs):
        self.samples, self.frozen = samples, ()
        sizes = (LEADS, *(filters for _, filters in _FILTERS))
        self.filters = nnx.List(
            [Linear(span * n_in, n_out, rngs) for n_in, (span, n_out) in zip(sizes, _FILTERS)]
        )  # [span * n_in, n_out]
        self.map = Linear(sizes[-1], width, rngs)

    def __call__(self, signals: jax.Array) -> jax.Array:
        """Maps segments [B, 12, L] in mV to [B, 1, H]."""
        x = scale_mv(signals).swapaxes(1, 2)  # [B, L, 12]
        for filters, (span, _) in zip(self.filters, _FILTERS):
            kernel = filters.kernel[...].reshape(span, x.shape[-1], -1)
            x = jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))  # [B, L, F]
            x = jax.nn.relu(x + filters.bias[...])
        return self.map(jnp.mean(x, axis=1, keepdims=True))

    def flops(self) -> float:
        """Of one segment, forward."""
        return 2.0 * (self.samples * sum(filters.kernel.size for filters in self.filters) + self.map.kernel.size)


class MeanConnector(nnx.Module):
    """The means of N runs of consecutive features, each through a linear map, or through two with an exact GELU between."""

    def __init__(self, features: int, config: EcgInputConfig, widths: tuple[int, int], rngs: nnx.Rngs):
        self.features, self.vectors = features, config.vectors
        n_in, n_out = widths
        hidden = config.connector == "mlp"
        self.up = nnx.data(Linear(n_in, n_out, rngs) if hidden else None)
        self.map = Linear(n_out if hidden else n_in, n_out, rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, N, H]."""
        x = jnp.mean(features.reshape(len(features), self.vectors, -1, features.shape[-1]), axis=2)
        return self.map(x if self.up is None else jax.nn.gelu(self.up(x), approximate=False))

    def shares(self, features: jax.Array) -> jax.Array:
        """Of how much of each feature a vector is made, [B, N, T] of rows of sum 1: equal parts of those in its mean."""
        each = self.features // self.vectors
        return jnp.broadcast_to(
            jnp.repeat(jnp.eye(self.vectors) / each, each, axis=1), (len(features), self.vectors, self.features)
        )

    def flops(self) -> float:
        """Of one segment, forward."""
        return 2.0 * self.vectors * sum(part.kernel.size for part in (self.up, self.map) if part is not None)


class QueryConnector(nnx.Module):
    """N learned queries attend to the features: map(softmax(q k^T / sqrt(C)) v), with 4 heads of C channels.

    Source: one layer of the resampler of Flamingo (Alayrac et al. 2022, section 3.1), without its MLP.
    """

    def __init__(self, features: int, config: EcgInputConfig, widths: tuple[int, int], rngs: nnx.Rngs):
        n_in, n_out = widths
        self.features = features
        self.queries = token_vector(rngs, config.vectors, n_in)
        self.norm = LayerNorm(n_in)
        self.q, self.k, self.v = (Linear(n_in, n_in, rngs) for _ in range(3))
        self.map = Linear(n_in, n_out, rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        """Maps [B, T, D] to [B, N, H]."""
        q, k, v = self._heads(features)
        return self.map(jax.nn.dot_product_attention(q, k, v).reshape(len(features), *self.queries.shape))

    def shares(self, features: jax.Array) -> jax.Array:
        """The attention of each query to the features, [B, N, T] of rows of sum 1: the mean over heads."""
        q, k, _ = self._heads(features)
        scores = jnp.einsum("bnhc,bthc->bhnt", q, k) / q.shape[-1] ** 0.5
        return jnp.mean(jax.nn.softmax(scores), axis=1)

    def _heads(self, features: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, N, 4, C], and keys and values [B, T, 4, C] of features [B, T, D]."""
        x = self.norm(features)
        queries = jnp.broadcast_to(self.queries[...], (len(x), *self.queries.shape))
        q, k, v = (
            part(each).reshape(len(x), -1, _HEADS, each.shape[-1] // _HEADS)
            for part, each in ((self.q, queries), (self.k, x), (self.v, x))
        )
        return q, k, v

    def flops(self) -> float:
        """Of one segment, forward."""
        vectors, width = self.queries.shape
        maps = vectors * (self.q.kernel.size + self.map.kernel.size) + self.features * (self.k.kernel.size + self.v.kernel.size)
        return 2.0 * (maps + 2 * vectors * self.features * width)


class EncoderInput(nnx.Module):
    """An encoder, all of the ECG shown to it, and the connector of its features; batch norms take their running statistics."""

    def __init__(self, encoder: EncoderConfig, config: EcgInputConfig, samples: int, width: int, rngs: nnx.Rngs):
        self.encoder = make_encoder(encoder, samples, rngs)
        self.encoder.drop_objective()
        self.frozen = () if config.train_encoder else ("encoder",)
        make = QueryConnector if config.connector == "query" else MeanConnector
        self.connector = make(count_features(encoder, samples), config, (self.encoder.width, width), rngs)

    def __call__(self, signals: jax.Array) -> jax.Array:
        """Maps segments [B, 12, L] in mV to [B, N, H]."""
        return self.connector(self.encoder.tokens(signals))

    def shares(self, signals: jax.Array) -> jax.Array:
        """Of how much of each feature of the encoder a vector is made, [B, N, T] of rows of sum 1."""
        return self.connector.shares(self.encoder.tokens(signals))

    def flops(self) -> float:
        """Of one segment, forward."""
        return self.encoder.flops() + self.connector.flops()


EcgInput = SpanMap | Convolutions | EncoderInput


def make_ecg_input(config: EcgInputConfig, encoder: EncoderConfig, samples: int, width: int, rngs: nnx.Rngs) -> EcgInput | None:
    """The map from segments of so many samples to vectors of a language model's width, with random weights.

    None where it reads tokens.
    """
    match config.kind:
        case "tokens":
            return None
        case "encoder":
            return EncoderInput(encoder, config, samples, width, rngs)
        case "elf_conv":
            return Convolutions(samples, width, rngs)
        case _:
            return SpanMap(samples, config.vectors, width, rngs)
