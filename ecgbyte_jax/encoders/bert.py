"""BERT as a reader of reports, with weights by PyTorch's names (Devlin et al. 2019).

Axes: B batch, T tokens, D width, H heads, C channels of a head.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT: `words` and `types` of tokens that have an embedding, `places` of a text, epsilon of its norms."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    words: int
    places: int
    types: int
    epsilon: float


def bert_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that `bert_pooled` reads, by its name in PyTorch; kernels are [n_out, n_in]."""
    width, mlp = config.width, config.mlp_width
    embeddings = {"word": config.words, "position": config.places, "token_type": config.types}
    shapes = {f"embeddings.{name}_embeddings.weight": (count, width) for name, count in embeddings.items()}
    linears, norms = {"pooler.dense": (width, width)}, ["embeddings.LayerNorm"]
    for layer in range(config.layers):
        at = f"encoder.layer.{layer}"
        linears |= {
            f"{at}.attention.{part}": (width, width) for part in ("self.query", "self.key", "self.value", "output.dense")
        }
        linears |= {f"{at}.intermediate.dense": (mlp, width), f"{at}.output.dense": (width, mlp)}
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
    shapes |= {f"{name}.weight": shape for name, shape in linears.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    return shapes | {f"{name}.{part}": (width,) for name in norms for part in ("weight", "bias")}


def bert_pooled(config: BertConfig, weights: Mapping[str, jax.Array], ids: jax.Array, mask: jax.Array) -> jax.Array:
    """tanh(h W + b) of the first token's last hidden state h, float32 [B, D]; ids int32, mask bool [B, T], False on padding.

    Post-norm blocks with an exact GELU; all tokens are of the first type (Devlin et al. 2019, sections 3 and 3.1).
    """

    def linear(name: str, x: jax.Array) -> jax.Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: jax.Array) -> jax.Array:
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + config.epsilon)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    words, positions, types = (weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type"))
    x = norm("embeddings.LayerNorm", words[ids] + positions[: ids.shape[1]] + types[0])  # [B, T, D]
    for layer in range(config.layers):
        at = f"encoder.layer.{layer}"
        heads = (linear(f"{at}.attention.self.{part}", x) for part in ("query", "key", "value"))
        q, k, v = (part.reshape(*x.shape[:2], config.heads, -1) for part in heads)  # [B, T, H, C]
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None]).reshape(x.shape)
        x = norm(f"{at}.attention.output.LayerNorm", x + linear(f"{at}.attention.output.dense", mixed))
        hidden = jax.nn.gelu(linear(f"{at}.intermediate.dense", x), approximate=False)
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", hidden))
    return jnp.tanh(linear("pooler.dense", x[:, 0]))
