"""Rotary positions and their scalings in config.json, in the spellings of transformers 4 and 5."""

import math

from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.config import (
    DecoderConfig,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RopeScaling,
    YarnScaling,
)
from ecgbyte_jax.model.families.fields import at_least_1, flag, given, or_none, positive, refuse, whole


def read_rope(raw: dict) -> dict:
    """Base and scaling: in `rope_parameters` (transformers 5), or in `rope_theta` and `rope_scaling` (transformers 4)."""
    rope = rope_fields(raw)
    # Llama 2's file has no rope_theta; transformers' default is 10,000.
    known = {"rope_theta": 10_000.0} if raw["model_type"] == "llama" and not raw.get("rope_parameters") else {}
    rope = known | given(raw, "rope_theta", "partial_rotary_factor") | rope
    refuse(rope, "partial_rotary_factor", (1, None))
    scaling = read_scaling(rope, raw, ("linear", "dynamic", "yarn", "llama3"))
    return {"rope_theta": at_least_1(rope, "rope_theta"), "rope_scaling": scaling}


def rope_fields(raw: dict) -> dict:
    """The object of rotary fields, {} where there is none."""
    if raw.get("rope_parameters") and raw.get("rope_scaling"):
        raise WeightsError("rope_parameters and rope_scaling found, one of them expected")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise WeightsError(f"rope_parameters or rope_scaling {rope!r:.60} found, an object expected")
    return rope


def read_scaling(rope: dict, raw: dict, kinds: tuple[str, ...]) -> RopeScaling | None:
    """The scaling that the rotary fields of config.json `raw` describe, one of `kinds`; None: none."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    refuse({"rope_type": kind}, "rope_type", ("default", *kinds))
    if kind == "default":
        return None
    factor = at_least_1(rope, "factor")
    if kind in ("linear", "dynamic"):
        return LinearScaling(factor) if kind == "linear" else DynamicScaling(factor)
    original = original_positions(rope, raw)
    if kind == "yarn":
        return _read_yarn(rope, factor, original)
    low, high = positive(rope, "low_freq_factor"), positive(rope, "high_freq_factor")
    if not low < high:
        raise WeightsError(f"high_freq_factor {high} found, a number above low_freq_factor {low} expected")
    return Llama3Scaling(factor, low, high, original)


def _read_yarn(rope: dict, factor: float, original: int) -> YarnScaling:
    if rope.get("rope_theta") == 1:
        raise WeightsError("rope_theta 1 found, a number above 1 expected with rope_type 'yarn'")
    return YarnScaling(
        factor,
        original,
        or_none(positive, rope, "attention_factor", _yarn_attention(rope, factor)),
        or_none(positive, rope, "beta_fast", 32.0),
        or_none(positive, rope, "beta_slow", 1.0),
        flag(rope, "truncate", True),
    )


def _yarn_attention(rope: dict, factor: float) -> float:
    """0.1 ln(factor) + 1 (Peng et al. 2023, equation 22), or DeepSeek's quotient of two such factors with own weights."""
    weights = [or_none(positive, rope, field, 0.0) for field in ("mscale", "mscale_all_dim")]
    above, below = (0.1 * weight * math.log(factor) + 1 for weight in (weights if all(weights) else (1.0, 0.0)))
    return above / below


def original_positions(rope: dict, raw: dict) -> int:
    """The positions before scaling: as in transformers, the field of the whole file counts more than that among `rope`."""
    fields = {"original_max_position_embeddings": raw["max_position_embeddings"]} | rope
    return whole(raw if "original_max_position_embeddings" in raw else fields, "original_max_position_embeddings")


def read_rotary_channels(rope: dict, head_dim: int) -> int:
    """The first channels of a head, which `partial_rotary_factor` says are rotated, 0: all; raises WeightsError."""
    share = positive(rope, "partial_rotary_factor")
    channels = int(head_dim * share)
    if share > 1 or channels < 2 or channels % 2:
        raise WeightsError(
            f"partial_rotary_factor {share} found, at most 1 and an even number of the head's {head_dim} channels expected"
        )
    return 0 if channels == head_dim else channels


def rotary_share(config: DecoderConfig) -> float:
    """The `partial_rotary_factor` from which `read_rotary_channels` reads the same channels."""
    share = (config.rotary_channels or config.head_dim) / config.head_dim
    return math.nextafter(share, 1) if int(share * config.head_dim) < config.rotary_channels else share


def write_rope(config: DecoderConfig) -> dict:
    """The fields of transformers 4, which transformers 5 reads too."""
    return {"rope_theta": config.rope_theta, "rope_scaling": _write_scaling(config.rope_scaling)}


def _write_scaling(scaling: RopeScaling | None) -> dict | None:
    match scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicScaling(factor):
            return {"rope_type": "dynamic", "factor": factor}
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_max_positions,
                "attention_factor": scaling.attention_factor,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
            }
        case LongScaling():
            return {
                "type": "longrope",
                "short_factor": list(scaling.short_factors),
                "long_factor": list(scaling.long_factors),
            }
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_positions,
            }
