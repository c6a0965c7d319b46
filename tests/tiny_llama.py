"""A tiny random Llama beside any text tokenizer."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP, LAYERS = 32, 4, 2, 8, 64, 2


def write_llama(folder: Path, tokenizer, rng: np.random.Generator) -> Path:
    """Writes a folder as `save_pretrained` leaves it, and returns it."""
    tokenizer.save_pretrained(folder)
    config = {
        "model_type": "llama", "hidden_act": "silu", "vocab_size": len(tokenizer), "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM, "intermediate_size": MLP,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (len(tokenizer), WIDTH), "model.norm.weight": (WIDTH,)}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        shapes |= {at + "input_layernorm.weight": (WIDTH,), at + "post_attention_layernorm.weight": (WIDTH,)}
        outs = {"q": HEADS * HEAD_DIM, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM}
        shapes |= {f"{at}self_attn.{name}_proj.weight": (out, WIDTH) for name, out in outs.items()}
        shapes |= {at + "self_attn.o_proj.weight": (WIDTH, HEADS * HEAD_DIM), at + "mlp.down_proj.weight": (WIDTH, MLP)}
        shapes |= {at + "mlp.gate_proj.weight": (MLP, WIDTH), at + "mlp.up_proj.weight": (MLP, WIDTH)}
    tensors = {name: rng.normal("norm" in name, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder
