"""What a training step sends between devices, counted in the compiled text: 8 simulated CPU devices, and a TPU's compiler."""

import os
import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest

from ecgbyte_jax.fit.collectives import count_collectives
from ecgbyte_jax.fit.topology import devices_of, environment
from ecgbyte_jax.model.build import abstract_model
from ecgbyte_jax.model.config import KERNELS, LoraConfig, ModelConfig
from ecgbyte_jax.model.sharding import batch_sharding, make_mesh
from ecgbyte_jax.settings import OptimSettings
from ecgbyte_jax.train.optim import make_optimizer
from ecgbyte_jax.train.step import abstract_state, make_step

LAYERS, ROWS, TOKENS, ANSWERS = 3, 16, 64, 4
RANK = 6  # no other axis has this size
SHAPE = {"width": 256, "layers": LAYERS, "heads": 8, "kv_heads": 8, "head_dim": 32, "mlp_width": 512}


def compiled(sizes: tuple[int, int, int], devices: list | None = None, **changes) -> str:
    """The text of a LoRA step on a mesh of these sizes."""
    mesh = make_mesh(*sizes, devices=devices)
    model = ModelConfig(**SHAPE, attention="plain", **changes)
    with jax.set_mesh(mesh):
        parts = abstract_model(model, LoraConfig(RANK, 32.0, 0.05, KERNELS), TOKENS, 512, mesh)
        optimizer, _ = make_optimizer(OptimSettings(), 256, 100)
        sharding = batch_sharding(mesh)

        def array(places: int, kind: type) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((ROWS, places), kind, sharding=sharding)

        batch = {name: array(TOKENS, jnp.int32) for name in ("input_ids", "segment_ids", "positions")}
        batch |= {name: array(ANSWERS, jnp.int32) for name in ("answer_places", "targets")}
        batch["answer_mask"] = array(ANSWERS, jnp.bool)
        step = make_step(parts, optimizer, 0.05)
        return step.lower(abstract_state(parts.trained, optimizer, mesh), parts.frozen, batch, 1).compile().as_text()


def times(text: str) -> Counter:
    """How often each kind of collective runs in a step."""
    return Counter({kind: sent.times for kind, sent in count_collectives(text).items()})


@pytest.mark.parametrize("stacked", [False, True], ids=["loop", "stacked"])
def test_fsdp_gathers_each_kernel_forward_and_backward_and_adds_up_lora_s_gradients_once(stacked):
    sent = times(compiled((1, 8, 1), remat="products", scan_from=int(stacked)))
    outside = 3  # the ids for the split embedding, and the head's rows and gradient
    unneeded = 0 if stacked else 3  # nothing is trained before the first block's q, k and v
    assert sent["all-gather"] == 2 * len(KERNELS) * LAYERS - unneeded + outside
    # The gradients together, by layer where the layers are stacked; the loss and the number of its tokens.
    assert sent["all-reduce"] == (LAYERS + 2 if stacked else 2)
    assert sent["all-to-all"] == 2  # the embedding's rows, and the answers' hidden states
    assert not sent["collective-permute"] and not sent["reduce-scatter"]


def test_tensor_parallel_blocks_have_two_reductions_forward_and_two_backward():
    sent = times(compiled((1, 1, 8), remat="", scan_from=0))
    # A first block has one backward: nothing is trained before it. Outside: the embedding, the head and its softmax, the norm.
    assert sent == Counter({"all-reduce": 4 * LAYERS - 1 + 5})


def test_data_parallel_copies_send_the_gradients_alone():
    sent = times(compiled((8, 1, 1), remat="", scan_from=0))
    assert set(sent) == {"all-reduce"} and sent["all-reduce"] <= 2


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("libtpu"), reason="libtpu, the extra `tpu`, is not installed")
def test_a_tpu_s_step_gathers_no_factor_of_lora():
    done = subprocess.run(
        [sys.executable, "-c", "from tests.model.test_communication import tpu; tpu()"],
        env=os.environ | environment("v5e-8") | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def tpu() -> None:
    """XLA may turn the gathers of kernels into rings there; LoRA's factors are in reductions alone, and in few of them."""
    text = compiled((1, 8, 1), devices_of("v5e-8"), remat="products", scan_from=1, dtype="bfloat16")
    lines = re.findall(r"= (.*) (all-\w+|reduce-scatter|collective-permute)(?:-done)?\(", text)
    narrow = [kind for shapes, kind in lines if re.search(rf"\[(?:\d+,)*{RANK}\b", shapes)]
    assert narrow and set(narrow) == {"all-reduce"}, Counter(narrow)
    assert len([kind for _, kind in lines if kind == "all-reduce"]) <= 4
