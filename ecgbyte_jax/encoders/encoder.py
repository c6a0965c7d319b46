"""The encoder that the settings describe."""

from flax import nnx

from ecgbyte_jax.encoders.clip import Clip
from ecgbyte_jax.encoders.config import EncoderConfig
from ecgbyte_jax.encoders.masked import MaskedAutoencoder
from ecgbyte_jax.encoders.merl import Merl
from ecgbyte_jax.encoders.vit import MaskedViT

Encoder = MaskedAutoencoder | MaskedViT | Merl | Clip


def make_encoder(config: EncoderConfig, samples: int, rngs: nnx.Rngs, text_size: int = 1) -> Encoder:
    """The encoder of segments of so many samples, with random weights.

    text_size: the features of a report for MERL, the words of a tokenizer for CLIP.
    """
    match config.kind:
        case "merl":
            return Merl(config, samples, text_size, rngs)
        case "clip":
            return Clip(config, samples, text_size, rngs)
        case "vit":
            return MaskedViT(config, samples, rngs)
        case _:
            return MaskedAutoencoder(config, samples, rngs)
