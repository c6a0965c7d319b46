from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.tokenizer import published_id
from ecgbyte_jax.errors import TokenizerError


def symbols(text: str) -> np.ndarray:
    return np.array([ord(letter) - ord("a") for letter in text], np.uint8)


def train_plainly(corpus: np.ndarray, num_merges: int) -> list[tuple[int, int, int]]:
    """The published rule, recounted from scratch at every merge: (left, right, count)."""
    stream, made = corpus.tolist(), []
    for new in range(26, 26 + num_merges):
        pairs = Counter(pairwise(stream))
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        made.append((left, right, pairs[left, right]))
        merged, i = [], 0
        while i < len(stream):
            match = stream[i : i + 2] == [left, right]
            merged.append(new if match else stream[i])
            i += 2 if match else 1
        stream = merged
    return made


def encode_plainly(bpe: BPE, text: np.ndarray) -> list[int]:
    """Greedy longest match over the token strings; of equal strings the later id wins."""
    spelled = {bytes(bpe.token(id)): id for id in range(bpe.vocab_size)}
    ids, i = [], 0
    while i < len(text):
        end = max(e for e in range(i + 1, len(text) + 1) if bytes(text[i:e]) in spelled)
        ids.append(spelled[bytes(text[i:end])])
        i = end
    return ids


# Few letters and long runs, so that ties and overlaps are everywhere.
corpora = (
    st.integers(1, 5)
    .flatmap(lambda letters: st.lists(st.tuples(st.integers(0, letters - 1), st.integers(1, 6)), min_size=1, max_size=40))
    .map(lambda runs: np.concatenate([np.full(length, letter, np.uint8) for letter, length in runs]))
)


def test_worked_example():
    # aaabdaaabac: 'aa' occurs 4 times (overlaps count), then 'aa' 'a' and 'a' 'b' twice each: the smaller left id wins.
    bpe = BPE.train(symbols("aaabdaaabac"), 3)
    a, b, aa, ab = 0, 1, 26, 27
    assert bpe.merges.tolist() == [[a, a], [a, b], [aa, ab]]
    assert bpe.counts.tolist() == [4, 2, 2]
    assert bpe.encode(symbols("aaabdaaabac")).tolist() == [28, 3, 28, a, 2]
    assert b == 1 and bpe.token(28).tolist() == symbols("aaab").tolist()


@given(corpora, st.integers(1, 12))
def test_training_follows_the_published_rule(corpus, num_merges):
    bpe = BPE.train(corpus, num_merges)
    assert [(*pair, count) for pair, count in zip(bpe.merges.tolist(), bpe.counts.tolist())] == train_plainly(
        corpus, num_merges
    )


@given(corpora, corpora, st.integers(1, 12))
def test_encoding_is_the_longest_match(corpus, text, num_merges):
    bpe = BPE.train(corpus, num_merges)
    ids = bpe.encode(text)
    assert ids.dtype == np.int32 and ids.tolist() == encode_plainly(bpe, text)
    np.testing.assert_array_equal(bpe.decode(ids), text)


@given(corpora, st.integers(1, 30), st.integers(1, 4))
def test_a_batch_is_encoded_row_by_row(corpus, length, rows):
    bpe = BPE.train(corpus, 8)
    batch = np.resize(corpus, (rows, length))
    for row, ids in zip(batch, bpe.encode_batch(batch), strict=True):
        np.testing.assert_array_equal(ids, bpe.encode(row))


def test_training_matches_the_published_trace(shared):
    published = np.load(shared / "fixtures/ecg_byte/bpe_training.npz")
    bpe = BPE.train(published["symbols"], 1000)
    np.testing.assert_array_equal(published_id(bpe.merges), published["trace"][:, :2])
    np.testing.assert_array_equal(bpe.counts, published["trace"][:, 2])


def test_of_two_tokens_spelled_alike_the_later_wins():
    bpe = BPE(np.array([[0, 0], [26, 0], [0, 26]]), np.array([3, 2, 1]))  # aa, aa+a, a+aa
    assert bpe.encode(symbols("aaa")).tolist() == [28]


def test_training_stops_when_no_pair_is_left():
    assert BPE.train(symbols("abab"), 50).merges.tolist() == [[0, 1], [26, 26]]


def test_progress_counts_merges():
    seen = []
    BPE.train(symbols("abcabcabc"), 3, progress=seen.append)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    "corpus, merges, message",
    [
        (np.array([3, 26], np.uint8), 5, "symbol 26 found"),
        (np.array([3, 4]), 5, "type int64"),
        (np.empty(0, np.uint8), 5, "empty"),
        (symbols("abc"), 0, "num_merges 0"),
        (symbols("abc"), 70_000, "num_merges 70000"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(corpus, merges, message):
    with pytest.raises(TokenizerError, match=message):
        BPE.train(corpus, merges)


def test_unknown_ids_are_refused():
    with pytest.raises(TokenizerError, match="token id 27 found"):
        BPE.train(symbols("aab"), 1).decode(np.array([0, 27]))


def test_a_merge_of_ids_that_do_not_exist_yet_is_refused():
    with pytest.raises(TokenizerError, match="merge 0 joins 0 and 26"):
        BPE(np.array([[0, 26]]), np.array([1]))
