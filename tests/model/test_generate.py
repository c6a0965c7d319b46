from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.model import generate as module
from ecgbyte_jax.model.config import DecoderConfig, LongScaling
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.generate import _choose, _cut, _round, _Sampling, generate

CONFIG = DecoderConfig(
    vocab_size=40, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, mlp_width=24, max_positions=80, rope_theta=1e4
)


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(CONFIG, nnx.Rngs(0))


@pytest.fixture
def prompt(rng):
    return rng.integers(0, 40, (2, 9)).astype(np.int32), np.ones((2, 9), bool)


def test_log_probabilities_are_those_of_the_chosen_tokens(model, prompt):
    ids, mask = prompt
    tokens, log_probs = generate(model, ids, mask, 5, return_log_probs=True)
    all_log_probs = jax.nn.log_softmax(model(np.concatenate([ids, tokens], axis=1)))[:, 8:-1]
    np.testing.assert_allclose(
        log_probs, np.take_along_axis(np.asarray(all_log_probs), np.asarray(tokens)[..., None], 2)[..., 0], atol=1e-5
    )


def test_after_a_row_s_end_log_probabilities_are_zero(model, prompt):
    stop = int(generate(model, *prompt, 5)[0, 0])
    tokens, log_probs = generate(model, *prompt, 5, stop_ids=(stop,), return_log_probs=True)
    assert tokens[0, 0] == stop and log_probs[0, 0] < 0 and (np.asarray(log_probs)[0, 1:] == 0).all()


def test_the_same_key_draws_the_same_tokens_and_another_key_different_ones(model, prompt):
    drawn = [np.asarray(generate(model, *prompt, 12, temperature=1.5, key=jax.random.key(k))) for k in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_top_k_1_and_a_small_top_p_leave_only_the_likeliest_token(model, prompt):
    greedy = generate(model, *prompt, 6)
    for only in ({"top_k": 1}, {"top_p": 1e-6}):
        drawn = generate(model, *prompt, 6, temperature=1.0, key=jax.random.key(0), **only)
        np.testing.assert_array_equal(drawn, greedy)


LONG = LongScaling((1.0, 2.0, 3.0, 4.0), (4.0, 5.0, 6.0, 7.0), 9, 1.2)


def test_new_tokens_that_would_change_the_rotary_frequencies_are_refused(prompt):
    model, (ids, mask) = Decoder(replace(CONFIG, rope_scaling=LONG), nnx.Rngs(0)), prompt
    with pytest.raises(ConfigError, match="row 0: a prompt of 9 tokens and 1 new ones found, together at most 9 or a longer"):
        generate(model, ids, mask, 1)
    shared = ids[:1, :5], mask[:1, :5]
    with pytest.raises(ConfigError, match="shared: a prefix found in prompts of up to and of more than 9 tokens"):
        generate(model, ids[:, :5], np.array([[False] * 4 + [True], [True] * 5]), 1, shared=shared)
    # Of 10 tokens, a prefix and the last token among them: long from the first token on.
    tokens = generate(model, ids[:, :5], mask[:, :5], 4, shared=shared)
    whole = np.concatenate([ids[[0, 0], :5], ids[:, :5], tokens], axis=1)
    np.testing.assert_array_equal(model(whole).argmax(-1)[:, 9:-1], tokens)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(0, 6), st.floats(0.05, 1.0), st.sampled_from([0.5, 1.0, 2.0]))
def test_only_tokens_that_top_k_and_top_p_leave_are_drawn(seed, top_k, top_p, temperature):
    logits = np.random.default_rng(seed).normal(size=10).astype(np.float32) * 2
    order = np.argsort(-logits)
    left = order[: top_k or 10]
    shares = np.exp(logits[left] / temperature - np.max(logits / temperature))
    shares /= shares.sum()
    nucleus = left[: np.searchsorted(np.cumsum(shares), top_p - 1e-5) + 1]
    rows = jnp.tile(logits, (400, 1))
    drawn = np.asarray(_choose(rows, _Sampling(temperature, top_k, top_p), jax.random.key(seed)))
    assert set(drawn) <= set(nucleus.tolist())


