"""CLIP: the picture of an ECG and its report, each read by a transformer, are trained to agree (Radford et al. 2021).

Axes: B batch, L samples, N patches, P pixels of a patch's side, C = 3 channels, T tokens of a text, D width of a reader, E of
the shared space.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ecgbyte_jax.encoders.config import CLIPS, TEXT_PLACES, EncoderConfig, Stack, VisionConfig
from ecgbyte_jax.encoders.layers import LayerNorm, Linear, Transformer, token_vector
from ecgbyte_jax.encoders.merl import contrast
from ecgbyte_jax.encoders.picture import cut, draw, picture_flops


class PictureReader(nnx.Module):
    """A class token and the patches of a picture, normed, through a transformer whose class token is read."""

    def __init__(self, vision: VisionConfig, rngs: nnx.Rngs):
        width = vision.stack.width
        self.patch_to_token = Linear(3 * vision.patch**2, width, rngs, bias=False)
        self.class_token = token_vector(rngs, width)
        self.positions = token_vector(rngs, 1 + vision.patches, width)
        self.first_norm = LayerNorm(width, vision.stack.epsilon)
        self.encoder = Transformer(vision.stack, rngs)

    def embed(self, patches: jax.Array) -> jax.Array:
        """What the first block reads [B, 1 + N, D] of patches [B, N, C P P]."""
        tokens = self.patch_to_token(patches)
        first = jnp.broadcast_to(self.class_token[...], (len(tokens), 1, tokens.shape[-1]))
        return self.first_norm(jnp.concatenate([first, tokens], axis=1) + self.positions[...])


class TextReader(nnx.Module):
    """A causal transformer over a text, read at its last token."""

    def __init__(self, stack: Stack, words: int, rngs: nnx.Rngs):
        self.words, self.positions = (token_vector(rngs, count, stack.width) for count in (words, TEXT_PLACES))
        self.encoder = Transformer(stack, rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """The last tokens' hidden states [B, D], of ids int32 [B, T], -1 after the end of a text."""
        hidden = self.encoder(self.words[...][jnp.maximum(ids, 0)] + self.positions[: ids.shape[1]])
        ends = jnp.sum(ids >= 0, axis=1) - 1  # what comes later is not seen there
        return jnp.take_along_axis(hidden, ends[:, None, None], axis=1)[:, 0]


class Clip(nnx.Module):
    """Both readers, their maps to a shared space, and the logarithm s of its cosines' scale, which begins at ln(1 / 0.07)."""

    def __init__(self, config: EncoderConfig, samples: int, words: int, rngs: nnx.Rngs):
        clip = CLIPS[config.size]
        self.config, self.vision, self.samples, self.width = config, clip.picture, samples, clip.picture.stack.width
        self.picture, self.text = PictureReader(clip.picture, rngs), TextReader(clip.text, words, rngs)
        self.picture_out = Linear(self.width, clip.shared, rngs, bias=False)
        self.text_out = Linear(clip.text.width, clip.shared, rngs, bias=False)
        self.log_scale = nnx.Param(jnp.log(jnp.float32(1 / 0.07)))

    def _embed(self, signals: jax.Array) -> jax.Array:
        """What the first block reads [B, 1 + N, D] of segments [B, 12, L] in mV."""
        picture = draw(signals, self.vision, self.config.published_scaling, self.config.published_crop)
        return self.picture.embed(cut(picture, self.vision))

    def tokens(self, signals: jax.Array) -> jax.Array:
        """The patches [B, N, D] before the last block, whose patches no objective reads (Liu et al. 2023, LLaVA)."""
        x = self._embed(signals)
        for block in self.picture.encoder.blocks[: self.vision.stack.layers - 1]:
            x = block(x)
        return x[:, 1:]

    def features(self, signals: jax.Array) -> jax.Array:
        """The embedding [B, E] of segments [B, 12, L] in mV in the space shared with the texts, of any length."""
        return self.picture_out(self.picture.encoder(self._embed(signals))[:, 0])

    def loss(self, signals: jax.Array, reports: jax.Array) -> jax.Array:
        """C(pictures, texts) / 2 with `contrast`'s C at the scale e^s, float32 [] (Radford et al. 2021, section 2.3).

        signals: segments [B, 12, L]; reports: ids int32 [B, T] of their texts, start and end included, -1 after it.
        """
        texts = self.text_out(self.text(reports))
        return contrast(self.features(signals), texts, jnp.exp(self.log_scale[...])) / 2

    def drop_objective(self) -> None:
        """Leaves only what `tokens` needs."""
        for name in ("text", "picture_out", "text_out", "log_scale"):
            delattr(self, name)
        del self.picture.encoder.norm
        self.picture.encoder.blocks.pop()

    def flops(self) -> float:
        """Of `tokens` of one segment."""
        patches, blocks = self.vision.patches, self.picture.encoder.blocks[: self.vision.stack.layers - 1]
        drawn = picture_flops(self.samples) + 2.0 * patches * self.picture.patch_to_token.kernel.size
        return drawn + sum(block.flops(1 + patches) for block in blocks)
