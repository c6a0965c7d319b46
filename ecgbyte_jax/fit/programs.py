"""Compiles an experiment's programs for a topology: a process of its own, since a compiler may crash.

    python -m ecgbyte_jax.fit.programs < request.json

Reads a `Request` as JSON, and prints what it `measured` as the last line.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ecgbyte_jax.encoders.config import EncoderConfig
from ecgbyte_jax.errors import EcgByteError
from ecgbyte_jax.fit.bounds import encoder_bound, step_bound, token_bound
from ecgbyte_jax.fit.collectives import count_collectives
from ecgbyte_jax.fit.topology import devices_of
from ecgbyte_jax.model.build import Parts, abstract_model, count
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.generate import lower_generation
from ecgbyte_jax.model.sharding import batch_parts, batch_sharding, bytes_a_device, check_batch_size, make_mesh
from ecgbyte_jax.pretrain.objective import batch_shapes, build_encoder, make_encoder_step, objective_flops
from ecgbyte_jax.pretrain.text_encoder import features_width
from ecgbyte_jax.pretrain.vision_weights import read_vision
from ecgbyte_jax.settings import Settings
from ecgbyte_jax.train.chips import Chip, chip_of, memory_of
from ecgbyte_jax.train.memory import with_remat
from ecgbyte_jax.train.optim import make_optimizer
from ecgbyte_jax.train.restore import positions
from ecgbyte_jax.train.step import abstract_state, make_step
from ecgbyte_jax.train.vectors import input_of, training_flops

_GPU_OPTIONS = {"xla_gpu_autotune_level": "0"}  # which needs a GPU


@dataclass(frozen=True)
class Request:
    """What to compile: an experiment's settings, where for, and the sizes that its data has.

    lengths: the tokens and answer tokens of some of its sequences. signals: the shape (E, 12, L) of those of a row, where the
    model reads vectors of them. generate: the generation too. first_stage: the step of `pretrain` instead of both. rows: of a
    device at once, in place of the settings' (0). remat: likewise ("unset").
    """

    settings: dict[str, Any]
    topology: str
    vocab_size: int
    first_new_id: int
    answer_tokens: int
    steps: int
    lengths: list[list[int]]
    signals: list[int] | None = None
    generate: bool = True
    first_stage: bool = False
    rows: int = 0
    remat: str = "unset"


def measure(request: Request) -> dict[str, Any]:
    """The memory, arithmetic and communication of each program on each device, as its compiler says."""
    settings = Settings.of_dict(request.settings)
    devices = devices_of(request.topology)
    mesh = make_mesh(**asdict(settings.mesh), devices=devices)
    if request.first_stage:
        return _measure_first_stage(settings, mesh, request)
    if request.rows:
        size = request.rows * batch_parts(mesh) * settings.train.accumulate
        settings = replace(settings, train=replace(settings.train, batch_size=size))
    if request.remat != "unset":
        settings = replace(settings, model=replace(settings.model, remat=request.remat))
    check_batch_size(mesh, settings.train.batch_size, "train.batch_size", settings.train.accumulate)
    ecgs = request.signals[0] if request.signals else 0
    settings = with_remat(settings, mesh, request.vocab_size, request.first_new_id, ecgs)
    with jax.set_mesh(mesh):
        parts = abstract_model(
            settings.model,
            settings.lora,
            positions(settings),
            request.vocab_size,
            mesh,
            request.first_new_id,
            input_of(settings),
        )
        found: dict[str, Any] = {
            **_hardware(mesh),
            "rows": settings.train.batch_size,
            "rows a device": settings.train.batch_size // settings.train.accumulate // batch_parts(mesh),
            "remat": settings.model.remat,
            "attention": parts.config.attention_kernel,
            **_weights(parts.trained, parts.frozen),
            "decoder": _decoder(parts),
            "answer tokens": request.answer_tokens,
        }
        found["step"] = _compile(lambda: _lower_step(settings, parts, mesh, request), devices)
        if request.generate:
            found["generation"] = _per_text(_compile(lambda: _lower_answers(settings, parts, mesh, request), devices))
    chip = chip_of(devices[0])
    if chip is not None and "refused" not in found["step"]:
        found["bounds"] = _bounds(settings, parts.config, found, chip, np.array(request.lengths))
    return found


def _measure_first_stage(settings: Settings, mesh: Mesh, request: Request) -> dict[str, Any]:
    size = request.rows * batch_parts(mesh) or settings.pretrain.batch_size
    check_batch_size(mesh, size, "pretrain.batch_size")
    samples, devices = settings.signal.segment_length, [*mesh.devices.flat]
    text_size = _text_size(settings.encoder, request.vocab_size)
    with jax.set_mesh(mesh):
        parts = build_encoder(settings.encoder, samples, 0, mesh, text_size, to_restore=True)
        found: dict[str, Any] = {
            **_hardware(mesh),
            "rows": size,
            "rows a device": size // batch_parts(mesh),
            **_weights(parts.params, parts.statistics),
        }
        batch = batch_shapes(settings.encoder, size, samples, text_size, mesh)
        optimizer, _ = make_optimizer(settings.pretrain_optim, 1, request.steps)  # whose rate matters to no program
        state = abstract_state(parts.params, optimizer, mesh, parts.statistics)
        found["step"] = _compile(lambda: make_encoder_step(parts, optimizer, 0).lower(state, None, batch, 1), devices)
        chip = chip_of(devices[0])
        if chip is not None and "refused" not in found["step"]:
            bound = encoder_bound(objective_flops(parts, batch), found, chip)
            found["bounds"] = {"step": asdict(bound) | {"seconds": bound.seconds}, "examples_per_s": size / bound.seconds}
    return found


def _text_size(encoder: EncoderConfig, words: int) -> int:
    """See `make_encoder`; words: of the run's own tokenizer."""
    if encoder.kind == "merl":
        return features_width(encoder.text_encoder)
    if encoder.kind == "clip":
        return read_vision(encoder) if encoder.weights else words
    return 0


