import os
import pickle
import string
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgbyte_jax.ecg.published import compact_id, published_id, read_published
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import TokenizerError

VOCAB = {number: chr(number) for number in range(256)} | {256: "aa", 257: "aab"}
MERGES = [([97, 97], 256), ([97, 97, 98], 257)]


def write(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("name", ["ecg_byte_tokenizer_1000_25", "ecg_byte_tokenizer_5000_500000"])
@pytest.mark.parametrize("length", ["2s", "10s"])
def test_published_tokenizers_give_the_published_ids(shared, name, length):
    published = np.load(shared / "fixtures/ecg_byte/encoding.npz")
    tokenizer = ECGTokenizer.from_published(shared / f"data/ecg_byte_tokenizers/{name}.pkl", -0.5, 0.5)
    segments = published[f"segments_{length}"]
    segments = segments.reshape(len(segments), -1)
    padded = np.resize(segments, (40, segments.shape[1]))  # enough rows to be walked in parallel
    for batch in (segments, padded):
        for i, ids in enumerate(tokenizer.bpe.encode_batch(batch)[: len(segments)]):
            np.testing.assert_array_equal(published_id(ids), published[f"{name}.{length}.{i}"])
            np.testing.assert_array_equal(compact_id(published_id(ids)), ids)
            np.testing.assert_array_equal(tokenizer.bpe.decode(ids), segments[i])
    assert tokenizer.bpe.merges is None


def test_published_ids():
    assert published_id(np.array([0, 25, 26, 27])).tolist() == [97, 122, 256, 257]
    assert compact_id(np.array([97, 122, 256, 257])).tolist() == [0, 25, 26, 27]
    with pytest.raises(TokenizerError, match="published id 96 found"):
        compact_id(np.array([97, 96]))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_is_read(tmp_path, protocol):
    tokens = read_published(write(tmp_path / "t.pkl", (VOCAB, MERGES), protocol))
    assert [token.tolist() for token in tokens[26:]] == [[0, 0], [0, 0, 1]]
    assert [token.tolist() for token in tokens[:26]] == [[letter] for letter in range(26)]


def test_saving_a_published_tokenizer_keeps_its_tokens(tmp_path):
    tokenizer = ECGTokenizer.from_published(write(tmp_path / "t.pkl", (VOCAB, MERGES)), -0.5, 0.5)
    tokenizer.save(tmp_path / "t.json")
    loaded = ECGTokenizer.load(tmp_path / "t.json")
    assert loaded.bpe.merges is None and loaded.bpe.vocab_size == 28
    assert loaded.bpe.encode(np.array([0, 0, 1, 0, 0], np.uint8)).tolist() == [27, 26]


class Touch:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_does_nothing(tmp_path):
    trap, made = tmp_path / "trap.pkl", tmp_path / "made"
    for content in (Touch(made), (VOCAB, [Touch(made)]), ({97: Touch(made)}, [])):
        write(trap, content)
        with pytest.raises(TokenizerError, match=r"trap.pkl: the pickle needs posix.system; only dict, list, tuple"):
            read_published(trap)
    assert not made.exists()
    # The trap works with the standard unpickler.
    subprocess.run([sys.executable, "-c", f"import pickle; pickle.load(open({str(trap)!r}, 'rb'))"], check=True)
    assert made.exists()


@pytest.mark.parametrize("content", [{1, 2}, b"bytes", bytearray(b"x"), np.arange(3), 1.5, None, "text", [], ({}, [])])
def test_other_pickles_are_refused(tmp_path, content):
    with pytest.raises(TokenizerError, match=r"t\.pkl"):
        read_published(write(tmp_path / "t.pkl", content))


@pytest.mark.parametrize(
    "vocab, merges, message",
    [
        (VOCAB | {97: "b"}, MERGES, "token 97 is 'b' in the vocabulary, a different string in the merges"),
        (VOCAB | {257: "ab"}, MERGES, "token 257 is 'ab' in the vocabulary, a different string"),
        (VOCAB | {257: "a+"}, MERGES, "token 257 is 'a\\+', a string of the letters a to z expected"),
        (VOCAB | {257: ""}, MERGES, "token 257 is ''"),
        (VOCAB | {257: 5}, MERGES, "token 257 is 5"),
        (VOCAB, MERGES[:1], "token 257 found, 256 expected as the last of 1 merges"),
        ({97: "a"}, [], "not a published tokenizer.*98"),
        (VOCAB, 7, "not a published tokenizer"),
        (VOCAB, [([97, 1 << 40], 256)], "not a published tokenizer"),
        (VOCAB, [("aa", 256), ("aab", 257)], "not a published tokenizer"),
    ],
)
def test_a_pickle_that_contradicts_itself_is_refused(tmp_path, vocab, merges, message):
    with pytest.raises(TokenizerError, match=message):
        read_published(write(tmp_path / "t.pkl", (vocab, merges)))


def test_truncated_missing_and_other_files_are_refused(tmp_path):
    path = write(tmp_path / "t.pkl", (VOCAB, MERGES))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TokenizerError, match="not readable as a pickle, or truncated"):
        read_published(path)
    with pytest.raises(TokenizerError, match=r"none\.pkl: .*No such file"):
        read_published(tmp_path / "none.pkl")
    with pytest.raises(TokenizerError, match="Is a directory"):
        read_published(tmp_path)


@given(st.data())
def test_damaged_pickles_give_a_typed_error_or_a_tokenizer(tmp_path_factory, data):
    content = bytearray(pickle.dumps((VOCAB, MERGES), data.draw(st.integers(0, pickle.HIGHEST_PROTOCOL))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "t.pkl"
    path.write_bytes(content)
    try:
        tokens = read_published(path)
    except TokenizerError as error:
        assert "t.pkl" in str(error)
    else:
        assert [bytes(token + 97).decode() for token in tokens[:26]] == list(string.ascii_lowercase)
