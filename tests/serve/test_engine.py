"""Rows that join and leave a running batch, against `generate` without it, in models that differ in what they cache."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.inputs.batches import _pad_left
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.sharding import make_mesh
from ecgbyte_jax.serve import slots
from ecgbyte_jax.serve.engine import BusyError, Engine, Job, Row
from ecgbyte_jax.serve.slots import Read, cut
from tests.model import test_delta_net, test_generate, test_vectors

PLAIN, MOST, LONGEST = replace(test_generate.CONFIG, layers=2), 6, 60
FAMILIES = {
    "stacked layers with windows": replace(PLAIN, scan_layers=True, windows=(4, 0), local_rope_theta=100.0),
    "learned positions": replace(PLAIN, rope_theta=None),
    "rotary positions by length": replace(PLAIN, rope_scaling=replace(test_generate.LONG, original_max_positions=3)),
    "delta nets": test_delta_net.CONFIG,
}
QUICK = ("stacked layers with windows", "delta nets")  # to compile the others' programs takes CI's time


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(slots, "_SIZES", (2, 4, 16))


def start(model: Decoder, queue: int = 100, cache_bytes: int = 10**8, vectors: int = 0, count: int = 3) -> Engine:
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    return Engine(model, mesh, SimpleNamespace(vectors=vectors), (7,), LONGEST, MOST, count, queue, cache_bytes)


def answer(engine: Engine, rows: list[Row]) -> None:
    jobs = [Job([row], lambda: None) for row in rows]
    heard = threading.Event()
    for job in jobs:
        job.heard = heard.set
        engine.submit(job)
    while not all(row.ended for row in rows):
        assert heard.wait(600)
        heard.clear()
        assert not [job.failure for job in jobs if job.failure]


def generated(model: Decoder, rows: list[Row]) -> list[list[int]]:
    ids, mask = _pad_left([row.prompt for row in rows], LONGEST, 0)
    signals = {} if rows[0].signals is None else {"signals": np.concatenate([row.signals for row in rows])}
    tokens = np.asarray(generate(model, ids, mask, MOST, stop_ids=(7,), pad_id=7, **signals)).tolist()
    answers = [answer[: row.most] for row, answer in zip(rows, tokens)]
    return [answer[: answer.index(7) + 1] if 7 in answer else answer for answer in answers]


@pytest.mark.parametrize("family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def test_every_row_has_the_tokens_that_it_has_alone(family, rng):
    model = Decoder(FAMILIES[family], nnx.Rngs(0))
    ecgs = [rng.integers(8, 40, count).astype(np.int32) for count in (3, 20, 37)]
    prompts = [(ecg, rng.integers(8, 40, count).astype(np.int32)) for ecg in ecgs for count in (1, 2, 7, 20)]
    rows = [Row(np.concatenate(parts), len(parts[0]), None, 1 + n % MOST) for n, parts in enumerate(prompts)]
    with start(model) as engine:
        answer(engine, rows)
        assert len(engine._kept._reads) == (3 if family != "rotary positions by length" else 12)
    assert [row.tokens for row in rows] == generated(model, rows)


def test_vectors_of_one_and_of_two_ecgs_are_laid_over_their_places(rng):
    model = Decoder(test_vectors.CONFIG, nnx.Rngs(0))
    model.ecg_input = test_vectors.make_ecg_input(
        test_vectors.PATCHES, test_vectors.EncoderConfig(), test_vectors.SAMPLES, test_vectors.CONFIG.width, nnx.Rngs(1)
    )
    model.vector_id = test_vectors.IDS.place
    with start(model, vectors=2) as engine:
        for count in (1, 2):
            shown = 0.2 * rng.standard_normal((3, 1, count, 12, test_vectors.SAMPLES)).astype(np.float32)
            ecg = np.array([1, *[3, 30, 30, 4] * count], np.int32)
            prompts = [np.append(ecg, rng.integers(8, 30, 3 + number)).astype(np.int32) for number in range(3)]
            rows = [Row(prompt, len(ecg), signals, MOST) for prompt, signals in zip(prompts, shown)]
            answer(engine, rows)
            assert [row.tokens for row in rows] == generated(model, rows)


def test_jobs_beyond_the_queue_are_refused_and_cancelled_ones_free_their_slots():
    model = Decoder(PLAIN, nnx.Rngs(0))
    engine = start(model, queue=2, count=1)
    jobs = [Job([Row(np.full(5, 9, np.int32), 3, None, MOST)], lambda: None) for _ in range(3)]
    for job in jobs[:2]:
        engine.submit(job)
    with pytest.raises(BusyError):
        engine.submit(jobs[2])
    engine.cancel(jobs[0])
    row = jobs[1].rows[0]
    ended = threading.Event()
    jobs[1].heard = lambda: ended.set() if row.ended else None
    with engine:
        assert ended.wait(600) and jobs[0].rows[0].tokens == [] and [row.tokens] == generated(model, [row])


def test_one_prompt_that_fails_and_a_step_that_fails_leave_the_others_their_answers(monkeypatch):
    model = Decoder(PLAIN, nnx.Rngs(0))
    good, bad = (Row(np.full(count, 9, np.int32), 3, None, MOST) for count in (5, 6))
    with start(model) as engine:
        read = engine._slots.read

        def fails(*_: object, **__: object) -> None:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory")

        def some_fail(ids: np.ndarray, length: int, *rest: object, **how: object) -> Read:
            return (fails if length == 6 else read)(ids, length, *rest, **how)

        monkeypatch.setattr(engine._slots, "read", some_fail)
        failed = threading.Event()
        job = Job([bad], failed.set)
        engine.submit(job)
        assert failed.wait(600) and isinstance(job.failure, jax.errors.JaxRuntimeError)
        monkeypatch.undo()
        monkeypatch.setattr(engine._slots, "step", fails)
        failed.clear()
        engine.submit(broken := Job([Row(good.prompt, 3, None, MOST)], failed.set))
        assert failed.wait(600) and isinstance(broken.failure, jax.errors.JaxRuntimeError)
        monkeypatch.undo()
        answer(engine, [good])
    assert [good.tokens] == generated(model, [good])


def test_what_was_read_of_ecgs_stays_within_its_bytes(rng):
    model = Decoder(PLAIN, nnx.Rngs(0))
    with start(model, cache_bytes=0) as engine:
        rows = [Row(rng.integers(8, 40, 9).astype(np.int32), 6, None, 2) for _ in range(4)]
        answer(engine, rows)
        assert not engine._kept._reads and engine._kept._bytes == 0
    assert [row.tokens for row in rows] == generated(model, rows)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 33, 60])
def test_pieces_hold_a_prompt_and_little_more(count):
    sizes = cut(count)
    assert count <= sum(sizes) < 2 * count + 2 and len(sizes) <= 2 + count // 16
    assert cut(count, whole=True)[0] >= count and len(cut(count, whole=True)) == 1
