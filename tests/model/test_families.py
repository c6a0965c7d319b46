"""config.json of published models, in the spellings of transformers 4 and 5, and what is refused in them."""

import json
import math

import pytest

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.config import DecoderConfig, LinearScaling, Rotary
from ecgbyte_jax.model.families.table import FAMILIES
from ecgbyte_jax.model.hf import read_config

GEMMA3 = {
    "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26,
    "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 512,
    "attn_logit_softcapping": None, "final_logit_softcapping": None,
}  # fmt: skip
GEMMA3_4 = GEMMA3 | {"rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None, "sliding_window_pattern": 6}
SMOLLM3 = {
    "model_type": "smollm3", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
    "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 65536, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "rope_theta": 5e6, "use_sliding_window": False, "sliding_window": None,
}  # fmt: skip
PHI4_MINI = {
    "model_type": "phi3", "vocab_size": 200064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
    "num_attention_heads": 24, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
    "original_max_position_embeddings": 4096, "hidden_act": "silu", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
    "sliding_window": 262144, "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
QWEN3_5 = {
    "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "attn_output_gate": True, "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 16,
    "linear_value_head_dim": 128,
    "tie_word_embeddings": True, "mamba_ssm_dtype": "float32", "mtp_num_hidden_layers": 1,
    "rope_parameters": {"mrope_interleaved": True, "mrope_section": [11, 11, 10], "rope_type": "default", "rope_theta": 1e7,
                        "partial_rotary_factor": 0.25},
}  # fmt: skip
FACTORS = {"short_factor": [1.0] * 48, "long_factor": [1 + i / 8 for i in range(48)]}
LONG = {"type": "longrope", **FACTORS}
LAYER_TYPES = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(26)]


def read(folder, raw: dict) -> DecoderConfig:
    (folder / "config.json").write_text(json.dumps(raw))
    return read_config(folder)


def test_gemma_3_has_two_bases_in_both_spellings(tmp_path):
    config = read(tmp_path, GEMMA3_4)
    assert config.layer_windows[:7] == (512, 512, 512, 512, 512, 0, 512)
    assert config.layer_rotaries[4:6] == (Rotary(1e4, 256), Rotary(1e6, 256))
    kinds = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert config == read(tmp_path, GEMMA3 | {"rope_parameters": kinds, "layer_types": LAYER_TYPES})
    assert config == read(tmp_path, GEMMA3_4 | {"layer_types": LAYER_TYPES, "_sliding_window_pattern": 6})
    assert config == read(tmp_path, GEMMA3)  # the defaults
    scaled = read(tmp_path, GEMMA3_4 | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}})
    assert scaled.layer_rotaries[4:6] == (Rotary(1e4, 256), Rotary(1e6, 256, LinearScaling(8.0)))
    kinds["full_attention"] |= {"rope_type": "linear", "factor": 8.0}
    assert scaled == read(tmp_path, GEMMA3 | {"rope_parameters": kinds})


def test_every_fourth_layer_of_smollm3_has_no_rotary_positions(tmp_path):
    config = read(tmp_path, SMOLLM3)
    assert config.layer_rotaries[:5] == (*(Rotary(5e6, 128),) * 3, None, Rotary(5e6, 128)) and config.windows == ()
    assert config == read(tmp_path, SMOLLM3 | {"no_rope_layers": [1, 1, 1, 0] * 9, "layer_types": ["full_attention"] * 36})
    rope = {"rope_theta": None, "rope_parameters": {"rope_theta": 5e6, "rope_type": "default"}}
    assert config == read(tmp_path, SMOLLM3 | rope)


def test_phi_4_mini_rotates_part_of_each_head_with_two_lists_of_factors(tmp_path):
    config = read(tmp_path, PHI4_MINI | {"rope_scaling": LONG})
    (rotary,) = {*config.layer_rotaries}
    assert rotary.channels == 96 and config.head_dim == 128 and config.layer_windows == (262144,) * 32
    assert rotary.scaling.original_max_positions == 4096 and rotary.scaling.long_factors[:2] == (1.0, 1.125)
    assert rotary.amplitude == pytest.approx(1.1902, abs=1e-4)  # sqrt(1 + ln(32) / ln(4096))
    moved = {"rope_theta": 1e4, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 4096}
    raw = {name: value for name, value in PHI4_MINI.items() if name not in moved}  # 4096 positions are the default
    assert config == read(tmp_path, raw | {"rope_parameters": {"rope_type": "longrope", **FACTORS, **moved}})
    assert config == read(tmp_path, PHI4_MINI | {"rope_scaling": {"type": "su", **FACTORS}})