def _hardware(mesh: Mesh) -> dict[str, Any]:
    return {
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.devices.size,
        "mesh": dict(mesh.shape),
        "memory": memory_of(mesh),
    }


def _weights(trained: Any, frozen: Any) -> dict[str, Any]:
    return {
        "parameters": {"trained": count(trained), "frozen": count(frozen)},
        "weights": bytes_a_device(trained, frozen),
        "all weights": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((trained, frozen))),
    }


def _decoder(parts: Parts) -> dict[str, int]:
    """Its parameters and their bytes, without those of the map from signals, which tokens do not meet."""
    trained, frozen = ([part for name, part in state.items() if name != "ecg_input"] for state in (parts.trained, parts.frozen))
    leaves = jax.tree.leaves((trained, frozen))
    return {
        "trained": parts.trained_in_decoder,
        "frozen": sum(map(count, frozen)),
        "bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
    }


def _bounds(
    settings: Settings, config: DecoderConfig, found: dict[str, Any], chip: Chip, lengths: np.ndarray
) -> dict[str, Any]:
    """The least seconds of a step and of a token, and what follows from them."""
    in_a_row = settings.prompt.max_length / lengths[:, 0].mean() if settings.data.packing else 1.0
    sequences = found["rows"] * in_a_row
    step = step_bound(config, found, chip, lengths, sequences, training_flops(settings, config.width))
    token = token_bound(config, found, chip, settings.eval.batch_size, settings.prompt.max_length)
    bounds: dict[str, Any] = {"step": asdict(step) | {"seconds": step.seconds}}
    bounds["token"] = asdict(token) | {"seconds": token.seconds}
    bounds["examples_per_s"] = sequences / step.seconds
    bounds["tokens_per_s"] = settings.eval.batch_size / token.seconds
    return bounds


def _lower_step(settings: Settings, parts: Parts, mesh: Mesh, request: Request) -> jax.stages.Lowered:
    optimizer, _ = make_optimizer(settings.optim, parts.config.width, request.steps)
    state = abstract_state(parts.trained, optimizer, mesh)
    rows, tokens, sharding = settings.train.batch_size, settings.prompt.max_length, batch_sharding(mesh)

    def array(places: int, kind: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, places), kind, sharding=sharding)

    batch = {name: array(tokens, jnp.int32) for name in ("input_ids", "segment_ids", "positions")}
    batch |= {name: array(request.answer_tokens, jnp.int32) for name in ("answer_places", "targets")}
    batch["answer_mask"] = array(request.answer_tokens, jnp.bool)
    if request.signals:
        batch["signals"] = jax.ShapeDtypeStruct((rows, *request.signals), jnp.float32, sharding=sharding)
    step = make_step(parts, optimizer, settings.lora.dropout, settings.seed, settings.train.accumulate)
    return step.lower(state, parts.frozen, batch, 1)


def _lower_answers(settings: Settings, parts: Parts, mesh: Mesh, request: Request) -> jax.stages.Lowered:
    rows = -(-settings.eval.batch_size // batch_parts(mesh)) * batch_parts(mesh)
    decoder = nnx.split(parts.model(parts.trained))
    prompt, sharding = (rows, settings.prompt.max_length), batch_sharding(mesh)
    signals = None
    if request.signals:
        signals = jax.ShapeDtypeStruct((rows, 1, *request.signals[1:]), jnp.float32, sharding=sharding)
    return lower_generation(*decoder, prompt, settings.eval.max_new_tokens, sharding, signals)


def _compile(lower: Callable[[], jax.stages.Lowered], devices: list[jax.Device]) -> dict[str, Any]:
    """What the compiler says of a program, or how it refused it."""
    start = time.monotonic()
    try:
        program = lower().compile(_GPU_OPTIONS if devices[0].platform in ("cuda", "gpu") else None)
    except RuntimeError as error:  # jax's own kind
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"refused": str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: "), "seconds": time.monotonic() - start}
    memory, costs = program.memory_analysis(), program.cost_analysis() or {}
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "seconds": time.monotonic() - start,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "peak": held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        **{ours: costs[theirs] for ours, theirs in (("flops", "flops"), ("bytes", "bytes accessed")) if costs.get(theirs)},
        "collectives": {kind: asdict(sent) for kind, sent in count_collectives(program.as_text()).items()},
    }


def _per_text(measured: dict[str, Any]) -> dict[str, Any]:
    """Without how often collectives run and what they send: how many tokens are generated depends on the answers."""
    kinds = {kind: {"places": sent["places"]} for kind, sent in measured.get("collectives", {}).items()}
    return measured | ({"collectives": kinds} if "collectives" in measured else {})


def main() -> None:
    """Answers a request on stdin; an error of ours is one line on stderr and exit code 2."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        print(json.dumps(measure(Request(**json.load(sys.stdin)))))
    except EcgByteError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _end_with(parent: int) -> None:
    """Ends this process when the one that asked is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
