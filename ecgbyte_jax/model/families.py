"""Hugging Face's decoder families: config.json to DecoderConfig and back, and the names of their tensors."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

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

# How PyTorch stores our kernel [n_in, n_out]: LINEAR as [n_out, n_in], CONV1D as [n_in, n_out]. PLAIN: any other tensor.
LINEAR, CONV1D, PLAIN = "linear", "conv1d", "plain"

_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
_HF_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


@dataclass(frozen=True)
class Tensor:
    """A stored tensor and the parameters that it fills; several are concatenated along n_out."""

    stored: str
    parameters: tuple[str, ...]
    layout: str


@dataclass(frozen=True)
class Family:
    """One `model_type` of Hugging Face.

    architecture: the class in transformers. prefix: of all stored names except lm_head's. names: stored module -> (our module,
    layout), with `{i}` for the layer. read: config.json -> fields of DecoderConfig. write: the inverse.
    """

    architecture: str
    prefix: str
    names: dict[str, tuple[str, str]]
    read: Callable[[dict], dict]
    write: Callable[[DecoderConfig], dict]

    def tensors(self, parameters: set[str], layers: int) -> list[Tensor]:
        """The stored tensors that fill these parameters of a decoder with `layers` unstacked blocks."""
        tensors = []
        for module, (ours, layout) in (self.names | {"lm_head": ("head", LINEAR)}).items():
            for i in range(layers if "{i}" in module else 1):
                for leaf, names in _leaves(ours.format(i=i)).items():
                    if set(names) <= parameters:
                        full = ("" if module == "lm_head" else self.prefix) + module.format(i=i)
                        tensors.append(Tensor(f"{full}.{leaf}", names, layout if names[0].endswith("kernel") else PLAIN))
        return tensors


def _leaves(ours: str) -> dict[str, tuple[str, ...]]:
    """PyTorch's weight and bias of a module -> our parameters; `a/(q|k|v)` means three modules in one."""
    if ours in ("embedding", "positions"):
        return {"weight": (ours,)}
    head, _, rest = ours.partition("(")
    modules = [head + part for part in rest.removesuffix(")").split("|")]
    weight = "scale" if ours.endswith("norm") else "kernel"
    return {"weight": tuple(f"{m}/{weight}" for m in modules), "bias": tuple(f"{m}/bias" for m in modules)}


def refuse(raw: dict, field: str, known: tuple, default: object = None) -> None:
    """Raises WeightsError where a field of config.json has a value that this decoder does not support."""
    if raw.get(field, default) not in known:
        raise WeightsError(f"{field} {raw.get(field, default)!r:.60} found, one of {known} expected")


_LARGEST = 2**30


def _whole(raw: dict, field: str, most: int = _LARGEST) -> int:
    if type(raw[field]) is not int or not 1 <= raw[field] <= most:
        raise WeightsError(f"{field} {raw[field]!r:.60} found, a whole number from 1 to {most} expected")
    return raw[field]


def _positive(raw: dict, field: str) -> float:
    if type(raw[field]) not in (int, float) or not 0 < raw[field] < _LARGEST:
        raise WeightsError(f"{field} {raw[field]!r:.60} found, a number above 0 expected")
    return raw[field]


def _at_least_1(raw: dict, field: str) -> float:
    if _positive(raw, field) < 1:
        raise WeightsError(f"{field} {raw[field]!r:.60} found, a number from 1 on expected")
    return raw[field]


def _flag(raw: dict, field: str, default: bool) -> bool:
    refuse(raw, field, (True, False), default)
    return bool(raw.get(field, default))


def _divided(raw: dict, width: str, heads: str) -> int:
    if raw[width] % raw[heads]:
        raise WeightsError(f"{width} {raw[width]} found, a multiple of {heads} {raw[heads]} expected")
    return raw[width] // raw[heads]


def _or_none(read: Callable[[dict, str], float], raw: dict, field: str, otherwise: float) -> float:
    """The field as `read` returns it, or `otherwise` where it is missing or null."""
    return otherwise if raw.get(field) is None else read(raw, field)


def _given(raw: dict, *fields: str) -> dict:
    """Those of the fields that are there and not null."""
    return {field: raw[field] for field in fields if raw.get(field) is not None}


def _activation(name: str) -> str:
    refuse({"hidden_act": name}, "hidden_act", tuple(_ACTIVATIONS))
    return _ACTIVATIONS[name]


