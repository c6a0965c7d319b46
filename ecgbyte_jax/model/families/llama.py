"""Llama and what is built like it: Mistral, Qwen 2 and 3, SmolLM3, OLMo 2; config.json to DecoderConfig and back."""

from collections.abc import Callable

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.families.fields import (
    HF_ACTIVATIONS,
    MOST,
    NO_PAD,
    activation,
    flag,
    layer_windows,
    or_none,
    read_fields,
    read_window,
    refuse,
    whole,
    write_fields,
    write_windows,
)
from ecgbyte_jax.model.families.rotary import read_rope, write_rope

# Our field -> the field of config.json with the same value.
_LLAMA_FIELDS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}


def read_llama_like(raw: dict, *, tied: bool = False, read_rope: Callable[[dict], dict] = read_rope) -> dict:
    """The fields that Llama, Mistral, Qwen and Gemma share."""
    return (
        read_fields(raw, _LLAMA_FIELDS, tied=tied)
        | read_rope(raw)
        | {
            "kv_heads": or_none(whole, raw, "num_key_value_heads", raw["num_attention_heads"]),
            "head_dim": or_none(whole, raw, "head_dim", raw["hidden_size"] // raw["num_attention_heads"]),
            "qkv_bias": flag(raw, "attention_bias", False),
            "o_bias": flag(raw, "attention_bias", False),
            "activation": activation(raw.get("hidden_act") or raw.get("hidden_activation")),
        }
    )


def write_llama_like(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    return (
        write_fields(config, _LLAMA_FIELDS)
        | write_rope(config)
        | {
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "attention_bias": config.o_bias,
            "hidden_act": HF_ACTIVATIONS[config.activation],
        }
    )


def read_llama(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    return read_llama_like(raw) | {"mlp_bias": flag(raw, "mlp_bias", False)}


def write_llama(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    return write_llama_like(config) | {"mlp_bias": config.mlp_bias}


def read_mistral(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    fields, window = read_llama_like(raw), read_window(raw)
    return fields | {"windows": (window,) * fields["layers"] if window else ()}


def write_mistral(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    return write_llama_like(config) | {"sliding_window": max(config.windows, default=0) or None}


def read_qwen2(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    windows: tuple[int, ...] = ()
    if flag(raw, "use_sliding_window", False):
        first = raw.get("max_window_layers", 28)
        refuse({"max_window_layers": type(first).__name__}, "max_window_layers", ("int",))
        windows = layer_windows(raw, lambda i: i >= first)
    return read_llama_like(raw) | {"qkv_bias": True, "o_bias": False, "windows": windows}


def write_qwen2(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    shared = {name: value for name, value in write_llama_like(config).items() if name != "attention_bias"}
    return shared | {"use_sliding_window": bool(config.windows), **write_windows(config)}


def read_qwen3(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    bias = flag(raw, "attention_bias", False)
    return read_qwen2(raw) | {"qkv_bias": bias, "o_bias": bias, "qk_norm": "head"}


def write_qwen3(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    return write_qwen2(config) | {"attention_bias": config.o_bias}


def read_smollm3(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    layers, every = whole(raw, "num_hidden_layers", MOST["layers"]), or_none(whole, raw, "no_rope_layer_interval", 4)
    rotated = raw.get("no_rope_layers")  # despite its name, 1 means that the layer has rotary positions
    rotated = [int((i + 1) % every != 0) for i in range(layers)] if rotated is None else rotated
    if not isinstance(rotated, list) or len(rotated) != layers or not all(flag in (0, 1) for flag in rotated):
        raise WeightsError(f"no_rope_layers {rotated!r:.60} found, a list of num_hidden_layers {layers} times 0 or 1 expected")
    slides = flag(raw, "use_sliding_window", False)
    windows = layer_windows({"sliding_window": None} | raw, lambda i: slides and not rotated[i])
    return read_llama_like(raw, tied=True) | {
        "mlp_bias": flag(raw, "mlp_bias", False),
        "unrotated_layers": tuple(i for i, flag in enumerate(rotated) if not flag),
        "windows": windows,
    }


def write_smollm3(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    rotated = [int(i not in config.unrotated_layers) for i in range(config.layers)]
    own = {"no_rope_layers": rotated, "use_sliding_window": bool(config.windows), **write_windows(config)}
    return write_llama(config) | own | NO_PAD


def read_olmo2(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    return read_llama_like(raw) | {"pre_norms": False, "post_norms": True, "qk_norm": "all"}


def write_olmo2(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    return write_llama_like(config) | NO_PAD
