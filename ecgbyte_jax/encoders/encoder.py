"""The encoder that the settings describe."""

from flax import nnx

from ecgbyte_jax.encoders.config import EncoderConfig
from ecgbyte_jax.encoders.masked import MaskedAutoencoder
from ecgbyte_jax.encoders.merl import Merl

Encoder = MaskedAutoencoder | Merl


def make_encoder(config: EncoderConfig, samples: int, rngs: nnx.Rngs, text_width: int = 1) -> Encoder:
    """The encoder of segments of so many samples, with random weights; text_width: the features of a report, for MERL."""
    return Merl(config, samples, text_width, rngs) if config.kind == "merl" else MaskedAutoencoder(config, samples, rngs)
