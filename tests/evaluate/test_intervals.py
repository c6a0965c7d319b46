"""Intervals over seeds and over resampled patients."""

import json

import numpy as np
import pytest
from scipy import stats

from ecgbyte_jax.evaluate.intervals import bootstrap, interval, over_seeds
from ecgbyte_jax.evaluate.metrics import measure, score
from tests.evaluate.test_metrics import HYPOTHESES, ODD, REFERENCES


def test_over_seeds_is_scipy_s_t_interval():
    values = [0.5, 0.6, 0.55, 0.62, 0.58]
    found = over_seeds(values)
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert found["std"] == pytest.approx(np.std(values, ddof=1)) and found["t95"] == pytest.approx([low, high])


def test_an_interval_holds_95_percent():
    assert interval(np.arange(1001.0)) == pytest.approx([25, 975])


def test_bootstrap_scores_are_those_of_the_drawn_patients():
    patients = ["a", "a", "b", "c", "c"]
    references, hypotheses = REFERENCES[:5], [*HYPOTHESES[:4], "no no"]
    found = bootstrap([measure(references, hypotheses)], patients, 3, seed=7)
    drawn = np.random.default_rng(7).multinomial(3, np.full(3, 1 / 3), 3)
    for i, counts in enumerate(drawn):
        rows = [row for row, patient in enumerate(patients) for _ in range(counts["abc".index(patient)])]
        again = score([references[row] for row in rows], [hypotheses[row] for row in rows])
        assert {name: values[i] for name, values in found.items()} == pytest.approx(again)


def test_bootstrap_of_seeds_is_the_mean_of_theirs_and_its_interval_grows_with_fewer_patients():
    rng = np.random.default_rng(0)
    references = ["yes"] * 400
    runs = [measure(references, rng.choice(["yes", "no"], 400).tolist()) for _ in range(2)]
    many, few = [str(i) for i in range(400)], [str(i % 8) for i in range(400)]
    both, one, other = (bootstrap(some, many, 200, 0)["exact_match"] for some in (runs, runs[:1], runs[1:]))
    np.testing.assert_allclose(both, (one + other) / 2)
    low, high = interval(one)
    assert low < runs[0].overall()["exact_match"] < high
    clustered = measure(references, ["yes" if i % 8 < 4 else "no" for i in range(400)])
    width = [np.ptp(interval(bootstrap([clustered], some, 200, 0)["exact_match"])) for some in (many, few)]
    assert width[1] > 3 * width[0]


def test_bootstrap_in_parts_is_the_same(monkeypatch):
    pairs, patients = measure(REFERENCES, HYPOTHESES), [str(i % 5) for i in range(len(ODD))]
    whole = bootstrap([pairs], patients, 20, 0)
    monkeypatch.setattr("ecgbyte_jax.evaluate.intervals._AT_ONCE", 15)
    assert json.dumps({k: v.tolist() for k, v in whole.items()}) == json.dumps(
        {k: v.tolist() for k, v in bootstrap([pairs], patients, 20, 0).items()}
    )
