"""Attention expanded to samples: sums, cuts, two ECGs, words, and a model that was trained to look at one planted pattern."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tokenizers import Tokenizer

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.encoders.config import EcgInputConfig, EncoderConfig
from ecgbyte_jax.encoders.ecg_input import make_ecg_input
from ecgbyte_jax.encoders.places import feature_places
from ecgbyte_jax.explain.explain import _answer_ids, _shares, look
from ecgbyte_jax.explain.views import METHODS, file_stem, save_view
from ecgbyte_jax.inputs.plain import Plain
from ecgbyte_jax.inputs.prompt import PromptIds
from ecgbyte_jax.inputs.text import add_ecg_tokens, train_text_tokenizer
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.sharding import make_mesh
from ecgbyte_jax.settings import AttendSettings
from ecgbyte_jax.train.restore import Trained
from tests.prompts import plainly

SAMPLES = 24  # of a segment; the planted pattern takes 8 of them in one lead
ATTEND = AttendSettings()
QUESTION = "Which pattern?"
ASKED = ((QUESTION, ""),)
ANSWERS = ("spike", "step")


def planted(rng, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """(clean mV [12, T] of slow noise in three letters with one pattern, bool [12, T] where it is)."""
    signal = np.repeat(rng.choice([-0.1, 0.0, 0.1], (12, SAMPLES // 4)), 4, axis=1)
    lead, start = rng.integers(12), rng.integers(SAMPLES - 8)
    signal[lead, start : start + 8] = [1.2, 1.2, 0.5, 0.5] * 2 if kind == 0 else [-1.2, -1.2, -0.5, -0.5] * 2
    where = np.zeros(signal.shape, bool)
    where[lead, start : start + 8] = True
    return signal, where


@pytest.fixture(scope="module")
def parts() -> Trained:
    return untrained(layers=2)


def untrained(layers: int, seed: int = 0) -> Trained:
    """A random model of 250 places with its tokenizers."""
    rng = np.random.default_rng(0)
    quantizer = Quantizer(-1.0, 1.0)
    corpus = np.stack([quantizer.encode(planted(rng, i % 2)[0]) for i in range(60)])
    tokenizer = ECGTokenizer(quantizer, BPE.train(corpus, 60))
    text = train_text_tokenizer([QUESTION, *ANSWERS], 300)
    add_ecg_tokens(text, tokenizer.bpe.vocab_size)
    ids = PromptIds.of(text, tokenizer.bpe.vocab_size)
    config = DecoderConfig(
        vocab_size=len(text), width=48, layers=layers, heads=2, kv_heads=2, head_dim=24, mlp_width=96, max_positions=270,
        rope_theta=1e4,
    )  # fmt: skip
    mesh = make_mesh(1, 1, 1, jax.devices()[:1])
    form = Plain.of(Tokenizer.from_str(text.backend_tokenizer.to_str()), ids)
    return Trained(Decoder(config, nnx.Rngs(seed)), mesh, ids, form, text, tokenizer, 250)


def answer_ids(parts, kind: int) -> np.ndarray:
    return np.array(parts.text_tokenizer(ANSWERS[kind], add_special_tokens=False).input_ids, np.int32)


def check_sums(view) -> None:
    """What the tokens got is what the samples got, by NumPy sample by sample."""
    for ecg in view.ecgs:
        lengths = np.diff(np.append(ecg.offsets, ecg.signal.size))
        token_of = np.searchsorted(ecg.offsets, np.arange(ecg.signal.size), side="right") - 1
        for name in METHODS:
            kept = len(ecg.tokens[name])
            np.testing.assert_allclose(ecg.samples[name].sum(), ecg.tokens[name].sum(), rtol=1e-5, atol=1e-7)
            expected = [ecg.tokens[name][t] / lengths[t] if t < kept else 0.0 for t in token_of]
            np.testing.assert_allclose(ecg.samples[name].ravel(), expected, rtol=1e-5, atol=1e-9)
        np.testing.assert_array_equal(ecg.seen.ravel(), token_of < len(ecg.tokens["attention"]))
        assert ecg.samples["attention"].dtype == np.float32 and ecg.samples["attention"].shape == (12, SAMPLES)


def test_samples_sum_to_their_tokens_and_each_belongs_to_one(parts, rng):
    signal, _ = planted(rng, 0)
    ids = parts.ecg_tokenizer.encode(signal)
    view = look(parts, [ids], ASKED, answer_ids(parts, 0), ATTEND)
    check_sums(view)
    assert view.ecgs[0].seen.all()
    np.testing.assert_array_equal(view.ecgs[0].signal, parts.ecg_tokenizer.decode(ids).astype(np.float32))
    # ECG, words and the three markers around them make the whole row, and the first row sums to 1.
    whole = view.ecgs[0].tokens["attention"].sum() + view.word_weights["attention"].sum()
    markers = view.prompt["attention"][[0, 1, len(ids) + 2]].sum()
    np.testing.assert_allclose(whole + markers, view.prompt["attention"].sum(), rtol=1e-5)
    assert view.words == ("Which", "pattern?") and (view.word_weights["attention"] > 0).all()


def test_an_ecg_that_was_cut_has_a_mask_and_nothing_beyond_it(parts, rng):
    ids = parts.ecg_tokenizer.encode(planted(rng, 0)[0])
    short = Trained(**{**vars(parts), "max_length": 25})
    view = look(short, [ids], ASKED, answer_ids(parts, 0), ATTEND)
    check_sums(view)
    (ecg,) = view.ecgs
    assert 0 < ecg.seen.sum() < ecg.seen.size and (ecg.samples["attention"][~ecg.seen] == 0).all()
    assert len(view.prompt["attention"]) == 24  # the room for an eos stays


def test_each_of_two_ecgs_has_its_own_array(parts, rng):
    both = [parts.ecg_tokenizer.encode(planted(rng, kind)[0]) for kind in (0, 1)]
    roomy = Trained(**{**vars(parts), "max_length": 260})
    view = look(roomy, both, ASKED, np.empty(0, np.int32), ATTEND)  # an empty answer: its end is attributed
    check_sums(view)
    assert len(view.ecgs) == 2
    for ecg, ids in zip(view.ecgs, both):
        np.testing.assert_array_equal(ecg.signal, parts.ecg_tokenizer.decode(ids).astype(np.float32))
    first, second = (len(ecg.tokens["attention"]) for ecg in view.ecgs)
    prompt = view.prompt["attention"]
    np.testing.assert_array_equal(view.ecgs[1].tokens["attention"], prompt[first + 4 : first + 4 + second])


def test_of_a_text_longer_than_the_models_positions_the_beginning_is_attributed(parts, rng):
    ids = parts.ecg_tokenizer.encode(planted(rng, 0)[0])
    answer = np.resize(answer_ids(parts, 0), 400)
    check_sums(look(parts, [ids], ASKED, answer, ATTEND))


def test_the_generated_tokens_are_used_where_the_row_has_them(parts):
    np.testing.assert_array_equal(_answer_ids(parts, {"answer": "step"}), answer_ids(parts, 1))
    generated = {"answer": "step", "tokens": [7, 8, parts.ids.eos]}
    np.testing.assert_array_equal(_answer_ids(parts, generated), generated["tokens"])


def test_an_eos_after_the_answer_is_not_attributed(parts, rng):
    ids = parts.ecg_tokenizer.encode(planted(rng, 0)[0])
    without, with_eos = (look(parts, [ids], ASKED, np.array(answer), ATTEND) for answer in ([7, 8], [7, 8, parts.ids.eos]))
    for name in METHODS:
        np.testing.assert_array_equal(without.prompt[name], with_eos.prompt[name])
    assert without.log_prob == with_eos.log_prob


def test_the_file_holds_the_arrays_under_their_names(parts, rng, tmp_path):
    row = {"id": "../train/0 1", "segment": 2, "question": QUESTION, "answer": "spike"}
    view = look(parts, [parts.ecg_tokenizer.encode(planted(rng, 0)[0])], ASKED, answer_ids(parts, 0), ATTEND)
    save_view(view, row, tmp_path / f"{file_stem(row)}.npz")
    (path,) = tmp_path.iterdir()
    assert path.name.endswith(".s2.npz") and "/" not in path.name and not path.name.startswith(".")
    with np.load(path, allow_pickle=False) as found:
        for name in METHODS:
            assert found[name].shape == (12, SAMPLES) and found[name].dtype == np.float32
            np.testing.assert_allclose(found[name].sum(), found[f"tokens_{name}"].sum(), rtol=1e-5, atol=1e-7)
            assert found[f"words_{name}"].shape == found["words"].shape == (2,)
        assert found["seen"].dtype == bool and found["leads"][6] == "V1"
        assert json.loads(str(found["about"]))["segment"] == 2
    first = path.read_bytes()
    save_view(view, row, path)
    assert path.read_bytes() == first
    assert file_stem(row) != file_stem(row | {"id": ".._train_0_1"})


@pytest.mark.parametrize(
    "config",
    [pytest.param(EcgInputConfig("encoder", 3, "query"), marks=pytest.mark.slow), EcgInputConfig("elf_base")],
    ids=["query", "one"],
)
def test_vectors_give_their_weight_to_what_they_were_made_of_where_that_can_be_told(parts, rng, config):
    encoder, ids = EncoderConfig("mtae", "tiny"), replace(parts.ids, vectors=config.vectors)
    model = nnx.clone(parts.model)
    model.ecg_input, model.vector_id = make_ecg_input(config, encoder, SAMPLES, 48, nnx.Rngs(1)), ids.place
    trained = replace(parts, model=model, ids=ids, places=feature_places(config, encoder, SAMPLES))
    signals = [planted(rng, kind)[0].astype(np.float32) for kind in (0, 1)]
    view = look(trained, signals, ASKED, answer_ids(parts, 0), ATTEND)
    turned = look(trained, signals[::-1], ASKED, answer_ids(parts, 0), ATTEND)
    assert abs(view.log_prob - turned.log_prob) > 1e-6
    for number, (ecg, signal) in enumerate(zip(view.ecgs, signals)):
        np.testing.assert_array_equal(ecg.signal, signal)
        first = 2 + number * (config.vectors + 2)  # after bos and <sig_start>
        assert ecg.seen.all() and not ecg.offsets.size
        for name in METHODS:
            np.testing.assert_array_equal(ecg.tokens[name], view.prompt[name][first : first + config.vectors])
        if config.kind == "elf_base":
            assert ecg.samples == {} and "all samples alike" in ecg.about
            continue
        shares = np.asarray(_shares(*nnx.split(model.ecg_input), signal))  # a feature is a sample of all leads
        for name in METHODS:
            expected = np.broadcast_to(ecg.tokens[name] @ shares / 12, (12, SAMPLES))
            np.testing.assert_allclose(ecg.samples[name], expected, rtol=1e-4, atol=1e-8)


def train_to_tell_patterns(parts, steps: int = 150) -> Trained:
    """The model after so many steps on planted patterns; loss on the answer, rows of one length."""
    rng, room = np.random.default_rng(1), 260
    graphdef, params = nnx.split(parts.model)
    optimizer = optax.adam(5e-3)

    def batch() -> dict:
        kinds = rng.integers(2, size=8)
        rows = []
        for kind in kinds:
            ids = parts.ecg_tokenizer.encode(planted(rng, kind)[0])
            question = np.array(parts.text_tokenizer(QUESTION, add_special_tokens=False).input_ids, np.int32)
            sequence, supervised = plainly(parts.ids, [ids], question, answer_ids(parts, kind), room)
            rows.append([np.pad(part, (room - len(sequence), 0)) for part in (sequence, np.ones_like(supervised), supervised)])
        return dict(zip(("input_ids", "attention_mask", "loss_mask"), map(np.stack, zip(*rows))))

    @jax.jit
    def step(params, state, batch):
        def loss_of(params):
            logits = nnx.merge(graphdef, params)(batch["input_ids"], batch["attention_mask"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], batch["input_ids"][:, 1:])
            return jnp.sum(losses * batch["loss_mask"][:, 1:]) / batch["loss_mask"].sum()

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    for _ in range(steps):
        params, state, loss = step(params, state, batch())
    assert loss < 0.05, "the model has not learnt to tell the patterns"
    return Trained(**{**vars(parts), "model": nnx.merge(graphdef, params)})


@pytest.mark.slow
def test_a_model_trained_to_look_at_a_planted_pattern_attends_there():
    """One layer, so that the answer can be read off the pattern alone: its 8 of 288 samples draw the attention.

    A second layer may carry the pattern to other tokens first. Gradients are no measure here: where the model is sure, the
    answer's log-probability hardly changes with the pattern.
    """
    parts, rng = untrained(layers=1), np.random.default_rng(2)
    trained = train_to_tell_patterns(parts)
    shares: dict[str, list[float]] = {"trained": [], "untrained": []}
    for number in range(12):
        signal, where = planted(rng, number % 2)
        ids = parts.ecg_tokenizer.encode(signal)
        for name, model in (("trained", trained), ("untrained", parts)):
            view = look(model, [ids], ASKED, answer_ids(parts, number % 2), ATTEND)
            weights = view.ecgs[0].samples["attention"]
            shares[name].append(float(weights[where].sum() / weights.sum()))
            assert name == "untrained" or view.log_prob > np.log(0.9)
    means = {name: np.mean(found) for name, found in shares.items()}
    assert means["untrained"] < 0.1 and means["trained"] > 0.2, means
