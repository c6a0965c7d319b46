"""config.json of published models, in the spellings of transformers 4 and 5, and what is refused in them."""

import json

import pytest

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.config import DecoderConfig, LinearScaling, Rotary
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
    ],
)
def test_what_would_be_computed_differently_is_refused_by_field(raw, message, tmp_path):
    with pytest.raises(WeightsError, match=rf"config\.json: {message}"):
        read(tmp_path, raw)
