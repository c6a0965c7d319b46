import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.published import published_id
from ecgbyte_jax.errors import TokenizerError
from tests.ecg.plainly import encode_plainly, symbols

# Few letters and long runs.
corpora = (
    st.integers(1, 5)
    .flatmap(lambda letters: st.lists(st.tuples(st.integers(0, letters - 1), st.integers(1, 6)), min_size=1, max_size=40))
    .map(lambda runs: np.concatenate([np.full(length, letter, np.uint8) for letter, length in runs]))
)
pytestmark = pytest.mark.filterwarnings("ignore:.*merges made")


def test_worked_example():
    # aaabdaaabac: 'aa' occurs 4 times (overlaps count), then 'aa' 'a' and 'a' 'b' twice each: the smaller left id wins.
    bpe = BPE.train(symbols("aaabdaaabac"), 3)
    a, b, aa, ab = 0, 1, 26, 27
    assert bpe.merges.tolist() == [[a, a], [a, b], [aa, ab]]
    assert bpe.counts.tolist() == [4, 2, 2]
    assert bpe.encode(symbols("aaabdaaabac")).tolist() == [28, 3, 28, a, 2]
    assert b == 1 and bpe.token(28).tolist() == symbols("aaab").tolist()


@pytest.mark.parametrize(
    "boundary, merges",
    [(None, [[0, 1], [26, 26]]), ("record", [[0, 1], [26, 26]]), ("lead", [[0, 1]])],
)
def test_no_token_crosses_a_boundary(boundary, merges):
    corpus = symbols("abababab").reshape(2, 2, 2)  # two records of two leads, 'ab' each
    assert BPE.train(corpus, 2, boundary=boundary).merges.tolist() == merges


def test_training_matches_the_published_trace(shared):
    published = np.load(shared / "fixtures/ecg_byte/bpe_training.npz")
    bpe = BPE.train(published["symbols"], 1000)
    np.testing.assert_array_equal(published_id(bpe.merges), published["trace"][:, :2])
    np.testing.assert_array_equal(bpe.counts, published["trace"][:, 2])
    assert bpe.merges.dtype == np.int32 and bpe.counts.dtype == np.int64


@given(corpora, corpora, st.integers(1, 12))
def test_encoding_is_the_longest_match(corpus, text, num_merges):
    bpe = BPE.train(corpus, num_merges)
    ids = bpe.encode(text)
    assert ids.dtype == np.int32 and ids.tolist() == encode_plainly(bpe.tokens, text)
    np.testing.assert_array_equal(bpe.decode(ids), text)


@given(corpora, st.integers(1, 30), st.integers(1, 40))
def test_a_batch_is_encoded_row_by_row(corpus, length, rows):
    bpe = BPE.train(corpus, 8)
    batch = np.resize(corpus, (rows, length))
    for row, ids in zip(batch, bpe.encode_batch(batch), strict=True):
        np.testing.assert_array_equal(ids, bpe.encode(row))


@given(corpora, corpora)
def test_offsets_are_the_samples_at_which_tokens_start(corpus, text):
    bpe = BPE.train(corpus, 8)
    ids, offsets = bpe.encode(text, return_offsets=True)
    assert offsets.dtype == np.int32 and offsets.shape == ids.shape
    for id, start in zip(ids, offsets):
        token = bpe.token(id)
        np.testing.assert_array_equal(text[start : start + len(token)], token)
    assert offsets[0] == 0 and offsets[-1] + len(bpe.token(ids[-1])) == len(text)


def test_offsets_of_a_batch():
    bpe = BPE.train(symbols("aabaab"), 2)  # aa, aab
    ids, offsets = bpe.encode_batch(np.stack([symbols("aabc"), symbols("caab")]), return_offsets=True)
    assert [row.tolist() for row in ids] == [[27, 2], [2, 27]]
    assert [row.tolist() for row in offsets] == [[0, 3], [0, 1]]


def test_the_later_of_two_tokens_with_equal_spelling_wins():
    bpe = BPE.of_merges(np.array([[0, 0], [26, 0], [0, 26]]), np.array([3, 2, 1]))  # aa, aa+a, a+aa
    assert bpe.encode(symbols("aaa")).tolist() == [28]


def test_training_stops_when_no_pair_is_left_and_reports_the_number_of_merges():
    with pytest.warns(UserWarning, match="2 of 50 merges made"):
        assert BPE.train(symbols("abab"), 50).merges.tolist() == [[0, 1], [26, 26]]


def test_progress_reports_merges_and_the_fraction_of_the_work():
    seen = []
    BPE.train(np.tile(symbols("aaaabc"), 50), 5, progress=lambda made, share: seen.append((made, share)))
    made, shares = zip(*seen)
    assert made == (1, 2, 3, 4, 5)
    assert list(shares) == sorted(shares) and shares[0] > 0 and shares[-1] == 1


