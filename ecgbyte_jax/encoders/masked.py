"""Masked autoencoders of ECGs, which cut a segment into patches in three ways: MTAE, MLAE and ST-MEM.

Axes: B batch, L samples, G groups, N patches of a group, K those of them that are kept, P values of a patch, S special tokens
of a group, D width.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.encoders.config import LEADS, SIZES, EncoderConfig, count_kept, patch_grid
from ecgbyte_jax.encoders.layers import LayerNorm, Linear, Transformer, sine_positions, token_vector
from ecgbyte_jax.encoders.scaling import scale_mv, scale_to_1


class MaskedAutoencoder(nnx.Module):
    """Restores hidden patches of a segment from the others (He et al. 2022; for ECGs Na et al. 2024, Zhang et al. 2022).

    MTAE: a patch is a span of all leads; MLAE: a lead; both with a class token first. ST-MEM: a span of one lead; every lead
    has its embedding and a separator at both ends, and is decoded by itself. Raises ConfigError where patches do not fill a
    segment.
    """

    def __init__(self, config: EncoderConfig, samples: int, rngs: nnx.Rngs):
        encoder, decoder = SIZES[config.size]
        self.config, self.grid = config, patch_grid(config, samples)
        self.kept = count_kept(self.grid, config.mask_share)
        self.width, self.decoder_width = encoder.width, decoder.width
        self.patch_norm, self.patch_to_token = LayerNorm(self.grid.values), Linear(self.grid.values, encoder.width, rngs)
        self.token_norm = LayerNorm(encoder.width)
        self.special = token_vector(rngs, encoder.width)
        by_lead = config.kind == "st_mem"
        self.lead_embedding = nnx.data(token_vector(rngs, LEADS, encoder.width) if by_lead else None)
        self.encoder = Transformer(encoder, rngs)
        self.to_decoder = Linear(encoder.width, decoder.width, rngs)
        self.mask_token = token_vector(rngs, decoder.width)
        self.decoder = Transformer(decoder, rngs)
        self.to_patch = Linear(decoder.width, self.grid.values, rngs)

    def cut(self, signals: jax.Array) -> jax.Array:
        """Cuts segments [B, 12, L] into patches [B, G, N, P], scaled as the settings say."""
        grid, rows = self.grid, len(signals)
        signals = scale_to_1(signals) if self.config.published_scaling else scale_mv(signals)
        if self.config.kind == "mtae":
            spans = signals.reshape(rows, LEADS, grid.patches, -1).swapaxes(1, 2)  # [B, N, 12, P / 12]
            return spans.reshape(rows, 1, grid.patches, grid.values)
        return signals.reshape(rows, grid.groups, grid.patches, grid.values)

    def encode(self, signals: jax.Array, order: jax.Array | None = None) -> jax.Array:
        """The encoder's tokens [B, G, N + S, D] of segments [B, 12, L], special tokens first (ST-MEM: and last) in a group.

        order: int [B, G, N], of which patches the first K are kept, in this order: [B, G, K + S, D].
        """
        tokens = self.token_norm(self.patch_to_token(self.patch_norm(self.cut(signals))))  # [B, G, N, D]
        tokens = tokens + sine_positions(self.grid.patches, self.width)
        if order is not None:
            tokens = jnp.take_along_axis(tokens, order[..., : self.kept, None], axis=2)
        special = jnp.broadcast_to(self.special[...], (*tokens.shape[:2], 1, self.width))
        if self.lead_embedding is None:
            tokens = jnp.concatenate([special, tokens], axis=2)
        else:
            tokens = jnp.concatenate([special, tokens, special], axis=2) + self.lead_embedding[...][:, None]
        encoded = self.encoder(tokens.reshape(len(tokens), -1, self.width))  # [B, G (N + S), D]
        return encoded.reshape(tokens.shape)

    def restore(self, encoded: jax.Array, order: jax.Array) -> jax.Array:
        """All patches [B, G, N, P], from what `encode` made of the first K of this order."""
        tokens = self.to_decoder(encoded)  # [B, G, K + S, D]
        first, seen, last = tokens[:, :, :1], tokens[:, :, 1 : 1 + self.kept], tokens[:, :, 1 + self.kept :]
        hidden = jnp.broadcast_to(self.mask_token[...], (*order.shape[:2], self.grid.patches - self.kept, self.decoder_width))
        places = jnp.argsort(order, axis=-1)[..., None]
        patches = jnp.take_along_axis(jnp.concatenate([seen, hidden], axis=2), places, axis=2)  # [B, G, N, D]
        patches = patches + sine_positions(self.grid.patches, self.decoder_width)
        tokens = jnp.concatenate([first, patches, last], axis=2)
        decoded = self.decoder(tokens.reshape(-1, *tokens.shape[2:])).reshape(tokens.shape)
        return self.to_patch(decoded[:, :, 1 : 1 + self.grid.patches])

    def errors(self, signals: jax.Array, noise: jax.Array) -> jax.Array:
        """The squared errors of the hidden patches, averaged over a segment: float32 [B], of segments [B, 12, L].

        sum_h |x_h - x'_h|^2 / (P H) over the H hidden patches x_h (He et al. 2022, section 3), not normalised by patch.
        noise: float [B, G, N]; the K patches of a group with the least are seen.
        """
        order = jnp.argsort(noise, axis=-1)
        restored, patches = self.restore(self.encode(signals, order), order), self.cut(signals)
        hidden = jnp.argsort(order, axis=-1) >= self.kept  # [B, G, N]
        squares = jnp.mean((restored - patches) ** 2, axis=-1)
        return jnp.sum(squares * hidden, axis=(1, 2)) / (self.grid.groups * (self.grid.patches - self.kept))

    def tokens(self, signals: jax.Array) -> jax.Array:
        """The encoder's tokens [B, G N, D] of all patches, none hidden, special tokens left out."""
        encoded = self.encode(signals)[:, :, 1 : 1 + self.grid.patches]
        return encoded.reshape(len(encoded), -1, self.width)

    def features(self, signals: jax.Array) -> jax.Array:
        """The mean [B, D] of `tokens`."""
        return jnp.mean(self.tokens(signals), axis=1)

    def drop_objective(self) -> None:
        """Leaves only what `tokens` needs."""
        for name in ("to_decoder", "mask_token", "decoder", "to_patch"):
            delattr(self, name)

    def flops(self) -> float:
        """Of encoding one segment."""
        tokens = self.grid.groups * (self.grid.patches + (1 if self.lead_embedding is None else 2))
        return 2.0 * self.grid.groups * self.grid.patches * self.patch_to_token.kernel.size + self.encoder.flops(tokens)
