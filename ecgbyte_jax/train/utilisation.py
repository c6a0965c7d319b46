"""Model FLOP utilisation: the arithmetic that a step needs, divided by what the devices could do in its time."""

import jax
import numpy as np

from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.train.chips import chip_of


def peak_flops() -> float | None:
    """FLOP/s of all devices together, None where it is not known (on a CPU, for example)."""
    chip = chip_of(jax.devices()[0])
    return None if chip is None else chip.flops * jax.device_count()


def step_flops(config: DecoderConfig, trained: int, lengths: np.ndarray) -> float:
    """What one step needs: 2 FLOPs a parameter and token forward, 2 for the activations' gradients, 2 for trained weights'.

    trained: the number of trained parameters; lengths: int [n, 2], the tokens and answer tokens of each sequence. Padding
    and the look-up of embeddings are not counted; the head counts for the answers' tokens alone.
    """
    tokens, answers = lengths.sum(axis=0)
    attention = config.width * config.head_dim * (2 * config.heads + 2 * config.kv_heads)
    blocks = config.layers * (attention + (3 if config.gated else 2) * config.width * config.mlp_width)
    pairs = np.sum(lengths[:, 0].astype(float) ** 2) / 2  # of a token and one that it sees
    mixing = 4 * config.layers * config.heads * config.head_dim * pairs  # scores and sums, forward
    return float(tokens * (4 * blocks + 2 * min(trained, blocks)) + 3 * mixing + 4 * answers * config.width * config.vocab_size)
