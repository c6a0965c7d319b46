"""Gemma 1 to 3: config.json to DecoderConfig and back."""

from collections.abc import Callable

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.families.fields import (
    HF_ACTIVATIONS,
    at_least_1,
    given,
    layer_windows,
    or_none,
    positive,
    refuse,
    whole,
    write_windows,
)
from ecgbyte_jax.model.families.llama import read_llama_like, write_llama_like
from ecgbyte_jax.model.families.rotary import read_rope, read_scaling, rope_fields


def read_gemma(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    # The first Gemma files say "gelu" but have always been run with its tanh form.
    name = raw.get("hidden_act") or "gelu_pytorch_tanh"
    name = "gelu_pytorch_tanh" if name == "gelu" else name
    refuse(raw, "hidden_activation", (None, name))  # read by transformers 4; 5 reads hidden_act
    return _read_gemma_like(raw, name)


def _read_gemma_like(raw: dict, activation: str, read_rope: Callable[[dict], dict] = read_rope) -> dict:
    refuse(raw, "use_bidirectional_attention", (None, False))
    shared = read_llama_like(raw | {"hidden_act": activation}, tied=True, read_rope=read_rope)
    return shared | {"norm_offset": 1.0, "embedding_scale": True}


def write_gemma(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    return write_llama_like(config) | {"hidden_activation": HF_ACTIVATIONS[config.activation]}


def read_gemma2(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    return _read_gemma_like(raw, raw.get("hidden_activation") or "gelu_pytorch_tanh") | {
        "post_norms": True,
        "query_scale": positive(raw, "query_pre_attn_scalar") ** -0.5,
        "attention_cap": or_none(positive, {"attn_logit_softcapping": 50.0} | raw, "attn_logit_softcapping", 0.0),
        "logit_cap": or_none(positive, {"final_logit_softcapping": 30.0} | raw, "final_logit_softcapping", 0.0),
        "windows": layer_windows(raw, lambda i: i % 2 == 0),
    }


def write_gemma2(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    return write_gemma(config) | {
        "query_pre_attn_scalar": round(config.query_scale**-2),
        "attn_logit_softcapping": config.attention_cap or None,
        "final_logit_softcapping": config.logit_cap or None,
        **write_windows(config),
    }


def read_gemma3(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    refuse(raw, "attn_logit_softcapping", (None,))  # transformers has the field, but not the computation
    every = or_none(whole, raw, "sliding_window_pattern", 6)
    if not raw.get("layer_types"):
        refuse(raw, "_sliding_window_pattern", (None, every))  # transformers writes it, but reads the other one
    if "sliding_attention" in (raw.get("layer_types") or ["sliding_attention"]):
        whole({"sliding_window": 4096} | raw, "sliding_window")
    return _read_gemma_like(raw, raw.get("hidden_activation") or "gelu_pytorch_tanh", _read_gemma3_rope) | {
        "post_norms": True,
        "qk_norm": "head",
        "query_scale": positive({"query_pre_attn_scalar": 256} | raw, "query_pre_attn_scalar") ** -0.5,
        "logit_cap": or_none(positive, raw, "final_logit_softcapping", 0.0),
        "windows": layer_windows(raw, lambda i: (i + 1) % every != 0),
    }


def _read_gemma3_rope(raw: dict) -> dict:
    """The bases of global and local layers and the scaling of the global ones; transformers 5 has an object for each kind."""
    rope = rope_fields(raw)
    by_kind = {"full_attention": {}, "sliding_attention": {}} | (
        rope if raw.get("rope_parameters") else {"full_attention": rope}
    )
    for kind, fields in by_kind.items():
        refuse({"rope_parameters": kind}, "rope_parameters", ("full_attention", "sliding_attention"))
        if not isinstance(fields, dict):
            raise WeightsError(f"rope_parameters: {kind} {fields!r:.60} found, an object expected")
        refuse(fields, "partial_rotary_factor", (1, None))
    everywhere, local = by_kind["full_attention"], by_kind["sliding_attention"]
    read_scaling(local, raw, ())
    local_base = or_none(at_least_1, raw, "rope_local_base_freq", 10_000.0)
    return {
        "rope_theta": at_least_1({"rope_theta": 1_000_000.0} | given(raw, "rope_theta") | everywhere, "rope_theta"),
        "rope_scaling": read_scaling(everywhere, raw, ("linear",)),
        "local_rope_theta": at_least_1({"rope_theta": local_base} | local, "rope_theta"),
    }


def write_gemma3(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    shared = {name: value for name, value in write_gemma2(config).items() if name != "attn_logit_softcapping"}
    return shared | {"rope_local_base_freq": config.local_rope_theta}
