import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_jax.ecg.merging import NO_TOKEN, find_merges, read_stream
from ecgbyte_jax.errors import TokenizerError
from tests.ecg.plainly import symbols, train_plainly


@st.composite
def corpora(draw) -> np.ndarray:
    """uint8 [records, leads, samples]: alphabets of 1 to 26, short and long runs, with many ties and overlaps."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 40))
    letters, longest = draw(st.integers(1, 26)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = int(np.prod(shape))
    runs = np.repeat(rng.integers(0, letters, size), rng.integers(1, longest + 1, size))
    return runs[:size].reshape(shape).astype(np.uint8)


def parts(corpus: np.ndarray, boundary: str | None) -> list[np.ndarray]:
    rows = {None: 1, "record": len(corpus), "lead": len(corpus) * corpus.shape[1]}[boundary]
    return list(corpus.reshape(rows, -1))


@settings(max_examples=400)
@given(
    corpora(),
    st.integers(1, 40),
    st.sampled_from([None, "record", "lead"]),
    st.integers(2, 60),
    st.sampled_from([1, 2, 7, 1e9]),  # indexed immediately, midway, never
)
def test_every_merge_and_count_follows_the_rule(corpus, num_merges, boundary, chunk, shrink):
    merges, counts = find_merges(corpus, num_merges, boundary, chunk=chunk, shrink=shrink)
    merged = [(*pair, count) for pair, count in zip(merges.tolist(), counts.tolist())]
    assert merged == train_plainly(parts(corpus, boundary), num_merges)


@pytest.mark.parametrize("shrink", [7, 1e9])
def test_more_merges_than_a_byte_holds_follow_the_rule(rng, shrink):
    # 229 merges exhaust the byte ids of the scan; random symbols keep the stream from shrinking first.
    corpus = rng.integers(0, 26, 3000).astype(np.uint8)
    merges, counts = find_merges(corpus, 300, shrink=shrink)
    assert [(*pair, count) for pair, count in zip(merges.tolist(), counts.tolist())] == train_plainly([corpus], 300)


@pytest.mark.parametrize("boundary", [None, "record", "lead"])
def test_arrays_files_and_iterators_give_the_same_merges(rng, tmp_path, boundary):
    corpus = np.repeat(rng.integers(0, 5, (4, 3, 50)), 4, axis=2).astype(np.uint8)
    np.save(tmp_path / "corpus.npy", corpus)
    file = np.load(tmp_path / "corpus.npy", mmap_mode="r")
    expected = find_merges(corpus, 30, boundary)
    for same in (file, list(corpus), (record for record in corpus), np.asfortranarray(corpus)):
        for result, reference in zip(find_merges(same, 30, boundary), expected, strict=True):
            np.testing.assert_array_equal(result, reference)
    np.testing.assert_array_equal(corpus, np.load(tmp_path / "corpus.npy"))  # only read


def test_the_stream_is_marked_at_its_ends_and_boundaries():
    corpus = [np.array([[0, 1], [2, 3]], np.uint8), np.array([[4, 5], [6, 7]], np.uint8)]
    x = NO_TOKEN
    assert read_stream(corpus, None).tolist() == [x, 0, 1, 2, 3, 4, 5, 6, 7, x]
    assert read_stream(corpus, "record").tolist() == [x, 0, 1, 2, 3, x, 4, 5, 6, 7, x, x]
    assert read_stream(corpus, "lead").tolist() == [x, 0, 1, x, 2, 3, x, 4, 5, x, 6, 7, x, x]


def test_an_unknown_boundary_is_refused():
    with pytest.raises(TokenizerError, match="boundary 'segment' found, None, 'record' or 'lead' expected"):
        find_merges(symbols("abab"), 1, "segment")


def test_a_wrong_symbol_after_the_first_chunk_is_refused():
    with pytest.raises(TokenizerError, match="symbol 26 found"):
        find_merges([symbols("abab"), np.array([3, 26], np.uint8)], 1, chunk=2)