def test_sampling_follows_the_distribution():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    drawn = np.asarray(_choose(jnp.tile(logits, (20_000, 1)), _Sampling(1.0, 0, 1.0), jax.random.key(0)))
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, [0.5, 0.3, 0.2], atol=0.02)


@pytest.mark.parametrize("length, target", [(1, 32), (32, 32), (33, 36), (57, 60), (65, 72), (400, 416), (520, 576)])
def test_prompts_are_rounded_to_few_lengths(length, target):
    mask = np.arange(600) >= 600 - np.array([[1], [length]])
    ((ids, cut),) = _cut([(np.arange(600)[None].repeat(2, 0), mask)], (_round(length),))
    assert ids.shape == cut.shape == (2, target)
    np.testing.assert_array_equal(cut.sum(1), [1, length])
    np.testing.assert_array_equal(ids[1, -length:], np.arange(600 - length, 600))


def test_prompts_of_similar_lengths_share_one_program(model, rng):
    before = module._generate._cache_size()
    rows = {}
    for length in (37, 38, 40):
        ids = rng.integers(0, 40, (2, length)).astype(np.int32)
        rows[length] = ids, generate(model, ids, np.ones_like(ids), 3)
    assert module._generate._cache_size() == before + 1
    for ids, tokens in rows.values():
        finished = np.concatenate([ids, tokens], axis=1)
        np.testing.assert_array_equal(model(finished).argmax(-1)[:, -4:-1], tokens)


def left_padded(rows, length):
    ids, mask = np.zeros((len(rows), length), np.int32), np.zeros((len(rows), length), bool)
    for place, row in enumerate(rows):
        ids[place, length - len(row) :], mask[place, length - len(row) :] = row, True
    return ids, mask