def test_three_of_four_layers_of_qwen_3_5_are_delta_nets(tmp_path):
    config = read(tmp_path, QWEN3_5)
    assert config.attention_layers == (3, 7, 11, 15, 19, 23) and config.layer_rotaries[0] == Rotary(1e7, 64)
    assert config.delta.layers[:4] == (0, 1, 2, 4) and config.delta.conv_width == 4 and config.attention_gate
    kinds = ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(24)]
    assert config == read(tmp_path, QWEN3_5 | {"layer_types": kinds, "full_attention_interval": None})
    assert config == read(tmp_path, {"model_type": "qwen3_5", "text_config": QWEN3_5, "vision_config": {}})
    assert config == read(tmp_path, {"model_type": "qwen3_5_text"} | FAMILIES["qwen3_5_text"].write(config))
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 65536, "rope_theta": 1e7}
    scaled = read(tmp_path, QWEN3_5 | {"rope_parameters": yarn})
    assert scaled.layer_rotaries[0].channels == 64 and scaled.rope_scaling.factor == 4
    assert scaled == read(tmp_path, {"model_type": "qwen3_5_text"} | FAMILIES["qwen3_5_text"].write(scaled))


@pytest.mark.parametrize("extra", [{}, {"attention_factor": 1.5}, {"factor": 8.0}])
@pytest.mark.parametrize("share", [0.58, 0.76, 1.0])  # 0.58 * 100 is rounded to 57.99 in floating point
def test_a_written_phi_3_is_read_again(extra, share, tmp_path):
    count = round(share * 100) // 2
    scaling = {"type": "longrope", "short_factor": [1.0] * count, "long_factor": [2.0] * count, **extra}
    raw = PHI4_MINI | {"hidden_size": 2400, "partial_rotary_factor": math.nextafter(share, 1), "rope_scaling": scaling}
    config = read(tmp_path, raw)
    assert config.layer_rotaries[0].channels == 2 * count
    written = FAMILIES["phi3"].write(config)
    assert {*written["rope_scaling"]} - {"attention_factor"} == {"type", "short_factor", "long_factor"}
    assert ("attention_factor" in written["rope_scaling"]) == bool(extra)  # transformers 4 reads three fields
    assert read(tmp_path, {"model_type": "phi3"} | written) == config


@pytest.mark.parametrize(
    "raw, message",
    [
        (GEMMA3_4 | {"_sliding_window_pattern": 4}, r"_sliding_window_pattern 4 found, one of \(None, 6\)"),
        (GEMMA3_4 | {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping 50\.0 found"),
        (GEMMA3_4 | {"sliding_window": None}, "sliding_window None found, a whole number"),
        (GEMMA3_4 | {"rope_scaling": {"factor": 8.0, "rope_type": "yarn"}}, "rope_type 'yarn' found"),
        (GEMMA3 | {"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters 'rope_theta' found, one of"),
        (GEMMA3 | {"rope_parameters": {"full_attention": 1}}, "rope_parameters: full_attention 1 found, an object expected"),
        (
            GEMMA3 | {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            r"rope_type 'linear' found, one of \('default',\)",
        ),
        (
            SMOLLM3 | {"no_rope_layers": [1, 0]},
            r"no_rope_layers \[1, 0\] found, a list of num_hidden_layers 36 times",
        ),
        (SMOLLM3 | {"no_rope_layers": [2] * 36}, "no_rope_layers .* found, a list of num_hidden_layers 36"),
        (PHI4_MINI | {"mlp_bias": True}, r"mlp_bias True found, one of \(None, False\)"),
        (
            PHI4_MINI | {"partial_rotary_factor": 0.7},
            r"partial_rotary_factor 0\.7 found, at most 1 and an even number of",
        ),
        (
            PHI4_MINI | {"rope_scaling": LONG | {"long_factor": [1.0]}},
            r"long_factor \[1\.0\] found, a list",
        ),
        (
            PHI4_MINI | {"rope_scaling": LONG | {"short_factor": [0] * 48}},
            "short_factor 0 found, a number",
        ),
        (PHI4_MINI | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type 'linear' found"),
        (QWEN3_5 | {"attn_output_gate": False}, r"attn_output_gate False found, one of \(None, True\)"),
        (QWEN3_5 | {"num_experts": 8}, r"num_experts 8 found"),
        (QWEN3_5 | {"layer_types": ["linear_attention"] * 24}, "layer_types .* found, at least one 'full_attention' expected"),
        (QWEN3_5 | {"layer_types": ["full_attention"]}, "layer_types .* found, a list of num_hidden_layers 24 kinds expected"),
        (QWEN3_5 | {"linear_num_value_heads": 24}, "linear_num_value_heads 24 found, a multiple of linear_num_key_heads 16"),
        (QWEN3_5 | {"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim 1 found, 2 or more expected"),
        ({"model_type": "qwen3_5_moe", "text_config": QWEN3_5}, "model_type 'qwen3_5_moe' found"),
    ],
)
def test_what_would_be_computed_differently_is_refused_by_field(raw, message, tmp_path):
    with pytest.raises(WeightsError, match=rf"config\.json: {message}"):
        read(tmp_path, raw)