def _read_rope(raw: dict) -> dict:
    """Base and scaling: in `rope_parameters` (transformers 5), or in `rope_theta` and `rope_scaling` (transformers 4)."""
    rope = _rope_fields(raw)
    # Llama 2's file has no rope_theta; transformers' default is 10,000.
    known = {"rope_theta": 10_000.0} if raw["model_type"] == "llama" and not raw.get("rope_parameters") else {}
    rope = known | _given(raw, "rope_theta", "partial_rotary_factor") | rope
    refuse(rope, "partial_rotary_factor", (1, None))
    scaling = _read_scaling(rope, raw, ("linear", "dynamic", "yarn", "llama3"))
    return {"rope_theta": _at_least_1(rope, "rope_theta"), "rope_scaling": scaling}


def _rope_fields(raw: dict) -> dict:
    """The object of rotary fields, {} where there is none."""
    if raw.get("rope_parameters") and raw.get("rope_scaling"):
        raise WeightsError("rope_parameters and rope_scaling found, one of them expected")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise WeightsError(f"rope_parameters or rope_scaling {rope!r:.60} found, an object expected")
    return rope


def _read_scaling(rope: dict, raw: dict, kinds: tuple[str, ...]) -> RopeScaling | None:
    """The scaling that the rotary fields of config.json `raw` describe, one of `kinds`; None: none."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    refuse({"rope_type": kind}, "rope_type", ("default", *kinds))
    if kind == "default":
        return None
    factor = _at_least_1(rope, "factor")
    if kind in ("linear", "dynamic"):
        return LinearScaling(factor) if kind == "linear" else DynamicScaling(factor)
    original = _original_positions(rope, raw)
    if kind == "yarn":
        return _read_yarn(rope, factor, original)
    low, high = _positive(rope, "low_freq_factor"), _positive(rope, "high_freq_factor")
    if not low < high:
        raise WeightsError(f"high_freq_factor {high} found, a number above low_freq_factor {low} expected")
    return Llama3Scaling(factor, low, high, original)


def _read_yarn(rope: dict, factor: float, original: int) -> YarnScaling:
    if rope.get("rope_theta") == 1:
        raise WeightsError("rope_theta 1 found, a number above 1 expected with rope_type 'yarn'")
    return YarnScaling(
        factor,
        original,
        _or_none(_positive, rope, "attention_factor", _yarn_attention(rope, factor)),
        _or_none(_positive, rope, "beta_fast", 32.0),
        _or_none(_positive, rope, "beta_slow", 1.0),
        _flag(rope, "truncate", True),
    )


def _yarn_attention(rope: dict, factor: float) -> float:
    """0.1 ln(factor) + 1 (Peng et al. 2023, equation 22), or DeepSeek's quotient of two such factors with own weights."""
    weights = [_or_none(_positive, rope, field, 0.0) for field in ("mscale", "mscale_all_dim")]
    above, below = (0.1 * weight * math.log(factor) + 1 for weight in (weights if all(weights) else (1.0, 0.0)))
    return above / below


def _original_positions(rope: dict, raw: dict) -> int:
    """The positions before scaling: as in transformers, the field of the whole file counts more than that among `rope`."""
    fields = {"original_max_position_embeddings": raw["max_position_embeddings"]} | rope
    return _whole(raw if "original_max_position_embeddings" in raw else fields, "original_max_position_embeddings")


def _write_rope(config: DecoderConfig) -> dict:
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


_MOST = {"layers": 1000, "heads": 10_000}  # more are a mistake, and each would be built

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


def _read_fields(raw: dict, names: dict[str, str], *, tied: bool) -> dict:
    """The fields that need no conversion; `tied`: the default of tie_word_embeddings."""
    refuse(raw, "quantization_config", (None, {}))
    fields = {
        ours: _positive(raw, theirs) if ours == "norm_eps" else _whole(raw, theirs, _MOST.get(ours, _LARGEST))
        for ours, theirs in names.items()
    }
    return fields | {"tied_embeddings": _flag(raw, "tie_word_embeddings", tied)}


def _write_fields(config: DecoderConfig, names: dict[str, str]) -> dict:
    return {theirs: getattr(config, ours) for ours, theirs in names.items()} | {"tie_word_embeddings": config.tied_embeddings}


