import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.inputs.plan import Layout, Mixture, Plan, pack

LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=60).map(np.array)


def plan(lengths, layout, batch_size=2, epochs=1.0, seed=0, mixture=None) -> Plan:
    return Plan(np.stack([lengths, np.minimum(lengths, 3)], axis=1), layout, batch_size, epochs, seed, mixture)


def rows(planned: Plan) -> list[list[int]]:
    return [row.tolist() for step in range(len(planned)) for row in planned[step].rows]


def test_packing_by_hand():
    # 6 + 4, 5 + 5, 3 + 3 + 3: the tightest row is filled first.
    rows_of = pack(np.array([3, 5, 6, 3, 4, 5, 3]), 10)
    assert rows_of[0] == rows_of[3] == rows_of[6] and rows_of[1] == rows_of[5] and rows_of[2] == rows_of[4]
    assert sorted({*rows_of.tolist()}) == [0, 1, 2]
    assert pack(np.array([8, 7, 2]), 10).tolist() == [0, 1, 0]


@given(LENGTHS)
def test_packing_fills_every_row_and_never_overfills(lengths):
    filled = sorted(np.bincount(pack(lengths, 64), lengths))
    assert sum(filled) == sum(lengths) and filled[0] > 0 and filled[-1] <= 64
    # Best fit leaves no two rows that would fit into one.
    assert len(filled) < 2 or filled[0] + filled[1] > 64


@given(LENGTHS, st.integers(1, 4), st.booleans())
def test_an_epoch_of_any_layout_holds_every_sequence_once(lengths, batch_size, packing):
    layout = Layout(64, packing, () if packing else (16, 32))
    single = plan(lengths, layout, 1)
    assert sorted(number for row in rows(single) for number in row) == list(range(len(lengths)))
    if len(single) < batch_size:
        return
    for step in range(len(planned := plan(lengths, layout, batch_size))):
        assert max(lengths[row].sum() for row in planned[step].rows) <= planned[step].length


def test_a_step_depends_only_on_its_number_and_the_seed():
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    for layout in (Layout(64), Layout(64, packing=True), Layout(64, buckets=(16, 32))):
        first, second = plan(lengths, layout, 3, 2.5), plan(lengths, layout, 3, 2.5)
        backwards = [second[step] for step in reversed(range(len(second)))][::-1]
        for step, planned in enumerate(backwards):
            assert [row.tolist() for row in planned.rows] == [row.tolist() for row in first[step].rows]
        assert rows(first) != rows(plan(lengths, layout, 3, 2.5, seed=1))


def test_each_epoch_is_reshuffled_and_may_be_partial():
    planned = rows(plan(np.full(20, 8), Layout(64), batch_size=5, epochs=2.5))
    assert len(planned) == 50 and sorted(planned[:20]) == sorted(planned[20:40]) and planned[:20] != planned[20:40]


def test_buckets_bring_similar_lengths_together():
    lengths = np.random.default_rng(0).integers(8, 64, 512)
    padded = [plan(lengths, Layout(64, buckets=buckets), 8) for buckets in ((16, 24, 32, 40, 48, 56), ())]
    places, all_places = (sum(8 * p[step].length for step in range(len(p))) for p in padded)
    assert places < 0.7 * all_places


def test_lengths_and_answer_tokens_of_a_step():
    planned = plan(np.array([9, 2, 5, 7]), Layout(16, packing=True), batch_size=1)
    assert [sorted(planned.lengths(step)[:, 0].tolist()) for step in range(2)] in ([[7, 9], [2, 5]], [[2, 5], [7, 9]])
    assert planned.answer_tokens == 8  # 3 + 3 in the fuller row, rounded up


def test_too_little_for_a_batch_is_refused():
    with pytest.raises(ShardsError, match=r"4 sequences in 2 rows and 1\.0 epochs found for train\.batch_size 3"):
        plan(np.full(4, 8), Layout(16, packing=True), batch_size=3)


@st.composite
def mixtures(draw) -> tuple[np.ndarray, list[float]]:
    """The corpus of each sequence, all corpora with some, and their shares."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    weights = draw(st.lists(st.sampled_from([0.1, 1.0, 3.0]), min_size=len(sizes), max_size=len(sizes)))
    parts = np.repeat(np.arange(len(sizes)), sizes)
    return draw(st.permutations(parts.tolist()).map(np.array)), [weight / sum(weights) for weight in weights]


@given(mixtures(), st.integers(1, 4))
def test_a_mixture_draws_its_shares_and_each_corpus_whole_before_any_of_it_again(drawn, epochs):
    parts, shares = drawn
    mixture = Mixture(parts, shares, seed=0)
    numbers = [mixture.draw(epoch) for epoch in range(epochs)]
    for part, share in enumerate(shares):
        own = [epoch[parts[epoch] == part] for epoch in numbers]
        assert all(abs(len(epoch) - share * len(parts)) <= 0.5 or len(epoch) == 1 for epoch in own)
        times = np.bincount(np.concatenate(own), minlength=len(parts))[parts == part]
        assert times.max() - times.min() <= 1


@given(mixtures(), st.booleans(), st.sampled_from([1.0, 2.5]))
def test_the_rows_of_a_mixture_are_the_draws_of_its_epochs_whatever_was_planned_before(drawn, packing, epochs):
    lengths, layout = 1 + np.arange(len(drawn[0])) * 7 % 50, Layout(64, packing)
    mixture = Mixture(*drawn, seed=3)
    first, second = (plan(lengths, layout, 1, epochs, 3, mixture) for _ in range(2))
    backwards = [second[step].rows[0].tolist() for step in reversed(range(len(second)))][::-1]
    assert backwards == rows(first)
    seen = [number for row in backwards for number in row]
    for epoch in range(int(epochs)):
        expected = mixture.draw(epoch)
        assert sorted(seen[: len(expected)]) == sorted(expected)
        seen = seen[len(expected) :]
    assert packing or len(seen) == int(epochs * sum(mixture.counts)) - int(epochs) * sum(mixture.counts)


def test_one_corpus_of_a_mixture_is_seen_once_an_epoch_and_an_empty_one_is_refused():
    parts = np.array([0, 1, 1, 2])
    assert sorted(Mixture(parts, [0.0, 1.0, 0.0], seed=0).draw(5)) == [1, 2]
    with pytest.raises(ShardsError, match="corpus 1 of 3 has no sequences"):
        Mixture(np.array([0, 2]), [0.5, 0.2, 0.3], seed=0)
