"""GPT-2 and OPT, whose positions are learned: config.json to DecoderConfig and back."""

from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.families.fields import (
    HF_ACTIVATIONS,
    activation,
    divided,
    or_none,
    read_fields,
    refuse,
    whole,
    write_fields,
)

_GPT2_FIELDS = {
    "vocab_size": "vocab_size",
    "width": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
    "max_positions": "n_positions",
    "norm_eps": "layer_norm_epsilon",
}
_OPT_FIELDS = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "ffn_dim",
    "max_positions": "max_position_embeddings",
}
_WITH_BIAS = {
    "norm": "layer",
    "qkv_bias": True,
    "o_bias": True,
    "mlp_bias": True,
    "gated": False,
    "rope_theta": None,
}


def read_gpt2(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    refuse(raw, "scale_attn_weights", (True,), True)
    refuse(raw, "scale_attn_by_inverse_layer_idx", (False,), False)
    refuse(raw, "reorder_and_upcast_attn", (False,), False)
    refuse(raw, "add_cross_attention", (False,), False)
    return _WITH_BIAS | {
        **read_fields(raw, _GPT2_FIELDS, tied=True),
        "kv_heads": raw["n_head"],
        "head_dim": divided(raw, "n_embd", "n_head"),
        "mlp_width": or_none(whole, raw, "n_inner", 4 * raw["n_embd"]),
        "activation": activation(raw["activation_function"]),
    }


def write_gpt2(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    own = {"n_inner": config.mlp_width, "activation_function": HF_ACTIVATIONS[config.activation]}
    return write_fields(config, _GPT2_FIELDS) | own


def read_opt(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    # OPT-350m is another architecture: norms after the blocks, and a narrower embedding with projections.
    refuse(raw, "do_layer_norm_before", (True,), True)
    refuse(raw, "word_embed_proj_dim", (None, raw["hidden_size"]))
    refuse(raw, "_remove_final_layer_norm", (False,), False)
    refuse(raw, "enable_bias", (True,), True)
    refuse(raw, "layer_norm_elementwise_affine", (True,), True)
    return _WITH_BIAS | {
        **read_fields(raw, _OPT_FIELDS, tied=True),
        "kv_heads": raw["num_attention_heads"],
        "head_dim": divided(raw, "hidden_size", "num_attention_heads"),
        "position_offset": 2,
        "activation": activation(raw["activation_function"]),
    }


def write_opt(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    own = {"word_embed_proj_dim": config.width, "activation_function": HF_ACTIVATIONS[config.activation]}
    return write_fields(config, _OPT_FIELDS) | own | {"do_layer_norm_before": True}
