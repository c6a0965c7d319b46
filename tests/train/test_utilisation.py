from dataclasses import replace

import jax
import numpy as np
import pytest

from ecgbyte_jax.model.config import DecoderConfig, DeltaConfig
from ecgbyte_jax.train.utilisation import product_flops, step_flops

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


def test_flops_of_delta_nets_by_hand():
    # Attention in one block: q with its gate 8 x 16, o 8 x 8, k and v 8 x 4. The other: q and k 8 x 6, v, gate and o 8 x 20,
    # two maps to 4 heads 8 x 4. Convolutions of 32 channels with 3 weights; states 3 x 5 of 4 heads, 7 FLOPs a number.
    config = replace(CONFIG, attention_gate=True, delta=DeltaConfig((0,), 2, 4, 3, 5, 3))
    blocks = 8 * 16 + 8 * 8 + 2 * 8 * 4 + 2 * 8 * 6 + 3 * 8 * 20 + 2 * 8 * 4 + 2 * 3 * 8 * 16
    mixing = 2 * 2 * 8 * (50 + 18) + 16 * (2 * 32 * 3 + 7 * 4 * 3 * 5)
    found = step_flops(config, 10**9, np.array([[10, 3], [6, 1]]))
    assert found == pytest.approx(6 * blocks * 16 + 3 * mixing + 4 * 4 * 8 * 100)


def test_products_and_convolutions_are_counted_wherever_they_are():
    def compute(x: jax.Array, kernel: jax.Array, filters: jax.Array) -> jax.Array:
        inner = jax.jit(jax.checkpoint(lambda x: jax.nn.relu(x @ kernel)))  # 2 x 4 x 5 values of 4 products
        scores = jax.numpy.einsum("btd,bsd->bts", inner(x), x @ kernel)  # 2 x 4 x 4 values of 5; the products once more
        strided = jax.lax.conv_general_dilated(x, filters, (1,), "SAME", feature_group_count=2)  # 2 x 6 x 4 values of 2 x 2
        return scores.sum() + strided.sum() + (x * x).sum()

    shapes = (2, 4, 4), (4, 5), (6, 2, 2)
    arrays = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    products, scores, strided = 2 * (2 * 4 * 5) * 4, (2 * 4 * 4) * 5, (2 * 6 * 4) * 2 * 2
    assert product_flops(compute, *arrays) == 2 * (products + scores + strided)
