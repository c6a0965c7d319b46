"""Fields of Hugging Face's config.json, read with checks, and written."""

from collections.abc import Callable

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.config import DecoderConfig

_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


def refuse(raw: dict, field: str, known: tuple, default: object = None) -> None:
    """Raises WeightsError where a field of config.json has a value that this decoder does not support."""
    if raw.get(field, default) not in known:
        raise WeightsError(f"{field} {raw.get(field, default)!r:.60} found, one of {known} expected")


_LARGEST = 2**30


def whole(raw: dict, field: str, most: int = _LARGEST) -> int:
    """A whole number from 1 on; raises WeightsError."""
    if type(raw[field]) is not int or not 1 <= raw[field] <= most:
        raise WeightsError(f"{field} {raw[field]!r:.60} found, a whole number from 1 to {most} expected")
    return raw[field]


def positive(raw: dict, field: str) -> float:
    """A number above 0; raises WeightsError."""
    if type(raw[field]) not in (int, float) or not 0 < raw[field] < _LARGEST:
        raise WeightsError(f"{field} {raw[field]!r:.60} found, a number above 0 expected")
    return raw[field]


def at_least_1(raw: dict, field: str) -> float:
    """A number from 1 on; raises WeightsError."""
    if positive(raw, field) < 1:
        raise WeightsError(f"{field} {raw[field]!r:.60} found, a number from 1 on expected")
    return raw[field]


def flag(raw: dict, field: str, default: bool) -> bool:
    """True or False; raises WeightsError."""
    refuse(raw, field, (True, False), default)
    return bool(raw.get(field, default))


def divided(raw: dict, width: str, heads: str) -> int:
    """The width of a head; raises WeightsError where the width is no multiple of the heads."""
    if raw[width] % raw[heads]:
        raise WeightsError(f"{width} {raw[width]} found, a multiple of {heads} {raw[heads]} expected")
    return raw[width] // raw[heads]


def or_none(read: Callable[[dict, str], float], raw: dict, field: str, otherwise: float) -> float:
    """The field as `read` returns it, or `otherwise` where it is missing or null."""
    return otherwise if raw.get(field) is None else read(raw, field)


def given(raw: dict, *fields: str) -> dict:
    """Those of the fields that are there and not null."""
    return {field: raw[field] for field in fields if raw.get(field) is not None}


def activation(name: str) -> str:
    """Our name of an activation; raises WeightsError for one that is not known."""
    refuse({"hidden_act": name}, "hidden_act", tuple(_ACTIVATIONS))
    return _ACTIVATIONS[name]


MOST = {"layers": 1000, "heads": 10_000}  # more are a mistake, and each would be built


def read_fields(raw: dict, names: dict[str, str], *, tied: bool) -> dict:
    """The fields that need no conversion; `tied`: the default of tie_word_embeddings."""
    refuse(raw, "quantization_config", (None, {}))
    fields = {
        ours: positive(raw, theirs) if ours == "norm_eps" else whole(raw, theirs, MOST.get(ours, _LARGEST))
        for ours, theirs in names.items()
    }
    return fields | {"tied_embeddings": flag(raw, "tie_word_embeddings", tied)}


def write_fields(config: DecoderConfig, names: dict[str, str]) -> dict:
    """The fields that need no conversion, as config.json has them."""
    return {theirs: getattr(config, ours) for ours, theirs in names.items()} | {"tie_word_embeddings": config.tied_embeddings}


# Where it is missing, transformers takes the id of the family's own tokenizer, which must be below vocab_size.
NO_PAD = {"pad_token_id": None}


def read_window(raw: dict) -> int:
    """The sliding window, 0 where it is null; transformers' default of 4096 where it is missing."""
    return or_none(whole, {"sliding_window": 4096} | raw, "sliding_window", 0)


def layer_windows(raw: dict, slides: Callable[[int], bool]) -> tuple[int, ...]:
    """Each layer's window, from `layer_types`, or in older files from the family's rule `slides`."""
    window, layers = read_window(raw), whole(raw, "num_hidden_layers", MOST["layers"])
    types = raw.get("layer_types") or ["sliding_attention" if slides(i) else "full_attention" for i in range(layers)]
    if not isinstance(types, list):
        raise WeightsError(f"layer_types {types!r:.60} found, a list expected")
    for kind in types:
        refuse({"layer_types": kind}, "layer_types", ("sliding_attention", "full_attention"))
    if len(types) != layers:
        raise WeightsError(f"layer_types: {len(types)} found, num_hidden_layers {layers} expected")
    windows = tuple(window if kind == "sliding_attention" else 0 for kind in types)
    return windows if any(windows) else ()


def write_windows(config: DecoderConfig) -> dict:
    """Every layer's window, as config.json has them."""
    types = ["sliding_attention" if window else "full_attention" for window in config.layer_windows]
    return {"sliding_window": max(config.layer_windows) or None, "layer_types": types}
