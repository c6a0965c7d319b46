import json

import numpy as np
import pytest

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer, published_id
from ecgbyte_jax.errors import TokenizerError


@pytest.fixture
def signal(rng) -> np.ndarray:
    """Clean-looking mV [12, 100] within the quantizer's range."""
    return np.cumsum(rng.normal(0, 0.02, (12, 100)), axis=1).clip(-0.9, 0.9)


@pytest.fixture
def tokenizer(signal) -> ECGTokenizer:
    quantizer = Quantizer(-0.5, 0.5)
    return ECGTokenizer(quantizer, BPE.train(quantizer.encode(signal), 40))


def test_decoding_gives_every_sample_back_within_half_a_bin(tokenizer, signal):
    restored = tokenizer.decode(tokenizer.encode(signal))
    assert restored.shape == signal.shape
    assert np.abs(restored - signal).max() <= 1 / 26 + 1e-6  # half of 2 mV / 26


def test_saving_and_loading_gives_the_same_tokenizer_and_bytes(tokenizer, signal, tmp_path):
    tokenizer.save(tmp_path / "a.json")
    loaded = ECGTokenizer.load(tmp_path / "a.json")
    loaded.save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    np.testing.assert_array_equal(loaded.encode(signal), tokenizer.encode(signal))


def test_segments_are_encoded_one_by_one(tokenizer, signal):
    for ids, segment in zip(tokenizer.encode_batch(np.stack([signal, -signal])), [signal, -signal], strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(segment))


def test_eleven_leads_are_refused(tokenizer, signal):
    with pytest.raises(TokenizerError, match=r"\(1, 11, 100\)"):
        tokenizer.encode(signal[:11])


def test_ids_of_broken_leads_are_refused(tokenizer):
    with pytest.raises(TokenizerError, match="13 samples"):
        tokenizer.decode(np.zeros(13, np.int32))


def test_published_ids():
    assert published_id(np.array([0, 25, 26, 27])).tolist() == [97, 122, 256, 257]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, "version 2 found"),
        ({"format": "other"}, "no ECG tokenizer"),
        ({"percentile_1_mv": None}, "percentiles"),
        ({"percentile_1_mv": "0.1"}, "percentiles"),
        ({"merges": [[0, 1]]}, "merges"),
        ({"merges": [[0, 99, 1]]}, "merge 0 joins 0 and 99"),
        ({"merges": "abc"}, "merges"),
        ({"extra": 1}, "extra"),
    ],
)
def test_damaged_files_are_refused_by_field(tokenizer, tmp_path, change, message):
    path = tmp_path / "t.json"
    tokenizer.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TokenizerError, match=message) as caught:
        ECGTokenizer.load(path)
    assert str(path) in str(caught.value)


def test_truncated_and_missing_files_are_refused(tokenizer, tmp_path):
    path = tmp_path / "t.json"
    tokenizer.save(path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(TokenizerError, match="truncated"):
        ECGTokenizer.load(path)
    with pytest.raises(TokenizerError, match="no such file"):
        ECGTokenizer.load(tmp_path / "none.json")
