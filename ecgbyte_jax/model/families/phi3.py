"""Phi-3 to Phi-4 mini, with LongRoPE: config.json to DecoderConfig and back."""

import math

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.config import DecoderConfig, LongScaling
from ecgbyte_jax.model.families.fields import NO_PAD, at_least_1, given, or_none, positive, read_window, refuse, whole
from ecgbyte_jax.model.families.llama import read_llama_like, write_llama_like
from ecgbyte_jax.model.families.rotary import original_positions, read_rotary_channels, rope_fields, rotary_share


def read_phi3(raw: dict) -> dict:
    """The fields of DecoderConfig that config.json describes; raises WeightsError."""
    for field in ("attention_bias", "mlp_bias"):
        refuse(raw, field, (None, False))  # published files have them, transformers has no such biases
    fields = read_llama_like({"original_max_position_embeddings": 4096} | raw, read_rope=_read_phi3_rope)
    window = read_window({"sliding_window": None} | raw)
    return fields | {"windows": (window,) * fields["layers"] if window else ()}


def _read_phi3_rope(raw: dict) -> dict:
    rope = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0} | given(raw, "rope_theta", "partial_rotary_factor")
    rope |= rope_fields(raw)
    head_dim = or_none(whole, raw, "head_dim", raw["hidden_size"] // raw["num_attention_heads"])
    own = read_rotary_channels(rope, head_dim)
    kind = rope.get("rope_type", rope.get("type", "default"))
    refuse({"rope_type": kind}, "rope_type", ("default", "longrope", "su", "yarn"))  # the last two are older names
    scaling = None if kind == "default" else _read_long(rope, raw, own or head_dim)
    return {"rope_theta": at_least_1(rope, "rope_theta"), "rope_scaling": scaling, "rotary_channels": own}


def _read_long(rope: dict, raw: dict, channels: int) -> LongScaling:
    original = original_positions(rope, raw)
    factor = or_none(positive, rope, "factor", whole(raw, "max_position_embeddings") / original)
    attention = or_none(positive, rope, "attention_factor", _long_attention(factor, original))
    factors = [_factors(rope, field, channels // 2) for field in ("short_factor", "long_factor")]
    return LongScaling(*factors, original, attention)


def _long_attention(factor: float, original: int) -> float:
    """sqrt(1 + ln(factor) / ln(original positions)) (Ding et al. 2024, section 3)."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _factors(rope: dict, field: str, count: int) -> tuple[float, ...]:
    if not isinstance(rope[field], list) or len(rope[field]) != count:
        raise WeightsError(f"{field} {rope[field]!r:.60} found, a list of {count} numbers expected, one for each frequency")
    return tuple(positive({field: factor}, field) for factor in rope[field])


def write_phi3(config: DecoderConfig) -> dict:
    """The fields of config.json that describe this model."""
    scaling = config.rope_scaling
    written = write_llama_like(config) | NO_PAD | {"partial_rotary_factor": rotary_share(config)}
    written["sliding_window"] = max(config.windows, default=0) or None
    if isinstance(scaling, LongScaling):
        original = written["original_max_position_embeddings"] = scaling.original_max_positions
        if scaling.attention_factor != _long_attention(config.max_positions / original, original):
            written["rope_scaling"]["attention_factor"] = scaling.attention_factor  # transformers 4 knows no such field
    return written
