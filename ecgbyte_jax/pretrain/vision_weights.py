"""The weights of a vision encoder, from the Hugging Face folder of a ViT or a CLIP of the same sizes.

Axes: D width, P pixels of a patch's side, C = 3 channels.
"""

import re
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from ecgbyte_jax.encoders.config import CLIPS, SIDE, TEXT_PLACES, VITS, EncoderConfig, Stack
from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.model.families.fields import refuse, whole
from ecgbyte_jax.model.sharding import place
from ecgbyte_jax.model.weights.stored import stored_tensors
from ecgbyte_jax.pretrain.hf_folder import read_config, refuse_tensors

_SETTING = "encoder.weights"
_GELU = {"exact": "gelu", "quick": "quick_gelu"}
# Parts of a path here -> of a name there, the first that begins alike.
_VIT = {
    "patch_to_token": "embeddings.patch_embeddings.projection",
    "class_token": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "mask_token": "embeddings.mask_token",
    "encoder/blocks": "encoder.layer",
    "encoder/norm": "layernorm",
    "to_patch": "decoder.0",
}
_CLIP = {
    "picture/patch_to_token": "vision_model.embeddings.patch_embedding",
    "picture/class_token": "vision_model.embeddings.class_embedding",
    "picture/positions": "vision_model.embeddings.position_embedding.weight",
    "picture/first_norm": "vision_model.pre_layrnorm",
    "picture/encoder/blocks": "vision_model.encoder.layers",
    "picture/encoder/norm": "vision_model.post_layernorm",
    "picture_out": "visual_projection",
    "text/words": "text_model.embeddings.token_embedding.weight",
    "text/positions": "text_model.embeddings.position_embedding.weight",
    "text/encoder/blocks": "text_model.encoder.layers",
    "text/encoder/norm": "text_model.final_layer_norm",
    "text_out": "text_projection",
    "log_scale": "logit_scale",
}
_VIT_BLOCK = {
    "attention/q": "attention.attention.query",
    "attention/k": "attention.attention.key",
    "attention/v": "attention.attention.value",
    "attention/o": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
    "attention_norm": "layernorm_before",
    "mlp_norm": "layernorm_after",
}
_CLIP_BLOCK = {f"attention/{part}": f"self_attn.{part}_proj" for part in "qkv"}
_CLIP_BLOCK |= {"attention/o": "self_attn.out_proj", "up": "mlp.fc1", "down": "mlp.fc2"}
_CLIP_BLOCK |= {"attention_norm": "layer_norm1", "mlp_norm": "layer_norm2"}
_OTHERS = re.compile(r"(pooler|classifier)\..*|.*\.position_ids")  # tensors of a ViT's other uses, and a buffer
_OF_OBJECTIVE = ("embeddings.mask_token", "decoder.0.weight", "decoder.0.bias")  # which a ViT for other uses does not have


def read_vision(config: EncoderConfig) -> int:
    """How many words the folder `config.weights` of a CLIP reads, 0 for a ViT; raises WeightsError where it has other sizes."""

    def read_vit(raw: dict) -> int:
        refuse(raw, "model_type", ("vit",))
        vision = VITS[config.size]
        _refuse_sizes(raw, vision.stack, (768, 12, 12, 3072), "gelu", 1e-12)
        _refuse_picture(raw, vision.patch, 16)
        return 0

    def read_clip(raw: dict) -> int:
        refuse(raw, "model_type", ("clip",))
        clip = CLIPS[config.size]
        parts = {}
        for name in ("vision_config", "text_config"):
            refuse(raw, f"{name}_dict", (None, {}))
            parts[name] = raw[name]
            if not isinstance(raw[name], dict):
                raise WeightsError(f"{name} {raw[name]!r:.60} found, a JSON object expected")
        _refuse_sizes(parts["vision_config"], clip.picture.stack, (768, 12, 12, 3072), "quick_gelu", 1e-5)
        _refuse_picture(parts["vision_config"], clip.picture.patch, 32)
        _refuse_sizes(parts["text_config"], clip.text, (512, 12, 8, 2048), "quick_gelu", 1e-5)
        refuse(parts["text_config"], "max_position_embeddings", (TEXT_PLACES,), 77)
        refuse(raw, "projection_dim", (clip.shared,), 512)
        return whole({"vocab_size": 49408} | parts["text_config"], "vocab_size")

    clip = config.kind == "clip"
    return read_config(_SETTING, Path(config.weights), "a CLIP" if clip else "a ViT", read_clip if clip else read_vit)


