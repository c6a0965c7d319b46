"""Tokens per second of a forward pass over prompts, compared with transformers in PyTorch: `python -m benchmarks.forward`.

Both have the same random weights and prompts and compute the logits of every token. Also the seconds to compile the pass, with
layers in a loop and scanned. `--layers=16 --width=2048 --vocab=128256 --dtype=bfloat16` has Llama-3.2-1B's shape, for a GPU.
"""

import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import torch
from flax import nnx

from benchmarks.peers import best_seconds, load_both, machine, make_folder, model_parser, peak_gb, prompts
from ecgbyte_jax.model.hf import load_pretrained


def main() -> None:
    arguments = model_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        make_folder(Path(name), arguments.layers, arguments.width, arguments.vocab, arguments.dtype, arguments.mlp)
        ours, theirs = load_both(Path(name), arguments.dtype)
        scanned, _ = load_pretrained(name, dtype=arguments.dtype, param_dtype=arguments.dtype, scan_layers=True)
    print(f"{machine()}; {arguments.layers} layers x {arguments.width}, {arguments.dtype}, {arguments.prompt} tokens per row\n")
    print("| batch | this project | tokens/s | PyTorch | tokens/s | ratio | largest difference |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    forward, state = compiled(ours)
    for batch in arguments.batch:
        ids = prompts(batch, arguments.prompt, arguments.vocab)
        tensor = torch.tensor(ids, dtype=torch.long, device=theirs.device)

        def run_theirs(tensor=tensor) -> np.ndarray:
            with torch.inference_mode():
                return theirs(tensor).logits.float().cpu().numpy()

        our_seconds = best_seconds(lambda ids=ids: jax.block_until_ready(forward(state, ids)))
        their_seconds = best_seconds(run_theirs)
        difference = np.abs(np.asarray(forward(state, ids)) - run_theirs()).max()
        rates = [ids.size / seconds for seconds in (our_seconds, their_seconds)]
        cells = [
            f"{batch}",
            f"{1e3 * our_seconds:.1f} ms",
            f"{rates[0]:.0f}",
            f"{1e3 * their_seconds:.1f} ms",
            f"{rates[1]:.0f}",
        ]
        print(f"| {' | '.join(cells)} | {their_seconds / our_seconds:.2f} | {difference:.1e} |", flush=True)
    print(f"\nCompiling: {seconds_to_compile(ours, ids):.1f} s in a loop, {seconds_to_compile(scanned, ids):.1f} s scanned.")
    print(f"Peak memory of the process with both models: {peak_gb()}.")


def compiled(model) -> tuple:
    graphdef, state = nnx.split(model)
    return jax.jit(lambda state, ids: nnx.merge(graphdef, state)(ids)), state


def seconds_to_compile(model, ids: np.ndarray) -> float:
    forward, state = compiled(model)
    start = time.perf_counter()
    forward.lower(state, ids).compile()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
