"""Bytes and training speed of a base in few bits: `python -m benchmarks.quantized`.

Bytes of the parameters follow from a model's shapes alone; no weight is made. A step is LoRA's of rank 16 on all kernels of a
Llama with random weights, as `benchmarks.train_step` measures it in rows of one length. `--layers`, `--width` set its shape.
"""

import math
import tempfile
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import jax
from flax import nnx

from benchmarks.peers import machine, make_folder, model_parser
from benchmarks.train_step import Variant, ours
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.lora import quantize_kernels

_OF_BOTH = {"max_positions": 8192, "scan_layers": True}
SHAPES = {
    "SmolLM2-135M": DecoderConfig(49152, 576, 30, 9, 3, 64, 1536, rope_theta=1e5, **_OF_BOTH),
    "Llama-3.1-8B": DecoderConfig(128256, 4096, 32, 32, 8, 128, 14336, rope_theta=5e5, tied_embeddings=False, **_OF_BOTH),
}
LENGTH = 1024
FORMS = [("float32", ""), ("bfloat16", ""), ("bfloat16", "int8"), ("bfloat16", "nf4")]


def main() -> None:
    parser = model_parser(__doc__)
    parser.set_defaults(batch=[2])
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=6, help="of each form, in turns")
    arguments = parser.parse_args()
    rows = arguments.batch[0]
    print(f"{machine()}; steps of {rows} rows of {LENGTH} tokens, {arguments.layers} layers x {arguments.width}, stacked\n")
    works = []
    for dtype, kind in FORMS:
        with tempfile.TemporaryDirectory() as folder:
            make_folder(Path(folder), arguments.layers, arguments.width, arguments.vocab, dtype, arguments.mlp)
            form = {"dtype": dtype, "quantize": kind, "only": "padded", "rows": rows}
            form |= {"scan_layers": True, "remat": "", "attention": "auto", "length": LENGTH, "full": False}
            works.append(ours(Namespace(folder=folder, examples=arguments.examples, vocab=arguments.vocab, **form)))
        works[-1].epoch()
    seconds = [min(turns) for turns in zip(*[[epoch_seconds(work) for work in works] for _ in range(arguments.repeats)])]
    print(f"| weights | {' | '.join(f'{name}, GB' for name in SHAPES)} | a step |")
    print(f"| --- |{' ---: |' * (len(SHAPES) + 1)}")
    for (dtype, kind), work, best in zip(FORMS, works, seconds):
        sizes = " | ".join(f"{gigabytes(config, dtype, kind):.2f}" for config in SHAPES.values())
        print(f"| {kind or dtype} | {sizes} | {best / len(work.lengths):.2f} s |")


def epoch_seconds(work: Variant) -> float:
    start = time.perf_counter()
    work.epoch()
    return time.perf_counter() - start


def gigabytes(config: DecoderConfig, dtype: str, kind: str) -> float:
    """What the parameters take, the embedding, the head and the norms in `dtype`."""
    model = nnx.eval_shape(lambda: quantize_kernels(Decoder(replace(config, param_dtype=dtype), nnx.Rngs(0)), kind))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(nnx.state(model))) / 1e9


if __name__ == "__main__":
    main()
