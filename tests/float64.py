"""The logits that a model of transformers has in float64, to tell whose rounding a difference in float32 comes from."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")


class _Float64(torch.overrides.TorchFunctionMode):
    """Computes in float64 what transformers asks float32 for by name: norms, rotary angles, softmax, delta rule."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def widen(given):
            return torch.float64 if given is torch.float32 else given

        function = torch.Tensor.double if function is torch.Tensor.float else function
        return function(*map(widen, args), **{name: widen(given) for name, given in (kwargs or {}).items()})


def float64_logits(model, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The logits float64 [B, T, V] of a model with rotary positions; ids, mask: int [B, T], as in `Decoder.__call__`."""
    exact, positions = copy.deepcopy(model).double(), np.maximum(mask.cumsum(1) - 1, 0)
    with torch.no_grad(), _Float64():
        exact.model.rotary_emb = type(exact.model.rotary_emb)(model.config)
        given = {"attention_mask": torch.tensor(mask), "position_ids": torch.tensor(positions), "use_cache": False}
        logits = exact(torch.tensor(ids), **given).logits.numpy()
    assert logits.dtype == np.float64
    return logits