@pytest.mark.parametrize(
    "changes",
    [{}, {"windows": (6,)}, {"rope_theta": None, "position_offset": 2}, {"heads": 4, "kv_heads": 2, "scan_layers": True}],
    ids=["rotary", "window", "learned", "stacked"],
)
def test_prompts_with_shared_prefixes_are_answered_as_complete_ones(rng, changes):
    model = Decoder(replace(CONFIG, **changes), nnx.Rngs(1))
    prefixes = [rng.integers(0, 40, length) for length in (21, 3, 34)]
    ends = [rng.integers(0, 40, length) for length in (1, 9, 5, 12, 2, 3)]
    complete = left_padded([np.concatenate([prefixes[b // 2], end]) for b, end in enumerate(ends)], 50)
    expected, expected_log_probs = generate(model, *complete, 7, return_log_probs=True)
    options = {"shared": left_padded(prefixes, 40), "return_log_probs": True}
    tokens, log_probs = generate(model, *left_padded(ends, 14), 7, **options)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(log_probs, expected_log_probs, atol=2e-5)


def test_a_prefill_in_pieces_changes_nothing(model, rng, monkeypatch):
    prompts = left_padded([rng.integers(0, 40, length) for length in (40, 31, 8, 25)], 40)
    at_once = generate(model, *prompts, 6, return_log_probs=True)
    shapes, extend = [], Decoder.extend
    monkeypatch.setattr(Decoder, "extend", lambda self, ids, *rest: shapes.append(ids.shape) or extend(self, ids, *rest))
    monkeypatch.setattr(module, "_PIECE", 39)
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    module._generate.clear_cache()
    tokens, log_probs = generate(model, *prompts, 6, return_log_probs=True)
    assert shapes[:4] == [(1, 39)] * 4
    np.testing.assert_array_equal(tokens, at_once[0])
    np.testing.assert_allclose(log_probs, at_once[1], atol=1e-5)


@pytest.mark.parametrize(("platform", "rows"), [("cpu", 1), ("cuda", 4)])
def test_a_prefill_is_in_pieces_on_the_cpu_alone_also_where_one_compiles_for_a_gpu(model, monkeypatch, platform, rows):
    shapes, extend = [], Decoder.extend
    monkeypatch.setattr(Decoder, "extend", lambda self, ids, *rest: shapes.append(ids.shape) or extend(self, ids, *rest))
    monkeypatch.setattr(module, "_PIECE", 39)
    monkeypatch.setattr(jax, "device_count", lambda: 1)  # of the host that compiles
    monkeypatch.setattr(module, "platform", lambda: platform)
    parts = [(jnp.zeros((4, 40), jnp.int32), jnp.ones((4, 40), bool))]
    key, greedy = jax.random.key(0), module._Sampling(0.0, 0, 1.0)
    module._generate.clear_cache()
    module._generate.trace(*nnx.split(model), parts, None, key, 2, (), 0, greedy)
    assert shapes[0] == (rows, 39)


def test_shared_prefixes_count_towards_the_model_s_positions(model):
    shared = left_padded([[1] * 60, [2] * 10], 64)
    generate(model, *left_padded([[3] * 5, [3] * 15], 16), 15, shared=shared)
    with pytest.raises(ConfigError, match="a prompt of 65 tokens and 16 new ones found"):
        generate(model, *left_padded([[3] * 5, [3] * 15], 16), 16, shared=shared)
    with pytest.raises(ConfigError, match="row 1 found with only padding"):
        generate(model, *left_padded([[3], [3]], 16), 3, shared=left_padded([[2], []], 4))
    with pytest.raises(ConfigError, match="P divides B"):
        generate(model, *left_padded([[3]] * 3, 16), 3, shared=shared)


def test_ids_on_padding_do_not_count(model, prompt):
    ids, mask = prompt[0].copy(), np.arange(9) >= np.array([[0], [4]])
    expected = generate(model, ids, mask, 3)
    ids[1, :4] = -100, 40, 10**6, 0
    np.testing.assert_array_equal(generate(model, ids, mask, 3), expected)


@pytest.mark.parametrize("options", [{}, {"temperature": 5.0, "key": jax.random.key(0)}, {"temperature": 5.0, "top_k": 40}])
def test_rows_that_are_no_token_are_never_generated(prompt, options):
    model = Decoder(CONFIG, nnx.Rngs(0))
    free = np.asarray(generate(model, *prompt, 12, **{"key": jax.random.key(0)} | options))
    spare = 40 - int(free.max())
    model.config = replace(CONFIG, spare_rows=spare)
    tokens, log_probs = generate(model, *prompt, 12, return_log_probs=True, **{"key": jax.random.key(0)} | options)
    assert np.asarray(tokens).max() < 40 - spare and np.isfinite(log_probs).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention_mask": np.zeros((2, 9), bool)}, "row 0 found with only padding, at least one token expected"),
        ({"attention_mask": np.ones((2, 8), bool)}, r"input_ids \(2, 9\) and attention_mask \(2, 8\)"),
        ({"attention_mask": np.arange(9) < np.array([[9], [5]])}, "row 1 found with padding after a token"),
        ({"attention_mask": np.arange(9) != np.array([[3], [0]])}, "row 0 found with padding after a token"),
        ({"input_ids": np.full((2, 9), 40)}, "input_ids: row 0 found with ids outside the vocabulary, 0 to 39 expected"),
        ({"input_ids": np.arange(18).reshape(2, 9) - 9}, "input_ids: row 0 found with ids outside"),
        ({"input_ids": np.ones((2, 9))}, "input_ids: float64 found, whole numbers expected"),
        ({"input_ids": np.ones((0, 9), int), "attention_mask": np.ones((0, 9), int)}, "no size may be 0"),
        ({"input_ids": np.ones((2, 0), int), "attention_mask": np.ones((2, 0), int)}, "no size may be 0"),
        ({"max_new_tokens": 72}, "a prompt of 9 tokens and 72 new ones found, at most the model's 80 positions"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 found, 1 or more"),
        ({"temperature": -1.0}, "temperature: -1.0 found"),
        ({"top_k": 41}, "top_k: 41 found"),
        ({"top_p": 0.0}, "top_p: 0.0 found"),
        ({"temperature": 1.0}, "temperature: 1.0 found without a `key`"),
    ],
)
def test_impossible_requests_are_refused(model, prompt, changes, message):
    request = {"input_ids": prompt[0], "attention_mask": prompt[1], "max_new_tokens": 4} | changes
    with pytest.raises(ConfigError, match=message):
        generate(model, **request)
