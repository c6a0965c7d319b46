"""A vision transformer that restores hidden squares of an ECG's picture (Dosovitskiy et al. 2021; Xie et al. 2022).

Axes: B batch, L samples, N patches, P pixels of a patch's side, C = 3 channels, D width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.encoders.config import VITS, EncoderConfig
from ecgbyte_jax.encoders.layers import Linear, Transformer, token_vector
from ecgbyte_jax.encoders.picture import cut, draw, picture_flops


class MaskedViT(nnx.Module):
    """A class token and the patches of a picture through a transformer, and a linear map from its patches back to pixels."""

    def __init__(self, config: EncoderConfig, samples: int, rngs: nnx.Rngs):
        self.config, self.vision, self.samples = config, VITS[config.size], samples
        self.width = self.vision.stack.width
        values = 3 * self.vision.patch**2
        self.patch_to_token = Linear(values, self.width, rngs)
        self.class_token = token_vector(rngs, self.width)
        self.positions = token_vector(rngs, 1 + self.vision.patches, self.width)
        self.encoder = Transformer(self.vision.stack, rngs)
        self.mask_token = token_vector(rngs, self.width)
        self.to_patch = Linear(self.width, values, rngs)

    def cut(self, signals: jax.Array) -> jax.Array:
        """The patches [B, N, C P P] of the pictures of segments [B, 12, L] in mV."""
        return cut(draw(signals, self.vision, self.config.published_scaling), self.vision)

    def encode(self, patches: jax.Array, hidden: jax.Array | None = None) -> jax.Array:
        """The last hidden states [B, 1 + N, D], the class token's first; hidden: bool [B, N], None: no patch is."""
        tokens = self.patch_to_token(patches)  # [B, N, D]
        tokens = tokens if hidden is None else jnp.where(hidden[..., None], self.mask_token[...], tokens)
        first = jnp.broadcast_to(self.class_token[...], (len(tokens), 1, self.width))
        return self.encoder(jnp.concatenate([first, tokens], axis=1) + self.positions[...])

    def loss(self, signals: jax.Array, noise: jax.Array) -> jax.Array:
        """The mean absolute error of the hidden pixels of a batch, float32 [], of segments [B, 12, L].

        sum |x - x'| / (n + 1e-5) / 3 over the C values x of all n hidden pixels (Xie et al. 2022, section 3.4, as transformers
        has it). noise: uniform [B, N]; a patch is hidden where it is below the share, by itself.
        """
        patches, hidden = self.cut(signals), noise < self.config.mask_share
        restored = self.to_patch(self.encode(patches, hidden)[:, 1:])
        errors = jnp.sum(jnp.abs(patches - restored), axis=-1)  # [B, N]
        return jnp.sum(errors * hidden) / (jnp.sum(hidden) * self.vision.patch**2 + 1e-5) / 3

    def tokens(self, signals: jax.Array) -> jax.Array:
        """The last hidden states [B, N, D] of the patches of segments [B, 12, L] in mV, none hidden."""
        return self.encode(self.cut(signals))[:, 1:]

    def features(self, signals: jax.Array) -> jax.Array:
        """The mean [B, D] of `tokens`."""
        return jnp.mean(self.tokens(signals), axis=1)

    def drop_objective(self) -> None:
        """Leaves only what `tokens` needs."""
        for name in ("mask_token", "to_patch"):
            delattr(self, name)

    def flops(self) -> float:
        """Of `tokens` of one segment."""
        patches = self.vision.patches
        drawn = picture_flops(self.samples) + 2.0 * patches * self.patch_to_token.kernel.size
        return drawn + self.encoder.flops(1 + patches)
