"""The encoders in PyTorch, written plainly, with the weights of the tested ones."""

from collections.abc import Callable

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from ecgbyte_jax.settings import OptimSettings
from ecgbyte_jax.train.optim import make_optimizer

torch = pytest.importorskip("torch")
F = torch.nn.functional


def weights_of(state: nnx.State) -> dict[str, "torch.Tensor"]:
    """Every array of a state by its path, `encoder/blocks/0/up/kernel`."""
    flat = nnx.to_flat_state(state)
    return {"/".join(map(str, path)): torch.tensor(np.array(leaf[...]), requires_grad=True) for path, leaf in flat}


def random_weights(make: Callable[[], nnx.Module]) -> nnx.Module:
    """The model with random weights, no bias zero and no scale one; drawing its own would take seconds to compile."""
    rng, graphdef, state = np.random.default_rng(1), *nnx.split(nnx.eval_shape(make))

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        drawn, name = rng.standard_normal(leaf.shape), jax.tree_util.keystr(path)
        if "kernel" in name:
            drawn *= leaf.shape[0] ** -0.5
        else:
            drawn = 0.05 * drawn + ("scale" in name or "variance" in name)
        return drawn.astype(np.float32)

    return nnx.merge(graphdef, jax.tree.map_with_path(draw, state))


def check_step(params: nnx.State, gradients: nnx.State, reference: dict) -> None:
    """Compares one step of the published optimizer, whose decay is added to the gradient."""
    optim = OptimSettings(warmup=100)
    optimizer, schedule = make_optimizer(optim, 64, 10)
    step = jax.jit(lambda p, g: optax.apply_updates(p, optimizer.update(g, optimizer.init(p), p)[0]))
    torch.nn.utils.clip_grad_norm_(list(reference.values()), optim.clip_norm)
    how = {"lr": float(schedule(0)), "betas": (optim.b1, optim.b2), "weight_decay": optim.weight_decay}
    torch.optim.Adam(list(reference.values()), **how).step()
    assert how["lr"] > 1e-4
    for path, leaf in nnx.to_flat_state(step(params, gradients)):
        theirs = reference["/".join(map(str, path))].detach().numpy()
        np.testing.assert_allclose(leaf[...], theirs, atol=1e-5, err_msg=str(path))


def check_gradients(gradients: nnx.State, reference: dict) -> None:
    """Compares all gradients, each by the largest entry of its array, or a hundredth of the largest of all."""
    least = 1e-2 * max(float(weight.grad.abs().max()) for weight in reference.values())
    flat = nnx.to_flat_state(gradients)
    assert len(flat) == len(reference)
    for path, leaf in flat:
        theirs = reference["/".join(map(str, path))].grad.numpy()
        scale = max(float(np.abs(theirs).max()), least)
        np.testing.assert_allclose(np.array(leaf[...]) / scale, theirs / scale, atol=1e-5, err_msg=str(path))


def linear(w: dict, name: str, x: "torch.Tensor") -> "torch.Tensor":
    return F.linear(x, w[f"{name}/kernel"].T, w[f"{name}/bias"])


def layer_norm(w: dict, name: str, x: "torch.Tensor") -> "torch.Tensor":
    return F.layer_norm(x, x.shape[-1:], w[f"{name}/scale"], w[f"{name}/bias"])


def transformer(w: dict, name: str, x: "torch.Tensor", layers: int, heads: int) -> "torch.Tensor":
    """x [rows, tokens, width]."""
    for layer in range(layers):
        block = f"{name}/blocks/{layer}"
        normed = layer_norm(w, f"{block}/attention_norm", x)
        q, k, v = (linear(w, f"{block}/attention/{part}", normed).unflatten(-1, (heads, -1)).transpose(1, 2) for part in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(w, f"{block}/attention/o", mixed)
        hidden = F.gelu(linear(w, f"{block}/up", layer_norm(w, f"{block}/mlp_norm", x)))
        x = x + linear(w, f"{block}/down", hidden)
    return layer_norm(w, f"{name}/norm", x)


def positions(count: int, width: int) -> "torch.Tensor":
    angles = torch.tensor(
        [[place / 10_000 ** (2 * i / width) for i in range(width // 2)] for place in range(count)], dtype=torch.float64
    )
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
