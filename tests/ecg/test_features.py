import numpy as np
import pytest

from ecgbyte_jax.ecg.features import FEATURES, features


@pytest.mark.parametrize("name", ["00197_hr", "00122_hr", "00241_hr"])
def test_features_are_the_published_ones(shared, name):
    published = np.load(shared / "fixtures/ecg_byte/signal.npz")
    measured = features(published[f"{name}.resampled"].T, 250.0)
    np.testing.assert_allclose(measured, published[f"{name}.features"], rtol=1e-9, atol=1e-12)


def test_rate_and_variability_of_a_train_of_spikes():
    lead = np.zeros(2500)
    lead[125::250] = 1.0  # one beat per second at 250 Hz
    measured = features(np.stack([lead, np.zeros(2500)]), 250.0)
    assert measured.shape == (2 * FEATURES,)
    assert measured[11:13].tolist() == [60.0, 0.0] and not measured[FEATURES + 11 : FEATURES + 16].any()