def test_an_interrupted_training_leaves_the_corpus_unchanged():
    corpus = np.tile(symbols("aaaabc"), 50)
    before = corpus.copy()

    def interrupt(made: int, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BPE.train(corpus, 5, progress=interrupt)
    np.testing.assert_array_equal(corpus, before)


def test_the_hash_seed_does_not_matter():
    # Most pairs are tied in this corpus.
    program = (
        "import numpy as np; from ecgbyte_jax.ecg.bpe import BPE;"
        "bpe = BPE.train(np.random.default_rng(0).integers(0, 26, 400).astype(np.uint8), 200); print(bpe.merges.tolist())"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] and outputs[0].startswith(b"[[")


@pytest.mark.parametrize(
    "corpus, merges, message",
    [
        (np.array([0, 26], np.uint8), 1, "symbol 26 found, 0 to 25 expected"),
        (np.array([0, 1], np.int64), 1, "type int64 found, uint8 expected"),
        (np.empty(0, np.uint8), 1, "the corpus to train on is empty"),
        (iter([]), 1, "the corpus to train on is empty"),
        (np.empty((2, 12, 0), np.uint8), 1, "the corpus to train on is empty"),
        (symbols("ab"), 0, "num_merges 0 found, 1 to 65509 expected"),
        (symbols("ab"), -3, "num_merges -3 found"),
        (symbols("ab"), 65510, "num_merges 65510 found, 1 to 65509 expected, so that ids fit in 16 bits"),
    ],
)
def test_an_invalid_corpus_or_number_of_merges_is_refused(corpus, merges, message):
    with pytest.raises(TokenizerError, match=message):
        BPE.train(corpus, merges)


@pytest.mark.parametrize("boundary", ["record", "lead"])
def test_records_of_no_samples_add_nothing(boundary):
    with pytest.raises(TokenizerError, match="the corpus to train on is empty"):
        BPE.train(np.empty((2, 12, 0), np.uint8), 1, boundary=boundary)
    records = [np.empty((12, 0), np.uint8), symbols("abab").reshape(1, 4), np.empty((0, 4), np.uint8)]
    bpe = BPE.train(records, 2, boundary=boundary)
    assert bpe.merges.tolist() == BPE.train(records[1:2], 2, boundary=boundary).merges.tolist()


@pytest.mark.parametrize(
    "encode, message",
    [
        (lambda bpe: bpe.encode(symbols("ab")[None]), r"shape \(1, 2\) found, \[N\] expected"),
        (lambda bpe: bpe.encode_batch(symbols("ab")), r"shape \(2,\) found"),
        (lambda bpe: bpe.encode(np.array([0, 30], np.uint8)), "symbol 30 found"),
        (lambda bpe: bpe.encode(np.array([0.5])), "type float64 found"),
        (lambda bpe: bpe.decode(np.array([0, 27])), "token id 27 found, 0 to 26 expected"),
        (lambda bpe: bpe.decode(np.array([-1])), "token id -1 found"),
        (lambda bpe: bpe.decode(np.array([1.0])), "type float64 found, integers expected"),
    ],
)
def test_wrong_symbols_and_ids_are_refused(encode, message):
    with pytest.raises(TokenizerError, match=message):
        encode(BPE.train(symbols("aab"), 1))


def test_empty_input_encodes_and_decodes_to_nothing():
    bpe = BPE.train(symbols("aab"), 1)
    assert bpe.encode(np.empty(0, np.uint8)).tolist() == []
    assert bpe.decode(np.array([], np.int32)).tolist() == []


@pytest.mark.parametrize(
    "merges, message",
    [
        ([[0, 26]], "merge 0 joins 0 and 26, ids below 26 expected"),
        ([[0, 1], [-1, 0]], "merge 1 joins -1 and 0"),
        ([[0, 1 << 40]], "merge 0 joins 0 and 1099511627776"),
        ([[0, 0]] + [[26 + k, 26 + k] for k in range(60)], "spell .* symbols, at most 67108864 expected"),
    ],
)
def test_impossible_merges_are_refused(merges, message):
    with pytest.raises(TokenizerError, match=message):
        BPE.of_merges(np.array(merges), np.ones(len(merges)))


@pytest.mark.parametrize("tokens, message", [([symbols("a")], "letters a to z"), ([symbols("")], "token 26 is empty")])
def test_impossible_tokens_are_refused(tokens, message):
    letters = [symbols(chr(ord("a") + i)) for i in range(26)]
    with pytest.raises(TokenizerError, match=message):
        BPE(tokens if "letters" in message else letters + tokens)
