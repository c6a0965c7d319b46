"""Shared by the model's benchmarks: a small Llama with random weights, in this project and in PyTorch, and its prompts."""

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import torch
import transformers

from ecgbyte_jax.model.hf import load_pretrained
from ecgbyte_jax.model.kernels.fused import kernel_for
from ecgbyte_jax.run.console import peak_memory


def model_parser(description: str) -> argparse.ArgumentParser:
    """The flags that the model's benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--mlp", type=int, default=0, help="width of the MLPs; 0: three times the model's")
    parser.add_argument("--vocab", type=int, default=6000)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prompt", type=int, default=400, help="tokens per row")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    return parser


def make_folder(folder: Path, layers: int, width: int, vocab: int, dtype: str, mlp: int = 0) -> None:
    """Writes a Llama with random weights and heads of 64 in transformers' format; mlp: 0 is three times the width."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, intermediate_size=mlp or 3 * width, head_dim=64,
        num_attention_heads=width // 64, num_key_value_heads=max(1, width // 256), max_position_embeddings=4096,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)


def load_both(folder: Path, dtype: str) -> tuple:
    """(our model, PyTorch's model) with the same weights, both on the GPU where there is one."""
    ours, config = load_pretrained(folder, dtype=dtype, param_dtype=dtype)
    kernel, _ = kernel_for(jax.default_backend(), config.head_dim, dtype)
    ours.config = replace(config, attention_kernel=kernel)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    return ours, theirs.to("cuda" if torch.cuda.is_available() else "cpu")


def prompts(rows: int, length: int, vocab: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (rows, length)).astype(np.int32)


def best_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The best of several runs, after one that compiles."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def peak_gb() -> str:
    """The peak memory of the GPU where there is one, else of this process so far."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return f"{stats['peak_bytes_in_use'] / 1e9:.2f} GB"
    return f"{peak_memory() / 1e9:.2f} GB"


def machine() -> str:
    device = jax.local_devices()[0].device_kind
    versions = f"jax {jax.__version__}, torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{device}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}, {time.strftime('%Y-%m-%d')}"
