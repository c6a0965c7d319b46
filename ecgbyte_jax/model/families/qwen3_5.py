"""Qwen 3.5's dense text models, most of whose layers are gated delta nets: config.json to DecoderConfig and back."""

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.config import DecoderConfig, DeltaConfig
from ecgbyte_jax.model.families.fields import MOST, at_least_1, given, or_none, refuse, whole
from ecgbyte_jax.model.families.llama import read_llama_like, write_llama_like
from ecgbyte_jax.model.families.rotary import read_rotary_channels, read_scaling, rope_fields, rotary_share, write_rope

_DEFAULTS = {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
# Our field -> the field of config.json with the same value.
_DELTA_FIELDS = {
    "key_heads": "linear_num_key_heads",
    "value_heads": "linear_num_value_heads",
    "key_dim": "linear_key_head_dim",
    "value_dim": "linear_value_head_dim",
    "conv_width": "linear_conv_kernel_dim",
}


def read_qwen3_5(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    refuse(raw, "attn_output_gate", (None, True))
    refuse(raw, "num_experts", (None, 0))
    raw = _DEFAULTS | raw
    return read_llama_like(raw, read_rope=_read_rope) | {
        "qk_norm": "head",
        "norm_offset": 1.0,
        "attention_gate": True,
        "delta": _read_delta(raw),
    }


def _read_rope(raw: dict) -> dict:
    """Base, scaling and rotated channels; the three positions of a token (`mrope_section`) are equal in a text."""
    rope = {"rope_theta": 10_000.0, "partial_rotary_factor": 0.25} | given(raw, "rope_theta", "partial_rotary_factor")
    rope |= rope_fields(raw)
    return {
        "rope_theta": at_least_1(rope, "rope_theta"),
        "rope_scaling": read_scaling(rope, raw, ("linear", "dynamic", "yarn", "llama3")),
        "rotary_channels": read_rotary_channels(rope, whole(raw, "head_dim")),
    }


def _read_delta(raw: dict) -> DeltaConfig | None:
    layers, every = whole(raw, "num_hidden_layers", MOST["layers"]), or_none(whole, raw, "full_attention_interval", 4)
    types = raw.get("layer_types")
    types = ["linear_attention" if (i + 1) % every else "full_attention" for i in range(layers)] if types is None else types
    if not isinstance(types, list) or len(types) != layers:
        raise WeightsError(f"layer_types {types!r:.60} found, a list of num_hidden_layers {layers} kinds expected")
    for kind in types:
        refuse({"layer_types": kind}, "layer_types", ("linear_attention", "full_attention"))
    if "full_attention" not in types:
        raise WeightsError(f"layer_types {types!r:.60} found, at least one 'full_attention' expected")
    if "linear_attention" not in types:
        return None
    sizes = {ours: whole(raw, theirs, MOST["heads"]) for ours, theirs in _DELTA_FIELDS.items()}
    if sizes["value_heads"] % sizes["key_heads"]:
        values, keys = sizes["value_heads"], sizes["key_heads"]
        raise WeightsError(f"linear_num_value_heads {values} found, a multiple of linear_num_key_heads {keys} expected")
    if sizes["conv_width"] < 2:
        raise WeightsError("linear_conv_kernel_dim 1 found, 2 or more expected")
    return DeltaConfig(tuple(i for i, kind in enumerate(types) if kind == "linear_attention"), **sizes)


def write_qwen3_5(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model, in the spelling of transformers 5, the first that knows it."""
    rope = {"rope_type": "default"} | (write_rope(config)["rope_scaling"] or {})
    rope |= {"rope_theta": config.rope_theta, "partial_rotary_factor": rotary_share(config)}
    shared = {name: value for name, value in write_llama_like(config).items() if not name.startswith("rope_")}
    sizes = {theirs: getattr(config.delta, ours) for ours, theirs in _DELTA_FIELDS.items()} if config.delta else {}
    kinds = ["full_attention" if i in config.attention_layers else "linear_attention" for i in range(config.layers)]
    return shared | {"rope_parameters": rope, "attn_output_gate": True, "layer_types": kinds} | sizes
