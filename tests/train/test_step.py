"""The step's mathematics: packing, accumulation, and a step that is not finite."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ecgbyte_jax.inputs.prompt import PromptIds, lay_out
from ecgbyte_jax.model.attention import count_positions
from ecgbyte_jax.model.build import Parts
from ecgbyte_jax.model.config import DecoderConfig, DeltaConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.lora import LoraConfig, add_lora, kernels
from ecgbyte_jax.model.sharding import make_mesh, parameter_shardings, put_whole
from ecgbyte_jax.model.vocabulary import grow_vocabulary
from ecgbyte_jax.settings import OptimSettings
from ecgbyte_jax.train import step as module
from ecgbyte_jax.train.optim import make_optimizer
from ecgbyte_jax.train.step import _cross_entropy, answer_loss, answer_tokens, make_step, start_state
from tests.prompts import plainly

IDS = PromptIds(bos=1, eos=2, pad=0, sig_start=3, sig_end=4, ecg=np.arange(20, 60, dtype=np.int32))
CONFIG = DecoderConfig(
    vocab_size=96, width=24, layers=2, heads=6, kv_heads=2, head_dim=8, mlp_width=40, max_positions=64, rope_theta=1e4
)
FAMILIES = {
    "llama": {},
    "windows": {"windows": (4, 0)},
    "learned positions": {"rope_theta": None, "norm": "layer"},
    "delta nets": {"delta": DeltaConfig((0,), 2, 4, 8, 6, 4), "attention_gate": True},
}


def decoder(**changes) -> Decoder:
    return Decoder(replace(CONFIG, **changes), nnx.Rngs(0))


def examples(rng, lengths) -> list:
    """(ids, loss mask) of examples with ECGs of these lengths, and answers of 1 to 4 tokens."""
    found = []
    for length in lengths:
        question, answer = rng.integers(60, 90, 3), rng.integers(60, 90, rng.integers(1, 5))
        found.append(plainly(IDS, [rng.integers(0, 40, length)], question, answer, 64))
    return found


def batch(rows, length: int) -> dict:
    laid = [lay_out(row, length, 16, IDS.pad) for row in rows]
    return {name: jnp.asarray(np.stack([row[name] for row in laid])) for name in laid[0]}


@pytest.mark.parametrize(
    ("family", "scan"),
    [
        *[("llama", False), ("llama", True), ("windows", False), ("learned positions", False)],
        pytest.param("delta nets", False, marks=pytest.mark.slow),
    ],
)
def test_packed_losses_and_gradients_are_the_unpacked_ones(rng, family, scan):
    model = decoder(scan_layers=scan, **FAMILIES[family])
    graphdef, params = nnx.split(model, nnx.Param)
    one, two, three, four, five = examples(rng, [5, 12, 9, 3, 7])
    single, packed = batch([[e] for e in (one, two, three, four, five)], 40), batch([[one, two, three], [five, four]], 60)

    @jax.jit
    def loss(params, rows):
        return answer_loss(nnx.merge(graphdef, params), rows) / answer_tokens(rows)

    (alone, expected), (together, found) = (jax.value_and_grad(loss)(params, rows) for rows in (single, packed))
    assert float(alone) == pytest.approx(float(together), abs=1e-5)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_an_example_in_a_packed_row_does_not_see_the_others(rng):
    model = decoder()
    one, two, other = examples(rng, [5, 12, 12])
    rows = batch([[one, two], [one, other]], 48)
    logits = model(rows["input_ids"], rows["segment_ids"], rows["positions"])
    seen = np.asarray(rows["segment_ids"]) == 1
    counted = model(rows["input_ids"], rows["segment_ids"])  # positions are counted where they are not given
    first = np.flatnonzero(seen[0])
    np.testing.assert_allclose(logits[0, first], logits[1, np.flatnonzero(seen[1])], atol=1e-5)
    np.testing.assert_allclose(counted[0, first], logits[0, first], atol=1e-5)
    alone = model(one[0][None])
    np.testing.assert_allclose(logits[0, first], alone[0], atol=1e-5)


def test_positions_are_counted_in_each_example_anew():
    segments = jnp.array([[0, 0, 1, 1, 1, 2, 2], [1, 0, 1, 2, 3, 3, 3]])
    counted = np.asarray(count_positions(segments))
    assert counted[0, 2:].tolist() == [0, 1, 2, 0, 1]
    assert counted[1, [0, 2, 3, 4, 5, 6]].tolist() == [0, 1, 0, 0, 1, 2]


def steps(rows: dict, accumulate: int, mesh, count: int = 3) -> tuple[list[dict], list]:
    """What `count` steps on the same batch report, and the parameters behind them."""
    with jax.set_mesh(mesh):
        model = decoder()
        parts = Parts(model.config, *nnx.split(model, nnx.Param, ...))
        optimizer = optax.adam(1e-2)
        state, step = start_state(parts.trained, optimizer, mesh), make_step(parts, optimizer, accumulate=accumulate)
        reported = []
        for number in range(1, count + 1):
            state, metrics = step(state, parts.frozen, rows, number)
            reported.append({name: float(value) for name, value in metrics.items()})
    return reported, jax.tree.leaves(state.params)


def test_accumulated_parts_weigh_by_their_answer_tokens(rng):
    """Answers of 1 to 4 tokens: a mean of the parts' means would be another loss."""
    rows = batch([[example] for example in examples(rng, [5, 12, 9, 3, 7, 8, 6, 10])], 40)
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    whole, weights = steps(rows, 1, mesh)
    found, others = steps(rows, 8, mesh)
    for ours, theirs in zip(found, whole):
        assert ours == pytest.approx(theirs, abs=1e-5)
    for a, b in zip(weights, others, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_loss_is_that_of_optax_with_its_gradient_and_nan_for_a_target_that_is_no_token(rng):
    logits = np.concatenate([9 * rng.normal(size=(3, 4, 10)), np.full((3, 4, 2), -np.inf)], axis=-1).astype(np.float32)
    targets = rng.integers(0, 10, (3, 4))
    theirs = optax.softmax_cross_entropy_with_integer_labels
    np.testing.assert_allclose(_cross_entropy(logits, targets), theirs(logits, targets), rtol=1e-5)
    ours_gradient, their_gradient = (jax.grad(lambda x, f=f: f(x, targets).sum())(logits) for f in (_cross_entropy, theirs))
    np.testing.assert_allclose(ours_gradient, their_gradient, atol=1e-6)
    assert np.isnan(_cross_entropy(logits[:1, :1], np.array([[12]]))) and np.isnan(
        _cross_entropy(logits[:1, :1], np.array([[-1]]))
    )


def losses_with_dropout(rows: dict, accumulate: int = 1, seed: int = 0) -> list[float]:
    """Of two steps on the same batch that move no weight."""
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = decoder(layers=1)
        add_lora(model, LoraConfig(4, 8.0, 0.5, ("down",)), jax.random.key(1))
        for _, _, linear in kernels(model):
            if linear.lora is not None:
                linear.lora.b[...] = jax.random.normal(jax.random.key(2), linear.lora.b.shape)
        parts = Parts(model.config, *nnx.split(model, nnx.LoRAParam, ...))
        optimizer = optax.set_to_zero()
        state = start_state(parts.trained, optimizer, mesh)
        step, found = make_step(parts, optimizer, 0.5, seed, accumulate), []
        for number in (1, 2):
            state, metrics = step(state, parts.frozen, rows, number)
            found.append(float(metrics["loss"]))
    return found


def test_dropout_is_drawn_anew_in_every_step_and_part_and_follows_from_the_seed(rng):
    row = batch([[example] for example in examples(rng, [12])], 40)
    twice = {name: jnp.concatenate([values, values]) for name, values in row.items()}
    first, second = losses_with_dropout(row)
    assert abs(first - second) > 1e-3 and losses_with_dropout(row) == [first, second]
    assert abs(losses_with_dropout(row, seed=1)[0] - first) > 1e-3
    assert abs(losses_with_dropout(twice, accumulate=2)[0] - first) > 1e-3  # the same, were the parts to draw alike


def test_a_step_that_is_not_finite_and_those_behind_it_change_nothing(rng):
    rows = batch([[example] for example in examples(rng, [5, 12])], 40)
    bad = rows | {"answer_mask": rows["answer_mask"] * jnp.float32(jnp.inf)}
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = decoder()
        parts = Parts(model.config, *nnx.split(model, nnx.Param, ...))
        optimizer = optax.adam(1e-2)
        state, step = start_state(parts.trained, optimizer, mesh), make_step(parts, optimizer)
        state, _ = step(state, parts.frozen, rows, 1)
        before = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        for number, batch_of_step in ((2, bad), (3, rows)):
            state, metrics = step(state, parts.frozen, batch_of_step, number)
            assert np.isfinite(float(metrics["loss"])) == (number == 3)
            for a, b in zip(before, jax.tree.leaves(state), strict=True):
                np.testing.assert_array_equal(a, b)
        state, _ = step(state, parts.frozen, rows, 2)
        assert int(state.step) == 2


@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 2, 2)])
def test_answers_in_pieces_have_the_loss_and_gradients_of_the_whole_in_less_memory(rng, monkeypatch, layout):
    shape, vocabulary = (8, 49), 4096  # float32 logits of 6.1 MiB
    rows = {"input_ids": rng.integers(0, vocabulary, shape), "targets": rng.integers(0, vocabulary, shape)}
    rows |= {
        "segment_ids": np.ones(shape),
        "positions": np.tile(np.arange(49), (8, 1)),
        "answer_places": np.argsort(rng.random(shape)),
    }
    rows = {name: value.astype(np.int32) for name, value in rows.items()} | {"answer_mask": rng.random(shape) < 0.8}
    mesh, found = make_mesh(*layout, jax.devices()[: np.prod(layout)]), {}
    with jax.set_mesh(mesh):
        graphdef, params = nnx.split(decoder(vocab_size=vocabulary), nnx.Param)
        shardings = parameter_shardings(params, mesh)
        given = jax.device_put(params, shardings), put_whole(rows, mesh)
        for limit in (2**30, 5 * 2**15):
            monkeypatch.setattr(module, "_LOGITS_BYTES", limit)

            def loss(params, rows):
                return answer_loss(nnx.merge(graphdef, params), rows)

            program = jax.jit(jax.value_and_grad(loss), out_shardings=(None, shardings)).lower(*given).compile()
            found[limit] = (*program(*given), program.memory_analysis().temp_size_in_bytes)
    (whole, expected, most), (pieces, gradients, least) = found.values()
    assert float(pieces) == pytest.approx(float(whole), rel=1e-6)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert least < most - 4 * np.prod(shape) * vocabulary / np.prod(layout)


def test_the_rows_of_new_tokens_have_a_learning_rate_of_their_own():
    decoded = grow_vocabulary(decoder(), 120, jax.random.key(0), train_from=96)
    add_lora(decoded, LoraConfig(rank=2), jax.random.key(1))
    _, trained, _ = nnx.split(decoded, nnx.LoRAParam, ...)
    gradients = jax.tree.map(jnp.ones_like, trained)
    found = {}
    for rate in (1.0, 0.25):
        optim = OptimSettings(preset="adamw", warmup=1, weight_decay=0.0, embedding_rate=rate)
        optimizer, _ = make_optimizer(optim, 24, 10)
        state = optimizer.init(trained)
        for _ in range(2):
            updates, state = optimizer.update(gradients, state, trained)
        found[rate] = updates
    np.testing.assert_allclose(found[0.25]["new_rows"][...], found[1.0]["new_rows"][...] * 0.25, rtol=1e-6)
    assert float(jnp.abs(found[1.0]["new_rows"][...]).min()) > 0
    for ours, theirs in zip(jax.tree.leaves(found[0.25]["blocks"]), jax.tree.leaves(found[1.0]["blocks"])):
        np.testing.assert_array_equal(ours, theirs)