def _refuse_sizes(raw: dict, stack: Stack, defaults: tuple[int, ...], gelu: str, epsilon: float) -> None:
    """Raises WeightsError where a stack has other sizes; the defaults are those of transformers, which may leave them out."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    sizes = (stack.width, stack.layers, stack.heads, stack.mlp_width)
    for name, size, default in zip(names, sizes, defaults):
        refuse(raw, name, (size,), default)
    refuse(raw, "hidden_act", (_GELU[stack.gelu],), gelu)
    refuse(raw, "layer_norm_eps", (stack.epsilon,), epsilon)


def _refuse_picture(raw: dict, patch: int, default: int) -> None:
    refuse(raw, "image_size", (SIDE,), 224)
    refuse(raw, "num_channels", (3,), 3)
    refuse(raw, "patch_size", (patch,), default)


def with_weights(config: EncoderConfig, params: dict, mesh: Mesh) -> dict:
    """An encoder's parameters with the values of the folder `config.weights`; what only a ViT's objective has may be missing.

    Raises WeightsError as `read_vision`, and with all tensors that are missing, misshapen, not finite or unknown.
    """
    folder, clip = Path(config.weights), config.kind == "clip"
    read_vision(config)
    leaves = {_their_name(path, clip): (path, leaf.shape) for path, leaf in jax.tree.leaves_with_path(params["encoder"])}
    values, problems = {}, []
    for stored, array in stored_tensors(folder):
        name = stored if clip else stored.removeprefix("vit.")
        if name not in leaves:
            problems += [] if _OTHERS.fullmatch(name) else [f"no place for {stored}"]
            continue
        path, shape = leaves[name]
        found = _as_ours(array, kernel="kernel" in jax.tree_util.keystr(path))
        if found.shape != shape:
            problems.append(f"{stored} has shape {array.shape}, {' x '.join(map(str, shape[::-1]))} values expected")
        elif not np.isfinite(found := found.astype(np.float32)).all():
            problems.append(f"{stored} holds values that are not finite")
        else:
            values[name] = jax.numpy.asarray(found)
    optional = () if clip else _OF_OBJECTIVE
    problems = problems or [f"no tensor for {name}" for name in sorted(leaves.keys() - values.keys() - {*optional})]
    refuse_tensors(_SETTING, folder, f"not those of kind '{config.kind}', size '{config.size}'", problems)

    def take(path: tuple, leaf: jax.Array) -> jax.Array:
        return values.get(_their_name(path, clip), leaf)

    return place({"encoder": jax.tree.map_with_path(take, params["encoder"])}, mesh)


def _their_name(path: tuple, clip: bool) -> str:
    """The name in PyTorch of a parameter of an encoder."""
    ours = "/".join(str(getattr(key, "key", getattr(key, "name", ""))) for key in path).removesuffix("/value")
    parts, block = (_CLIP, _CLIP_BLOCK) if clip else (_VIT, _VIT_BLOCK)
    start = next(part for part in parts if f"{ours}/".startswith(f"{part}/"))
    name, rest = parts[start], ours.removeprefix(start).removeprefix("/")
    if start.endswith("/blocks"):
        number, rest = rest.split("/", 1)
        part, leaf = rest.rsplit("/", 1)
        name, rest = f"{name}.{number}.{block[part]}", leaf
    return f"{name}.{'bias' if rest == 'bias' else 'weight'}" if rest else name


def _as_ours(array: np.ndarray, kernel: bool) -> np.ndarray:
    """PyTorch's kernel [n_out, n_in], or [n_out, C, P, P] of a convolution, as [n_in, n_out]; others without leading ones."""
    if kernel:
        return array.reshape(len(array), -1).T
    while array.ndim > 1 and len(array) == 1:
        array = array[0]
    return array
