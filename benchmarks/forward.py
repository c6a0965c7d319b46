"""Tokens a second of one forward pass over prompts, beside transformers in PyTorch: `python -m benchmarks.forward`.

The same random weights and prompts, logits of every place. Also the seconds to compile it, with layers in a loop and scanned.
`--layers=16 --width=2048 --vocab=128256 --dtype=bfloat16` is Llama-3.2-1B's shape, for a GPU.
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
        make_folder(Path(name), arguments.layers, arguments.width, arguments.vocab)
        ours, theirs = load_both(Path(name), arguments.dtype)
        scanned, _ = load_pretrained(name, dtype=arguments.dtype, param_dtype=arguments.dtype, scan_layers=True)
    print(f"{machine()}; {arguments.layers} layers x {arguments.width}, {arguments.dtype}, {arguments.prompt} tokens a row\n")
    print("| batch | here | tokens/s | PyTorch | tokens/s | ratio | largest difference |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    forward, state = compiled(ours)
    for batch in arguments.batch:
        ids = prompts(batch, arguments.prompt, arguments.vocab)
        given = torch.tensor(ids, dtype=torch.long, device=theirs.device)

        def run_theirs(given=given) -> np.ndarray:
            with torch.inference_mode():
                return theirs(given).logits.float().cpu().numpy()

        here = best_seconds(lambda ids=ids: jax.block_until_ready(forward(state, ids)))
        there = best_seconds(run_theirs)
        difference = np.abs(np.asarray(forward(state, ids)) - run_theirs()).max()
        rates = [ids.size / seconds for seconds in (here, there)]
        cells = [f"{batch}", f"{1e3 * here:.1f} ms", f"{rates[0]:.0f}", f"{1e3 * there:.1f} ms", f"{rates[1]:.0f}"]
        print(f"| {' | '.join(cells)} | {there / here:.2f} | {difference:.1e} |", flush=True)
    print(f"\nCompiling: {seconds_to_compile(ours, ids):.1f} s in a loop, {seconds_to_compile(scanned, ids):.1f} s scanned.")
    print(f"Peak memory of both together: {peak_gb()}.")


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