def _read_llama_like(raw: dict, *, tied: bool = False, read_rope: Callable[[dict], dict] = _read_rope) -> dict:
    """The fields that Llama, Mistral, Qwen and Gemma share."""
    return (
        _read_fields(raw, _LLAMA_FIELDS, tied=tied)
        | read_rope(raw)
        | {
            "kv_heads": _or_none(_whole, raw, "num_key_value_heads", raw["num_attention_heads"]),
            "head_dim": _or_none(_whole, raw, "head_dim", raw["hidden_size"] // raw["num_attention_heads"]),
            "qkv_bias": _flag(raw, "attention_bias", False),
            "o_bias": _flag(raw, "attention_bias", False),
            "activation": _activation(raw.get("hidden_act") or raw.get("hidden_activation")),
        }
    )


def _write_llama_like(config: DecoderConfig) -> dict:
    return (
        _write_fields(config, _LLAMA_FIELDS)
        | _write_rope(config)
        | {
            "num_key_value_heads": config.kv_heads,
            "head_dim": config.head_dim,
            "attention_bias": config.o_bias,
            "hidden_act": _HF_ACTIVATIONS[config.activation],
        }
    )


# Where it is missing, transformers takes the id of the family's own tokenizer, which must be below vocab_size.
_NO_PAD = {"pad_token_id": None}


def _read_llama(raw: dict) -> dict:
    return _read_llama_like(raw) | {"mlp_bias": _flag(raw, "mlp_bias", False)}


def _write_llama(config: DecoderConfig) -> dict:
    return _write_llama_like(config) | {"mlp_bias": config.mlp_bias}


def _read_mistral(raw: dict) -> dict:
    fields, window = _read_llama_like(raw), _window(raw)
    return fields | {"windows": (window,) * fields["layers"] if window else ()}


def _write_mistral(config: DecoderConfig) -> dict:
    return _write_llama_like(config) | {"sliding_window": max(config.windows, default=0) or None}


def _window(raw: dict) -> int:
    """The sliding window, 0 where it is null; transformers' default of 4096 where it is missing."""
    return _or_none(_whole, {"sliding_window": 4096} | raw, "sliding_window", 0)


def _layer_windows(raw: dict, slides: Callable[[int], bool]) -> tuple[int, ...]:
    """Each layer's window, from `layer_types`, or in older files from the family's rule `slides`."""
    window, layers = _window(raw), _whole(raw, "num_hidden_layers", _MOST["layers"])
    types = raw.get("layer_types") or ["sliding_attention" if slides(i) else "full_attention" for i in range(layers)]
    if not isinstance(types, list):
        raise WeightsError(f"layer_types {types!r:.60} found, a list expected")
    for kind in types:
        refuse({"layer_types": kind}, "layer_types", ("sliding_attention", "full_attention"))
    if len(types) != layers:
        raise WeightsError(f"layer_types: {len(types)} found, num_hidden_layers {layers} expected")
    windows = tuple(window if kind == "sliding_attention" else 0 for kind in types)
    return windows if any(windows) else ()


def _write_windows(config: DecoderConfig) -> dict:
    types = ["sliding_attention" if window else "full_attention" for window in config.layer_windows]
    return {"sliding_window": max(config.layer_windows) or None, "layer_types": types}


def _read_qwen2(raw: dict) -> dict:
    windows: tuple[int, ...] = ()
    if _flag(raw, "use_sliding_window", False):
        first = raw.get("max_window_layers", 28)
        refuse({"max_window_layers": type(first).__name__}, "max_window_layers", ("int",))
        windows = _layer_windows(raw, lambda i: i >= first)
    return _read_llama_like(raw) | {"qkv_bias": True, "o_bias": False, "windows": windows}


def _write_qwen2(config: DecoderConfig) -> dict:
    shared = {name: value for name, value in _write_llama_like(config).items() if name != "attention_bias"}
    return shared | {"use_sliding_window": bool(config.windows), **_write_windows(config)}


def _read_qwen3(raw: dict) -> dict:
    bias = _flag(raw, "attention_bias", False)
    return _read_qwen2(raw) | {"qkv_bias": bias, "o_bias": bias, "qk_norm": "head"}


def _write_qwen3(config: DecoderConfig) -> dict:
    return _write_qwen2(config) | {"attention_bias": config.o_bias}


def _read_smollm3(raw: dict) -> dict:
    layers, every = _whole(raw, "num_hidden_layers", _MOST["layers"]), _or_none(_whole, raw, "no_rope_layer_interval", 4)
    rotated = raw.get("no_rope_layers")  # despite its name, 1 means that the layer has rotary positions
    rotated = [int((i + 1) % every != 0) for i in range(layers)] if rotated is None else rotated
    if not isinstance(rotated, list) or len(rotated) != layers or not all(flag in (0, 1) for flag in rotated):
        raise WeightsError(f"no_rope_layers {rotated!r:.60} found, a list of num_hidden_layers {layers} times 0 or 1 expected")
    slides = _flag(raw, "use_sliding_window", False)
    windows = _layer_windows({"sliding_window": None} | raw, lambda i: slides and not rotated[i])
    return _read_llama_like(raw, tied=True) | {
        "mlp_bias": _flag(raw, "mlp_bias", False),
        "unrotated_layers": tuple(i for i, flag in enumerate(rotated) if not flag),
        "windows": windows,
    }


def _write_smollm3(config: DecoderConfig) -> dict:
    rotated = [int(i not in config.unrotated_layers) for i in range(config.layers)]
    own = {"no_rope_layers": rotated, "use_sliding_window": bool(config.windows), **_write_windows(config)}
    return _write_llama(config) | own | _NO_PAD


def _read_phi3(raw: dict) -> dict:
    for field in ("attention_bias", "mlp_bias"):
        refuse(raw, field, (None, False))  # published files have them, transformers has no such biases
    fields = _read_llama_like({"original_max_position_embeddings": 4096} | raw, read_rope=_read_phi3_rope)
    window = _window({"sliding_window": None} | raw)
    return fields | {"windows": (window,) * fields["layers"] if window else ()}


def _read_phi3_rope(raw: dict) -> dict:
    rope = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0} | _given(raw, "rope_theta", "partial_rotary_factor")
    rope |= _rope_fields(raw)
    head_dim = _or_none(_whole, raw, "head_dim", raw["hidden_size"] // raw["num_attention_heads"])
    share = _positive(rope, "partial_rotary_factor")
    channels = int(head_dim * share)
    if share > 1 or channels < 2 or channels % 2:
        raise WeightsError(
            f"partial_rotary_factor {share} found, at most 1 and an even number of the head's {head_dim} channels expected"
        )
    kind = rope.get("rope_type", rope.get("type", "default"))
    refuse({"rope_type": kind}, "rope_type", ("default", "longrope", "su", "yarn"))  # the last two are older names
    scaling = None if kind == "default" else _read_long(rope, raw, channels)
    own = 0 if channels == head_dim else channels
    return {"rope_theta": _at_least_1(rope, "rope_theta"), "rope_scaling": scaling, "rotary_channels": own}


def _read_long(rope: dict, raw: dict, channels: int) -> LongScaling:
    original = _original_positions(rope, raw)
    factor = _or_none(_positive, rope, "factor", _whole(raw, "max_position_embeddings") / original)
    attention = _or_none(_positive, rope, "attention_factor", _long_attention(factor, original))
    factors = [_factors(rope, field, channels // 2) for field in ("short_factor", "long_factor")]
    return LongScaling(*factors, original, attention)


def _long_attention(factor: float, original: int) -> float:
    """sqrt(1 + ln(factor) / ln(original positions)) (Ding et al. 2024, section 3)."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _factors(rope: dict, field: str, count: int) -> tuple[float, ...]:
    if not isinstance(rope[field], list) or len(rope[field]) != count:
        raise WeightsError(f"{field} {rope[field]!r:.60} found, a list of {count} numbers expected, one for each frequency")
    return tuple(_positive({field: factor}, field) for factor in rope[field])


def _write_phi3(config: DecoderConfig) -> dict:
    scaling, share = config.rope_scaling, (config.rotary_channels or config.head_dim) / config.head_dim
    if int(share * config.head_dim) < config.rotary_channels:
        share = math.nextafter(share, 1)
    written = _write_llama_like(config) | _NO_PAD | {"partial_rotary_factor": share}
    written["sliding_window"] = max(config.windows, default=0) or None
    if isinstance(scaling, LongScaling):
        original = written["original_max_position_embeddings"] = scaling.original_max_positions
        if scaling.attention_factor != _long_attention(config.max_positions / original, original):
            written["rope_scaling"]["attention_factor"] = scaling.attention_factor  # transformers 4 knows no such field
    return written


def _read_olmo2(raw: dict) -> dict:
    return _read_llama_like(raw) | {"pre_norms": False, "post_norms": True, "qk_norm": "all"}


def _write_olmo2(config: DecoderConfig) -> dict:
    return _write_llama_like(config) | _NO_PAD


def _read_gemma(raw: dict) -> dict:
    # The first Gemma files say "gelu" but have always been run with its tanh form.
    name = raw.get("hidden_act") or "gelu_pytorch_tanh"
    name = "gelu_pytorch_tanh" if name == "gelu" else name
    refuse(raw, "hidden_activation", (None, name))  # read by transformers 4; 5 reads hidden_act
    return _read_gemma_like(raw, name)


def _read_gemma_like(raw: dict, activation: str, read_rope: Callable[[dict], dict] = _read_rope) -> dict:
    refuse(raw, "use_bidirectional_attention", (None, False))
    shared = _read_llama_like(raw | {"hidden_act": activation}, tied=True, read_rope=read_rope)
    return shared | {"norm_offset": 1.0, "embedding_scale": True}


def _write_gemma(config: DecoderConfig) -> dict:
    return _write_llama_like(config) | {"hidden_activation": _HF_ACTIVATIONS[config.activation]}


def _read_gemma2(raw: dict) -> dict:
    return _read_gemma_like(raw, raw.get("hidden_activation") or "gelu_pytorch_tanh") | {
        "post_norms": True,
        "query_scale": _positive(raw, "query_pre_attn_scalar") ** -0.5,
        "attention_cap": _or_none(_positive, {"attn_logit_softcapping": 50.0} | raw, "attn_logit_softcapping", 0.0),
        "logit_cap": _or_none(_positive, {"final_logit_softcapping": 30.0} | raw, "final_logit_softcapping", 0.0),
        "windows": _layer_windows(raw, lambda i: i % 2 == 0),
    }


def _write_gemma2(config: DecoderConfig) -> dict:
    return _write_gemma(config) | {
        "query_pre_attn_scalar": round(config.query_scale**-2),
        "attn_logit_softcapping": config.attention_cap or None,
        "final_logit_softcapping": config.logit_cap or None,
        **_write_windows(config),
    }


def _read_gemma3(raw: dict) -> dict:
    refuse(raw, "attn_logit_softcapping", (None,))  # transformers has the field, but not the computation
    every = _or_none(_whole, raw, "sliding_window_pattern", 6)
    if not raw.get("layer_types"):
        refuse(raw, "_sliding_window_pattern", (None, every))  # transformers writes it, but reads the other one
    if "sliding_attention" in (raw.get("layer_types") or ["sliding_attention"]):
        _whole({"sliding_window": 4096} | raw, "sliding_window")
    return _read_gemma_like(raw, raw.get("hidden_activation") or "gelu_pytorch_tanh", _read_gemma3_rope) | {
        "post_norms": True,
        "qk_norm": "head",
        "query_scale": _positive({"query_pre_attn_scalar": 256} | raw, "query_pre_attn_scalar") ** -0.5,
        "logit_cap": _or_none(_positive, raw, "final_logit_softcapping", 0.0),
        "windows": _layer_windows(raw, lambda i: (i + 1) % every != 0),
    }


def _read_gemma3_rope(raw: dict) -> dict:
    """The bases of global and local layers and the scaling of the global ones; transformers 5 has an object for each kind."""
    rope = _rope_fields(raw)
    by_kind = {"full_attention": {}, "sliding_attention": {}} | (
        rope if raw.get("rope_parameters") else {"full_attention": rope}
    )
    for kind, fields in by_kind.items():
        refuse({"rope_parameters": kind}, "rope_parameters", ("full_attention", "sliding_attention"))
        if not isinstance(fields, dict):
            raise WeightsError(f"rope_parameters: {kind} {fields!r:.60} found, an object expected")
        refuse(fields, "partial_rotary_factor", (1, None))
    everywhere, local = by_kind["full_attention"], by_kind["sliding_attention"]
    _read_scaling(local, raw, ())
    local_base = _or_none(_at_least_1, raw, "rope_local_base_freq", 10_000.0)
    return {
        "rope_theta": _at_least_1({"rope_theta": 1_000_000.0} | _given(raw, "rope_theta") | everywhere, "rope_theta"),
        "rope_scaling": _read_scaling(everywhere, raw, ("linear",)),
        "local_rope_theta": _at_least_1({"rope_theta": local_base} | local, "rope_theta"),
    }


def _write_gemma3(config: DecoderConfig) -> dict:
    shared = {name: value for name, value in _write_gemma2(config).items() if name != "attn_logit_softcapping"}
    return shared | {"rope_local_base_freq": config.local_rope_theta}


_WITH_BIAS = {
    "norm": "layer",
    "qkv_bias": True,
    "o_bias": True,
    "mlp_bias": True,
    "gated": False,
    "rope_theta": None,
}


def _read_gpt2(raw: dict) -> dict:
    refuse(raw, "scale_attn_weights", (True,), True)
    refuse(raw, "scale_attn_by_inverse_layer_idx", (False,), False)
    refuse(raw, "reorder_and_upcast_attn", (False,), False)
    refuse(raw, "add_cross_attention", (False,), False)
    return _WITH_BIAS | {
        **_read_fields(raw, _GPT2_FIELDS, tied=True),
        "kv_heads": raw["n_head"],
        "head_dim": _divided(raw, "n_embd", "n_head"),
        "mlp_width": _or_none(_whole, raw, "n_inner", 4 * raw["n_embd"]),
        "activation": _activation(raw["activation_function"]),
    }


def _write_gpt2(config: DecoderConfig) -> dict:
    own = {"n_inner": config.mlp_width, "activation_function": _HF_ACTIVATIONS[config.activation]}
    return _write_fields(config, _GPT2_FIELDS) | own


def _read_opt(raw: dict) -> dict:
    # OPT-350m is another architecture: norms after the blocks, and a narrower embedding with projections.
    refuse(raw, "do_layer_norm_before", (True,), True)
    refuse(raw, "word_embed_proj_dim", (None, raw["hidden_size"]))
    refuse(raw, "_remove_final_layer_norm", (False,), False)
    refuse(raw, "enable_bias", (True,), True)
    refuse(raw, "layer_norm_elementwise_affine", (True,), True)
    return _WITH_BIAS | {
        **_read_fields(raw, _OPT_FIELDS, tied=True),
        "kv_heads": raw["num_attention_heads"],
        "head_dim": _divided(raw, "hidden_size", "num_attention_heads"),
        "position_offset": 2,
        "activation": _activation(raw["activation_function"]),
    }


def _write_opt(config: DecoderConfig) -> dict:
    own = {"word_embed_proj_dim": config.width, "activation_function": _HF_ACTIVATIONS[config.activation]}
    return _write_fields(config, _OPT_FIELDS) | own | {"do_layer_norm_before": True}


_LLAMA = {
    "embed_tokens": ("embedding", PLAIN),
    "layers.{i}.input_layernorm": ("blocks/{i}/attention_norm", PLAIN),
    "layers.{i}.self_attn.q_proj": ("blocks/{i}/attention/q", LINEAR),
    "layers.{i}.self_attn.k_proj": ("blocks/{i}/attention/k", LINEAR),
    "layers.{i}.self_attn.v_proj": ("blocks/{i}/attention/v", LINEAR),
    "layers.{i}.self_attn.o_proj": ("blocks/{i}/attention/o", LINEAR),
    "layers.{i}.self_attn.q_norm": ("blocks/{i}/attention/q_norm", PLAIN),
    "layers.{i}.self_attn.k_norm": ("blocks/{i}/attention/k_norm", PLAIN),
    "layers.{i}.post_attention_layernorm": ("blocks/{i}/mlp_norm", PLAIN),
    "layers.{i}.mlp.gate_proj": ("blocks/{i}/mlp/gate", LINEAR),
    "layers.{i}.mlp.up_proj": ("blocks/{i}/mlp/up", LINEAR),
    "layers.{i}.mlp.down_proj": ("blocks/{i}/mlp/down", LINEAR),
    "norm": ("norm", PLAIN),
}
_GEMMA2 = _LLAMA | {
    "layers.{i}.post_attention_layernorm": ("blocks/{i}/post_attention_norm", PLAIN),
    "layers.{i}.pre_feedforward_layernorm": ("blocks/{i}/mlp_norm", PLAIN),
    "layers.{i}.post_feedforward_layernorm": ("blocks/{i}/post_mlp_norm", PLAIN),
}
_PHI3 = {name: place for name, place in _LLAMA.items() if not re.search("(q|k|v|gate|up)_proj$", name)} | {
    "layers.{i}.self_attn.qkv_proj": ("blocks/{i}/attention/(q|k|v)", LINEAR),
    "layers.{i}.mlp.gate_up_proj": ("blocks/{i}/mlp/(gate|up)", LINEAR),
}
_OLMO2 = {name: place for name, place in _LLAMA.items() if not name.endswith("layernorm")} | {
    "layers.{i}.post_attention_layernorm": ("blocks/{i}/post_attention_norm", PLAIN),
    "layers.{i}.post_feedforward_layernorm": ("blocks/{i}/post_mlp_norm", PLAIN),
}
_GPT2 = {
    "wte": ("embedding", PLAIN),
    "wpe": ("positions", PLAIN),
    "h.{i}.ln_1": ("blocks/{i}/attention_norm", PLAIN),
    "h.{i}.attn.c_attn": ("blocks/{i}/attention/(q|k|v)", CONV1D),
    "h.{i}.attn.c_proj": ("blocks/{i}/attention/o", CONV1D),
    "h.{i}.ln_2": ("blocks/{i}/mlp_norm", PLAIN),
    "h.{i}.mlp.c_fc": ("blocks/{i}/mlp/up", CONV1D),
    "h.{i}.mlp.c_proj": ("blocks/{i}/mlp/down", CONV1D),
    "ln_f": ("norm", PLAIN),
}
_OPT = {
    "decoder.embed_tokens": ("embedding", PLAIN),
    "decoder.embed_positions": ("positions", PLAIN),
    "decoder.layers.{i}.self_attn_layer_norm": ("blocks/{i}/attention_norm", PLAIN),
    "decoder.layers.{i}.self_attn.q_proj": ("blocks/{i}/attention/q", LINEAR),
    "decoder.layers.{i}.self_attn.k_proj": ("blocks/{i}/attention/k", LINEAR),
    "decoder.layers.{i}.self_attn.v_proj": ("blocks/{i}/attention/v", LINEAR),
    "decoder.layers.{i}.self_attn.out_proj": ("blocks/{i}/attention/o", LINEAR),
    "decoder.layers.{i}.final_layer_norm": ("blocks/{i}/mlp_norm", PLAIN),
    "decoder.layers.{i}.fc1": ("blocks/{i}/mlp/up", LINEAR),
    "decoder.layers.{i}.fc2": ("blocks/{i}/mlp/down", LINEAR),
    "decoder.final_layer_norm": ("norm", PLAIN),
}

FAMILIES = {
    "llama": Family("LlamaForCausalLM", "model.", _LLAMA, _read_llama, _write_llama),
    "mistral": Family("MistralForCausalLM", "model.", _LLAMA, _read_mistral, _write_mistral),
    "qwen2": Family("Qwen2ForCausalLM", "model.", _LLAMA, _read_qwen2, _write_qwen2),
    "qwen3": Family("Qwen3ForCausalLM", "model.", _LLAMA, _read_qwen3, _write_qwen3),
    "smollm3": Family("SmolLM3ForCausalLM", "model.", _LLAMA, _read_smollm3, _write_smollm3),
    "phi3": Family("Phi3ForCausalLM", "model.", _PHI3, _read_phi3, _write_phi3),
    "olmo2": Family("Olmo2ForCausalLM", "model.", _OLMO2, _read_olmo2, _write_olmo2),
    "gemma": Family("GemmaForCausalLM", "model.", _LLAMA, _read_gemma, _write_gemma),
    "gemma2": Family("Gemma2ForCausalLM", "model.", _GEMMA2, _read_gemma2, _write_gemma2),
    "gemma3_text": Family("Gemma3ForCausalLM", "model.", _GEMMA2, _read_gemma3, _write_gemma3),
    "gpt2": Family("GPT2LMHeadModel", "transformer.", _GPT2, _read_gpt2, _write_gpt2),
    "opt": Family("OPTForCausalLM", "model.", _OPT, _read_opt, _write_opt),
}
