"""Tokens per second of generation, compared with transformers in PyTorch: `python -m benchmarks.generate`.

Both have the same random weights and prompts and decode greedily without a stop id. `--layers=16 --width=2048 --mlp=8192
--vocab=128256 --dtype=bfloat16` has Llama-3.2-1B's shape, for a GPU. `--gb_s`, the device's memory bandwidth, adds how close
decoding comes to the bound that reading the weights and the cache sets.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
import torch

from benchmarks.peers import best_seconds, load_both, machine, make_folder, model_parser, peak_gb, prompts
from ecgbyte_jax.model.generate import generate


def main() -> None:
    parser = model_parser(__doc__)
    parser.add_argument("--new", type=int, default=32, help="tokens to generate")
    parser.add_argument("--gb_s", type=float, default=0.0, help="memory bandwidth of the device in GB/s")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder), arguments.layers, arguments.width, arguments.vocab, arguments.dtype, arguments.mlp)
        ours, theirs = load_both(Path(folder), arguments.dtype)
    print(f"{machine()}; {arguments.layers} layers x {arguments.width}, {arguments.dtype}, ", end="")
    print(f"prompts of {arguments.prompt} tokens, {arguments.new} new ones\n")
    print(
        "| batch | this project, prefill | decoding | tokens/s | PyTorch, prefill | decoding | tokens/s | ratio | same tokens |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    their_first_rate = 0.0
    for batch in arguments.batch:
        ids = prompts(batch, arguments.prompt, arguments.vocab)
        our_seconds, tokens = time_ours(ours, ids, arguments.new)
        their_seconds, expected = time_theirs(theirs, ids, arguments.new)
        rates = [batch * arguments.new / seconds[1] for seconds in (our_seconds, their_seconds)]
        their_first_rate = their_first_rate or rates[1]
        cells = [f"{batch}"]
        for seconds, rate in zip((our_seconds, their_seconds), rates):
            step = (seconds[1] - seconds[0]) / (arguments.new - 1)
            cells += [f"{1e3 * seconds[0]:.1f} ms", f"{1e3 * step:.2f} ms", f"{rate:.0f}"]
        print(f"| {' | '.join(cells)} | {rates[0] / rates[1]:.1f} | {np.mean(tokens == expected):.0%} |", flush=True)
        if arguments.gb_s:
            step = (our_seconds[1] - our_seconds[0]) / (arguments.new - 1)
            print(f"  {moved_bytes(ours, batch, arguments) / step / 1e9 / arguments.gb_s:.0%} of the bandwidth bound")
    ratio = f"batch {batch} is {rates[0] / their_first_rate:.1f} times as fast as PyTorch's batch {arguments.batch[0]}"
    print(f"\nTokens/s are of the complete call with its prefill; {ratio}.")
    print(f"Peak memory of the process with both models: {peak_gb()}.")


def time_ours(model, ids: np.ndarray, new: int) -> tuple[tuple[float, float], np.ndarray]:
    """((seconds to the first token, seconds to the last), tokens)."""
    mask = np.ones_like(ids)

    def run(tokens: int) -> jax.Array:
        return jax.block_until_ready(generate(model, ids, mask, tokens))

    return (best_seconds(lambda: run(1)), best_seconds(lambda: run(new))), np.asarray(run(new))


def time_theirs(model, ids: np.ndarray, new: int) -> tuple[tuple[float, float], np.ndarray]:
    prompt = torch.tensor(ids, dtype=torch.long, device=model.device)
    mask = torch.ones_like(prompt)

    def run(tokens: int) -> np.ndarray:
        with torch.inference_mode():
            out = model.generate(prompt, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        return out[:, ids.shape[1] :].cpu().numpy()

    return (best_seconds(lambda: run(1)), best_seconds(lambda: run(new))), run(new)


def moved_bytes(model, batch: int, arguments: argparse.Namespace) -> float:
    """Bytes that must be read for one token of all rows: every weight once, and the cache of each row."""
    config, size = model.config, 2 if arguments.dtype == "bfloat16" else 4
    block = config.width * config.head_dim * (2 * config.heads + 2 * config.kv_heads) + 3 * config.width * config.mlp_width
    weights = config.layers * block + config.vocab_size * config.width
    cache = 2 * config.layers * config.kv_heads * config.head_dim * (arguments.prompt + arguments.new / 2) * batch
    return size * (weights + cache)


if __name__ == "__main__":
    main()
