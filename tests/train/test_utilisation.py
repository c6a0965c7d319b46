import numpy as np
import pytest

from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.train.utilisation import step_flops

CONFIG = DecoderConfig(
    vocab_size=100, width=8, layers=2, heads=2, kv_heads=1, head_dim=4, mlp_width=16, max_positions=64, rope_theta=1e4
)


@pytest.mark.parametrize(("trained", "a_parameter"), [(0, 4), (10**9, 6)])
def test_flops_of_a_step_by_hand(trained, a_parameter):
    # A block: q and o 8 x 8, k and v 8 x 4, gate, up and down 8 x 16: 576 parameters. Sequences of 10 and 6 tokens see
    # 50 and 18 pairs, each 2 FLOPs a score and 2 a sum over 2 heads of 4, three times with the gradients. 3 + 1 answer tokens.
    blocks, mixing, head = 2 * 576 * 16, 2 * 3 * 4 * 8 * (50 + 18), 4 * 4 * 8 * 100
    found = step_flops(CONFIG, trained, np.array([[10, 3], [6, 1]]))
    assert found == pytest.approx(a_parameter * blocks + mixing + head)
