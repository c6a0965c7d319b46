"""Small GGUF files, written with the package `gguf` as llama.cpp's converter writes them."""

import json
from pathlib import Path

import numpy as np

from ecgbyte_jax.inputs.text import train_text_tokenizer

CONTROL, NORMAL = 3, 1
# Where a block of a K-type keeps its float16 scales: (bytes of a block, offsets); the package cannot quantise these types.
K_BLOCKS = {"Q2_K": (84, (80, 82)), "Q3_K": (110, (108,)), "Q4_K": (144, (0, 2)), "Q5_K": (176, (0, 2)), "Q6_K": (210, (208,))}
TEMPLATE = "{% for message in messages %}<bos>{{ message['content'] }}<eos>{% endfor %}"


def write_gguf(path: Path, model, architecture: str, types: tuple[str, ...] = ("F32",), **metadata) -> Path:
    """Writes a model of transformers, with matrices of types[layer], the embedding's of types[0], and a tokenizer.

    metadata: further values, with "__" for ".".
    """
    import gguf

    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    sizes = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
    }
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if architecture == "llama":
        sizes["rope.dimension_count"] = head_dim
    else:
        sizes |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    for name, value in sizes.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_float32(f"{architecture}.rope.freq_base", rope.get("full_attention", rope)["rope_theta"])
    for name, value in metadata.items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(name.replace("__", "."), value)
    add_tokenizer(writer, config.vocab_size)
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    rng = np.random.default_rng(0)
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if module == "lm_head" and config.tie_word_embeddings:
            continue
        array = tensor.float().numpy()
        if architecture == "llama" and module.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if module.endswith("q_proj") else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and module.endswith("norm"):
            array = array + 1
        layer = int(module.split(".")[2]) if ".layers." in module else 0
        add_tensor(
            writer, f"{names.get_name(module)}.{leaf}", array, types[layer % len(types)] if array.ndim == 2 else "F32", rng
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tensor(writer, name: str, array: np.ndarray, kind: str, rng: np.random.Generator) -> None:
    """Adds a tensor of a type; one of a K-type has random values of its own."""
    import gguf

    number = gguf.GGMLQuantizationType[kind]
    if kind in K_BLOCKS:
        size, scales = K_BLOCKS[kind]
        blocks = rng.integers(0, 256, (len(array), array.shape[1] // 256, size), np.uint8)
        for at in scales:
            blocks[..., at : at + 2] = (rng.normal(0, 3e-5, (*blocks.shape[:2], 1)).astype(np.float16)).view(np.uint8)
        array = blocks.reshape(len(array), -1)
    elif kind not in ("F32", "F16"):
        array = gguf.quantize(np.ascontiguousarray(array), number)
    elif kind == "F16":
        array = array.astype(np.float16)
    writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=number)


def add_tokenizer(writer, size: int) -> None:
    """Byte-level BPE, with unused control tokens up to `size`."""
    tokenizer = train_text_tokenizer(["Does this ECG show sinus rhythm? yes no none"] * 3, size)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    unused = [f"<unused{i}>" for i in range(size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + unused)
    writer.add_token_types([CONTROL] * 3 + [NORMAL] * (len(tokens) - 3) + [CONTROL] * len(unused))
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)
