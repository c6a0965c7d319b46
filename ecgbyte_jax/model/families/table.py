"""Hugging Face's decoder families: the functions that read and write their config.json, and the names of their tensors."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.families.gemma import read_gemma, read_gemma2, read_gemma3, write_gemma, write_gemma2, write_gemma3
from ecgbyte_jax.model.families.learned_positions import read_gpt2, read_opt, write_gpt2, write_opt
from ecgbyte_jax.model.families.llama import (
    read_llama,
    read_mistral,
    read_olmo2,
    read_qwen2,
    read_qwen3,
    read_smollm3,
    write_llama,
    write_mistral,
    write_olmo2,
    write_qwen2,
    write_qwen3,
    write_smollm3,
)
from ecgbyte_jax.model.families.phi3 import read_phi3, write_phi3
from ecgbyte_jax.model.families.qwen3_5 import read_qwen3_5, write_qwen3_5

# How PyTorch stores our kernel [n_in, n_out]: LINEAR as [n_out, n_in], CONV1D as [n_in, n_out]. DEPTHWISE: a convolution's
# [W, 1, channels] as [channels, 1, W]. PLAIN: any other tensor.
LINEAR, CONV1D, DEPTHWISE, PLAIN = "linear", "conv1d", "depthwise", "plain"
TRANSPOSED = (LINEAR, DEPTHWISE)


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
    layout), with `{i}` for the layer. read: config.json -> fields of DecoderConfig. write: the inverse. nested: the prefix
    where the text model is part of one that also sees.
    """

    architecture: str
    prefix: str
    names: dict[str, tuple[str, str]]
    read: Callable[[dict], dict]
    write: Callable[[DecoderConfig], dict]
    nested: str = ""

    def spellings(self, stored: str) -> set[str]:
        """The names under which files have a tensor: with the prefix, without it, and nested."""
        bare = stored.removeprefix(self.prefix)
        return {stored, bare} | ({self.nested + bare} if self.nested and bare != stored else set())

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
    if ours.endswith("delta_net"):
        return {"A_log": (f"{ours}/a_log",), "dt_bias": (f"{ours}/dt_bias",)}
    head, _, rest = ours.partition("(")
    modules = [head + part for part in rest.removesuffix(")").split("|")]
    weight = "scale" if ours.endswith("norm") else "kernel"
    return {"weight": tuple(f"{m}/{weight}" for m in modules), "bias": tuple(f"{m}/bias" for m in modules)}


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
_QWEN3_5 = _LLAMA | {
    "layers.{i}.linear_attn.in_proj_qkv": ("blocks/{i}/delta_net/(q|k|v)", LINEAR),
    "layers.{i}.linear_attn.in_proj_z": ("blocks/{i}/delta_net/gate", LINEAR),
    "layers.{i}.linear_attn.in_proj_b": ("blocks/{i}/delta_net/beta", LINEAR),
    "layers.{i}.linear_attn.in_proj_a": ("blocks/{i}/delta_net/decay", LINEAR),
    "layers.{i}.linear_attn.conv1d": ("blocks/{i}/delta_net/conv_(q|k|v)", DEPTHWISE),
    "layers.{i}.linear_attn": ("blocks/{i}/delta_net", PLAIN),
    "layers.{i}.linear_attn.norm": ("blocks/{i}/delta_net/norm", PLAIN),
    "layers.{i}.linear_attn.out_proj": ("blocks/{i}/delta_net/o", LINEAR),
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
    "llama": Family("LlamaForCausalLM", "model.", _LLAMA, read_llama, write_llama),
    "mistral": Family("MistralForCausalLM", "model.", _LLAMA, read_mistral, write_mistral),
    "qwen2": Family("Qwen2ForCausalLM", "model.", _LLAMA, read_qwen2, write_qwen2),
    "qwen3": Family("Qwen3ForCausalLM", "model.", _LLAMA, read_qwen3, write_qwen3),
    "qwen3_5_text": Family(
        "Qwen3_5ForCausalLM", "model.", _QWEN3_5, read_qwen3_5, write_qwen3_5, nested="model.language_model."
    ),
    "smollm3": Family("SmolLM3ForCausalLM", "model.", _LLAMA, read_smollm3, write_smollm3),
    "phi3": Family("Phi3ForCausalLM", "model.", _PHI3, read_phi3, write_phi3),
    "olmo2": Family("Olmo2ForCausalLM", "model.", _OLMO2, read_olmo2, write_olmo2),
    "gemma": Family("GemmaForCausalLM", "model.", _LLAMA, read_gemma, write_gemma),
    "gemma2": Family("Gemma2ForCausalLM", "model.", _GEMMA2, read_gemma2, write_gemma2),
    "gemma3_text": Family("Gemma3ForCausalLM", "model.", _GEMMA2, read_gemma3, write_gemma3),
    "gpt2": Family("GPT2LMHeadModel", "transformer.", _GPT2, read_gpt2, write_gpt2),
    "opt": Family("OPTForCausalLM", "model.", _OPT, read_opt, write_opt),
}
