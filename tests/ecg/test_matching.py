import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_jax.ecg import matching
from ecgbyte_jax.ecg.matching import Automaton, ranges
from tests.ecg.plainly import encode_plainly, symbols

LETTERS = [np.array([letter], np.uint8) for letter in range(26)]


def runs(letters: int, longest: int, most: int) -> st.SearchStrategy[np.ndarray]:
    run = st.tuples(st.integers(0, letters - 1), st.integers(1, longest))
    return st.lists(run, min_size=1, max_size=most).map(
        lambda pairs: np.concatenate([np.full(length, letter, np.uint8) for letter, length in pairs])
    )


# Arbitrary vocabularies, not only those of merges: missing prefixes, nested tokens, duplicates.
vocabularies = st.integers(1, 4).flatmap(lambda letters: st.lists(runs(letters, 40, 4), max_size=12))


@settings(max_examples=300)
@given(vocabularies, st.lists(runs(4, 90, 12), min_size=1, max_size=6), st.booleans())
def test_encoding_is_the_longest_match(vocabulary, texts, side_by_side):
    automaton = Automaton.of(LETTERS + vocabulary)
    length = max(map(len, texts))
    rows = np.stack([np.resize(text, length) for text in texts])
    with pytest.MonkeyPatch.context() as patch:
        if side_by_side:
            for name, value in {"_FEW_ROWS": 0, "_LANES": 4, "_BLOCK": 3, "_STEPS": 6}.items():
                patch.setattr(matching, name, value)
        encoded = automaton.encode(rows)
    assert len(encoded) == len(rows)
    for ids, row in zip(encoded, rows):
        assert ids.dtype == np.int32 and ids.tolist() == encode_plainly(LETTERS + vocabulary, row)


def test_the_rest_of_a_failed_match_is_matched_again():
    # 'abcde' fails at x: 'abc' was the longest token so far, and the rest, 'de', is another.
    automaton = Automaton.of([*LETTERS, symbols("abc"), symbols("abcdef"), symbols("de")])
    assert automaton.encode(symbols("abcdex")[None])[0].tolist() == [26, 28, 23]


@pytest.mark.parametrize("length", [31, 32, 33, 63, 64, 65, 1000])
def test_runs_longer_than_the_table_is_wide(length):
    tokens = [*LETTERS, np.zeros(2, np.uint8), np.zeros(48, np.uint8)]
    text = np.append(np.zeros(length, np.uint8), 1).astype(np.uint8)
    assert Automaton.of(tokens).encode(text[None])[0].tolist() == encode_plainly(tokens, text)


def test_empty_rows_have_no_ids():
    automaton = Automaton.of(LETTERS)
    assert [ids.tolist() for ids in automaton.encode(np.empty((3, 0), np.uint8))] == [[], [], []]
    assert automaton.encode(np.empty((0, 5), np.uint8)) == []


def test_ranges():
    assert ranges(np.array([5, 9, 2]), np.array([2, 0, 3])).tolist() == [5, 6, 2, 3, 4]
