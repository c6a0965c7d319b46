import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.matching import Automaton
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer, Training
from ecgbyte_jax.errors import TokenizerError


@pytest.fixture
def signal(rng) -> np.ndarray:
    """Clean-looking mV [12, 100] within the quantizer's range."""
    return np.cumsum(rng.normal(0, 0.02, (12, 100)), axis=1).clip(-0.9, 0.9)


@pytest.fixture
def tokenizer(signal) -> ECGTokenizer:
    quantizer = Quantizer(-0.5, 0.5)
    training = Training(num_merges=40, boundary="", segments=1, symbols=1200, clipped=0, corpus_sha256="ab" * 32)
    return ECGTokenizer(quantizer, BPE.train(quantizer.encode(signal), 40), training)


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
    assert loaded.training == tokenizer.training and loaded.quantizer == tokenizer.quantizer


def test_segments_are_encoded_one_by_one(tokenizer, signal):
    for ids, segment in zip(tokenizer.encode_batch(np.stack([signal, -signal])), [signal, -signal], strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(segment))


def test_eleven_leads_are_refused(tokenizer, signal):
    with pytest.raises(TokenizerError, match=r"\(1, 11, 100\)"):
        tokenizer.encode(signal[:11])


def test_ids_of_broken_leads_are_refused(tokenizer):
    with pytest.raises(TokenizerError, match="13 samples"):
        tokenizer.decode(np.zeros(13, np.int32))


def test_offsets_are_places_in_the_flattened_leads(tokenizer, signal):
    ids, offsets = tokenizer.encode(signal, return_offsets=True)
    symbols = tokenizer.quantizer.encode(signal).ravel()
    for id, start in zip(ids, offsets):
        token = tokenizer.bpe.token(id)
        np.testing.assert_array_equal(symbols[start : start + len(token)], token)
    batch = tokenizer.encode_batch(np.stack([signal, -signal]), return_offsets=True)
    np.testing.assert_array_equal(batch[0][0], ids)
    np.testing.assert_array_equal(batch[1][0], offsets)


def test_a_signal_with_nan_is_refused(tokenizer, signal):
    signal[3, 5] = np.nan
    with pytest.raises(TokenizerError, match="not finite"):
        tokenizer.encode(signal)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 3}, "version 3 found, 2 wanted; a newer file needs a newer ecgbyte_jax"),
        ({"version": 1}, "version 1 found, 2 wanted.*an older one is made again"),
        ({"format": "other"}, "no ECG tokenizer"),
        ({"percentile_1_mv": None}, "percentiles"),
        ({"percentile_1_mv": "0.1"}, "percentiles"),
        ({"percentile_1_mv": True}, "percentiles"),
        ({"percentile_1_mv": 1e999}, "percentiles"),
        ({"percentile_1_mv": 9.5}, "percentiles 9.5 and 0.5 mV found"),
        ({"merges": [[0, 1]]}, "merges"),
        ({"merges": [[0, 99, 1]]}, "merge 0 joins 0 and 99"),
        ({"merges": [[0, 1.5, 1]]}, r"'merges' holds \[0, 1.5, 1\]"),
        ({"merges": [[0, True, 1]]}, "'merges' holds"),
        ({"merges": [[0, 1, -2]]}, "'merges' holds"),
        ({"merges": [[0, 1, 1 << 70]]}, "'merges' holds"),
        ({"tokens": ["aa"]}, "fields .*'merges' or 'tokens' wanted"),
        ({"training": {"num_merges": 40}}, "field 'training' is"),
        ({"training": []}, "field 'training' is"),
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


@pytest.mark.parametrize("rows", [["aa", ""], ["aA"], [1], "aa", {"a": 1}])
def test_damaged_token_strings_are_refused(tokenizer, tmp_path, rows):
    path = tmp_path / "t.json"
    ECGTokenizer(tokenizer.quantizer, BPE(tokenizer.bpe.tokens)).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokens": rows}))
    with pytest.raises(TokenizerError, match=r"t\.json: field 'tokens'"):
        ECGTokenizer.load(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "", "\x00", "[]", "NaN"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(TokenizerError, match=r"t\.json"):
        ECGTokenizer.load(tmp_path / "t.json")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="cannot be read: Is a directory"):
        ECGTokenizer.load(tmp_path)


@settings(max_examples=60)
@given(st.data())
def test_damaged_bytes_give_a_typed_error_or_a_tokenizer(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "t.json"
    ECGTokenizer(Quantizer(-0.5, 0.5), BPE.train(np.arange(20, dtype=np.uint8) // 3, 5)).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        assert ECGTokenizer.load(path).bpe.vocab_size >= 26
    except TokenizerError as error:
        assert "t.json" in str(error)


def test_the_encoder_s_tables_lie_beside_the_tokenizer_and_are_used(tokenizer, signal, tmp_path, monkeypatch):
    for name in ("a", "b"):
        tokenizer.save(tmp_path / name / "t.json")
    tables = [tmp_path / name / "t.automaton.npz" for name in ("a", "b")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    expected = tokenizer.encode(signal)
    with monkeypatch.context() as patch:
        patch.setattr(Automaton, "of", lambda tokens: pytest.fail("built again"))
        np.testing.assert_array_equal(ECGTokenizer.load(tmp_path / "a/t.json").encode(signal), expected)


@pytest.mark.parametrize("damage", ["missing", "cut", "bits", "pickle", "other tokens"])
def test_without_their_tables_they_are_built_anew(tokenizer, signal, tmp_path, damage):
    tokenizer.save(tmp_path / "t.json")
    tables = tmp_path / "t.automaton.npz"
    content = bytearray(tables.read_bytes())
    match damage:
        case "missing":
            tables.unlink()
        case "cut":
            tables.write_bytes(content[: len(content) // 2])
        case "bits":
            content[len(content) // 2] ^= 255
            tables.write_bytes(content)
        case "pickle":
            np.savez(tables, vocabulary=np.array([object()]))
        case "other tokens":
            shorter = BPE.of_merges(tokenizer.bpe.merges[:20], tokenizer.bpe.counts[:20])
            ECGTokenizer(tokenizer.quantizer, shorter).save(tmp_path / "o.json")
            tables.write_bytes((tmp_path / "o.automaton.npz").read_bytes())
    np.testing.assert_array_equal(ECGTokenizer.load(tmp_path / "t.json").encode(signal), tokenizer.encode(signal))
