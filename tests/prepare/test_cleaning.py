"""Clean signals that wait for their symbols."""

import os

import numpy as np
import pytest

from ecgbyte_jax.prepare.cleaning import keep_clean, read_clean


@pytest.mark.parametrize("damage", ["cut", "overwritten", "gone"])
def test_what_waits_for_its_symbols_and_is_damaged_is_cleaned_again(tmp_path, damage):
    signal, file = np.random.default_rng(0).normal(size=(12, 1000)), tmp_path / f"{7:016x}.npz"
    keep_clean(tmp_path, 7, signal, 250.0)
    kept, rate = read_clean(tmp_path, 7)
    assert np.array_equal(kept, signal) and rate == 250
    content = bytearray(file.read_bytes())
    content[5000:5100] = bytes(100)
    {
        "cut": lambda: os.truncate(file, 50_000),
        "overwritten": lambda: file.write_bytes(content),
        "gone": file.unlink,
    }[damage]()
    assert read_clean(tmp_path, 7) is None
