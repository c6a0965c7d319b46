"""A decoder that reads vectors of an ECG in place of its tokens."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ecgbyte_jax.encoders.config import EcgInputConfig, EncoderConfig
from ecgbyte_jax.encoders.ecg_input import make_ecg_input
from ecgbyte_jax.inputs.batches import prompt_batch
from ecgbyte_jax.inputs.prompt import PromptIds, Text, lay_out, render
from ecgbyte_jax.model.build import abstract_model, build_model
from ecgbyte_jax.model.config import DecoderConfig, LoraConfig, ModelConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.generate import generate
from ecgbyte_jax.model.sharding import make_mesh, put_batch
from ecgbyte_jax.train.step import answer_loss

SAMPLES, VECTORS, LONGEST = 20, 2, 24
IDS = PromptIds(bos=1, eos=2, pad=0, sig_start=3, sig_end=4, ecg=np.arange(30, 40, dtype=np.int32), vectors=VECTORS)
CONFIG = DecoderConfig(
    vocab_size=40, width=24, layers=2, heads=6, kv_heads=2, head_dim=8, mlp_width=40, max_positions=64, rope_theta=1e4
)
PATCHES = EcgInputConfig("elf_patch", VECTORS)


@pytest.fixture(scope="module")
def model() -> Decoder:
    decoder = Decoder(CONFIG, nnx.Rngs(0))
    decoder.ecg_input = make_ecg_input(PATCHES, EncoderConfig(), SAMPLES, CONFIG.width, nnx.Rngs(1))
    decoder.vector_id = IDS.place
    return decoder


def examples(count: int) -> list[tuple[Text, tuple[np.ndarray, ...]]]:
    """Texts about one ECG, or about two, and the ECGs."""
    rng, made = np.random.default_rng(0), []
    for number in range(count):
        ecgs = tuple(0.2 * rng.standard_normal((12, SAMPLES)).astype(np.float32) for _ in range(1 + number % 2))
        question, answer = rng.integers(5, 30, 3 + number % 3), rng.integers(5, 30, 2)
        ids = np.concatenate([[1], [3, 4] * len(ecgs), question, answer, [2]]).astype(np.int32)
        made.append((Text(ids, np.arange(len(ids)) >= len(ids) - 3, len(ids) - 3), ecgs))
    return made


def batch_of(rows: list[list[tuple]], length: int = 2 * LONGEST) -> dict[str, np.ndarray]:
    most = max(sum(len(ecgs) for _, ecgs in row) for row in rows)
    laid_out = []
    for row in rows:
        shown = np.stack([ecg for _, ecgs in row for ecg in ecgs])
        signals = np.pad(shown, ((0, most - len(shown)), (0, 0), (0, 0)))
        rendered = [render(IDS, text, ecgs, LONGEST) for text, ecgs in row]
        laid_out.append(lay_out(rendered, length, 8, IDS.pad) | {"signals": signals})
    return {name: np.stack([row[name] for row in laid_out]) for name in laid_out[0]}


def loss_and_gradients(model: Decoder, batch: dict) -> tuple[float, nnx.State]:
    graphdef, state = nnx.split(model)
    return jax.jit(jax.value_and_grad(lambda state: answer_loss(nnx.merge(graphdef, state), batch)))(state)


def test_an_ecg_is_its_vectors_in_the_order_of_the_text(model):
    ((text, ecgs),) = examples(2)[1:]
    ids, _ = render(IDS, text, ecgs, LONGEST)
    assert ids[:9].tolist() == [1, 3, 30, 30, 4, 3, 30, 30, 4]
    embedded = model.embed(ids[None], np.arange(len(ids))[None], np.stack(ecgs)[None])[0]
    vectors = model.ecg_input(np.stack(ecgs))
    np.testing.assert_allclose(embedded[2:4], vectors[0], atol=1e-6)
    np.testing.assert_allclose(embedded[6:8], vectors[1], atol=1e-6)
    others = np.setdiff1d(np.arange(len(ids)), [2, 3, 6, 7])
    np.testing.assert_array_equal(embedded[others], model.embedding[...][ids[others]])


def test_a_tokenizer_that_had_ecg_tokens_in_another_order_has_the_models_place_for_vectors():
    """`restore.build_for` tells the model the first of their ids."""
    ((text, ecgs),) = examples(1)
    ids, _ = render(replace(IDS, ecg=IDS.ecg[::-1]), text, ecgs, LONGEST)
    assert ids[2:4].tolist() == [int(IDS.ecg.min())] * VECTORS


def test_examples_packed_in_a_row_have_the_losses_and_gradients_of_rows_of_their_own(model):
    made = examples(4)
    packed, packed_gradients = loss_and_gradients(model, batch_of([made[:2], made[2:]]))
    alone, gradients = loss_and_gradients(model, batch_of([[each] for each in made]))
    np.testing.assert_allclose(packed, alone, rtol=1e-5)
    assert float(jnp.abs(gradients["ecg_input"]["map"]["kernel"][...]).max()) > 1e-4
    for ours, expected in zip(jax.tree.leaves(packed_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_a_control_without_ecg_shows_nothing_between_its_markers(model):
    text, _ = examples(1)[0]
    nothing = (np.zeros((12, 0), np.float32),)
    ids, _ = render(IDS, text, nothing, LONGEST)
    np.testing.assert_array_equal(ids, text.ids)
    _, gradients = loss_and_gradients(model, batch_of([[(text, nothing)]]))
    assert not np.asarray(gradients["ecg_input"]["map"]["kernel"][...]).any()


@pytest.mark.parametrize("each", [1, 2])
def test_answers_are_the_likeliest_tokens_of_the_whole_sequence(model, each):
    """Prompts about shared ECGs, generated from prefixes, against the model run on prompts and answers at once."""
    made, prompts = examples(4), []
    for number in range(4):
        text, ecgs = made[number // 2]
        prompts.append((ecgs, np.append(text.ids[:-3], 7 + number).astype(np.int32)))
    batch, rows = prompt_batch(IDS, prompts, 4, LONGEST, each)
    assert batch["signals"].shape == (4 // each, 2, 12, SAMPLES)
    tokens = np.asarray(generate(model, **batch, max_new_tokens=4))[rows]
    whole, shown = np.zeros((4, 32), np.int32), np.zeros((4, 2, 12, SAMPLES), np.float32)
    for row, ((ecgs, text), answer) in enumerate(zip(prompts, tokens)):
        sequence = np.append(render(IDS, Text(text, np.zeros(len(text), bool), len(text)), ecgs, LONGEST)[0], answer)
        whole[row, -len(sequence) :], shown[row, : len(ecgs)] = sequence, np.stack(ecgs)
    graphdef, state = nnx.split(model)

    @jax.jit
    def logits(state: nnx.State) -> jax.Array:
        merged = nnx.merge(graphdef, state)
        return merged.logits(merged.hidden(whole, whole > 0, signals=shown))

    np.testing.assert_array_equal(logits(state)[:, -5:-1].argmax(axis=-1), tokens)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [(8, 1, 1), (2, 2, 2)])
def test_a_mesh_computes_what_one_device_does(layout):
    batch = batch_of([[each] for each in examples(8)])
    found = []
    for mesh in (make_mesh(1, 1, 1, jax.devices()[:1]), make_mesh(*layout)):
        with jax.set_mesh(mesh):
            make = partial(make_ecg_input, PATCHES, EncoderConfig(), SAMPLES)
            settings = ModelConfig(width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=64)
            parts = build_model(settings, LoraConfig(), 0, 64, 40, mesh, IDS.place, ecg_input=make)

            def loss(trained, frozen, batch, parts=parts):
                return answer_loss(nnx.merge(parts.graphdef, trained, frozen), batch)

            loss, gradients = jax.jit(jax.value_and_grad(loss))(parts.trained, parts.frozen, put_batch(batch, mesh))
            found.append((float(loss), np.asarray(gradients["ecg_input"]["map"]["kernel"][...])))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-4)


@pytest.mark.parametrize("rank, train_encoder", [(0, False), (0, True), (4, False), (4, True)])
def test_a_frozen_encoder_is_frozen_and_its_connector_is_trained(rank, train_encoder):
    mesh = make_mesh(8, 1, 1)
    config = EcgInputConfig("encoder", 1, "linear", train_encoder)
    make = partial(make_ecg_input, config, EncoderConfig("mlae", "tiny"), SAMPLES)
    settings = ModelConfig(width=32, layers=1, heads=4, kv_heads=2, head_dim=8, mlp_width=64)
    parts = abstract_model(settings, replace(LoraConfig(), rank=rank), 64, 40, mesh, IDS.place, make)
    assert "connector" in parts.trained["ecg_input"]
    assert ("encoder" in parts.trained["ecg_input"]) == train_encoder
    assert ("encoder" in parts.frozen.get("ecg_input", {})) == (not train_encoder)
    assert ("embedding" in parts.trained) == (rank == 0)


def test_for_a_checkpoint_only_what_is_frozen_is_made():
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    config = EcgInputConfig("encoder", 1, "linear")
    make = partial(make_ecg_input, config, EncoderConfig("mlae", "tiny"), SAMPLES)
    settings = ModelConfig(width=32, layers=1, heads=4, kv_heads=2, head_dim=8, mlp_width=64)
    how = {"first_new_id": IDS.place, "ecg_input": make}
    begun = build_model(settings, LoraConfig(), 0, 64, 40, mesh, **how)
    restored = build_model(settings, LoraConfig(), 0, 64, 40, mesh, **how, to_restore=True)
    assert {type(leaf) for leaf in jax.tree.leaves(restored.trained)} == {jax.ShapeDtypeStruct}
    assert [leaf.shape for leaf in jax.tree.leaves(restored.trained)] == [leaf.shape for leaf in jax.tree.leaves(begun.trained)]
    for ours, expected in zip(jax.tree.leaves(restored.frozen), jax.tree.leaves(begun.frozen), strict=True):
        np.testing.assert_array_equal(ours, expected)
