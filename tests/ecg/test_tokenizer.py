import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgbyte_jax.ecg import matching
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


def test_decoding_restores_every_sample_within_half_a_bin(tokenizer, signal):
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


def test_offsets_are_positions_in_the_flattened_leads(tokenizer, signal):
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
        ({"version": 4}, "version 4 found, 3 expected; a newer file needs a newer ecgbyte_jax"),
        ({"version": 2}, "version 2 found, 3 expected.*an older one is rebuilt"),
        ({"format": "other"}, "not an ECG tokenizer"),
        ({"percentile_1_mv": None}, "percentiles"),
        ({"percentile_1_mv": "0.1"}, "percentiles"),
        ({"percentile_1_mv": True}, "percentiles"),
        ({"percentile_1_mv": 1e999}, "percentiles"),
        ({"percentile_1_mv": -(10**400)}, "percentiles"),
        ({"percentile_1_mv": 9.5}, "percentiles 9.5 and 0.5 mV found"),
        ({"percentile_1_mv": -0.4}, "'sha256'.*damaged"),
        ({"sha256": "ab" * 32}, "'sha256'.*damaged"),
        ({"sha256": None}, "'sha256'.*damaged"),
        ({"merges": [[0, 1]]}, "merges"),
        ({"merges": [[0, 99, 1]]}, "merge 0 joins 0 and 99"),
        ({"merges": [[0, 1.5, 1]]}, r"'merges' holds \[0, 1.5, 1\]"),
        ({"merges": [[0, True, 1]]}, "'merges' holds"),
        ({"merges": [[0, 1, -2]]}, "'merges' holds"),
        ({"merges": [[0, 1, 1 << 70]]}, "'merges' holds"),
        ({"tokens": ["aa"]}, "fields .*'merges' or 'tokens' expected"),
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


def test_another_token_or_count_is_refused(tokenizer, tmp_path):
    path = tmp_path / "t.json"
    for bpe in (tokenizer.bpe, BPE(tokenizer.bpe.tokens)):
        ECGTokenizer(tokenizer.quantizer, bpe).save(path)
        content = json.loads(path.read_text())
        rows = content.get("merges") or content["tokens"]
        rows[-1] = [*rows[-1][:2], rows[-1][2] + 1] if "merges" in content else rows[-1] + "a"
        path.write_text(json.dumps(content))
        with pytest.raises(TokenizerError, match=r"t\.json: .*'sha256'.*damaged"):
            ECGTokenizer.load(path)


def test_a_number_of_5000_digits_is_refused(tokenizer, tmp_path):
    path = tmp_path / "t.json"
    tokenizer.save(path)
    path.write_text(path.read_text().replace("-0.5,", "-" + "9" * 5000 + ","))
    with pytest.raises(TokenizerError, match=r"t\.json: not readable as JSON"):
        ECGTokenizer.load(path)


def test_float32_percentiles_are_saved_exactly(tokenizer, signal, tmp_path):
    rounded = ECGTokenizer(Quantizer(np.float32(-0.4), np.float32(0.3)), tokenizer.bpe)
    rounded.save(tmp_path / "t.json")
    loaded = ECGTokenizer.load(tmp_path / "t.json")
    assert loaded.quantizer == rounded.quantizer == Quantizer(float(np.float32(-0.4)), float(np.float32(0.3)))
    np.testing.assert_array_equal(loaded.encode(signal), rounded.encode(signal))


def test_an_empty_batch_gives_no_ids(tokenizer):
    assert tokenizer.encode_batch(np.empty((0, 12, 100))) == []
    assert tokenizer.encode_batch(np.empty((0, 12, 100)), return_offsets=True) == ([], [])
    assert tokenizer.encode(np.empty((12, 0))).tolist() == []


def equal(loaded: ECGTokenizer, expected: ECGTokenizer) -> bool:
    return (
        (loaded.quantizer, loaded.training) == (expected.quantizer, expected.training)
        and np.array_equal(loaded.bpe.merges, expected.bpe.merges)
        and np.array_equal(loaded.bpe.counts, expected.bpe.counts)
        and list(map(bytes, loaded.bpe.tokens)) == list(map(bytes, expected.bpe.tokens))
    )


def flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for place in rng.integers(len(content), size=rng.integers(1, 4)):
        damaged[place] ^= 1 << rng.integers(8)
    return bytes(damaged)


def cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


ODD_VALUES = (None, True, -1, 0, 7, 2.5, 1e999, -(10**400), 1 << 62, "", "aa", [], [0, 1, 2], {}, {"a": 1})


def edit_json(content: bytes, rng: np.random.Generator) -> bytes:
    """Replaces, removes, duplicates or changes one value at a random place."""
    tree = part = json.loads(content)
    while True:
        places = list(part) if isinstance(part, dict) else range(len(part))
        place = places[rng.integers(len(places))]
        if not isinstance(part[place], dict | list) or not part[place] or rng.random() < 0.2:
            break
        part = part[place]
    match rng.integers(4):
        case 0:
            del part[place]
        case 1 if isinstance(part, list):
            part.insert(rng.integers(len(part) + 1), part[place])
        case 2 if type(part[place]) in (int, float):
            part[place] += (-1, 1)[rng.integers(2)]
        case _:
            part[place] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
    return json.dumps(tree).encode()


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_bits, cut, edit_json])
def test_1000_damaged_files_give_a_typed_error_or_the_same_tokenizer(tokenizer, tmp_path, damage):
    rng, path = np.random.default_rng(11), tmp_path / "t.json"
    known = ECGTokenizer(tokenizer.quantizer, BPE(tokenizer.bpe.tokens)), tokenizer
    refused = 0
    for case in range(1000):
        expected = known[case % 2]
        expected.save(path)
        path.write_bytes(damage(path.read_bytes(), rng))
        try:
            assert equal(ECGTokenizer.load(path), expected), f"case {case} is another tokenizer"
        except TokenizerError as error:
            refused += 1
            assert "t.json" in str(error) and "\n" not in str(error)
    assert refused > 900


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_bits, cut])
def test_1000_damaged_tables_encode_as_the_tokenizer_does(tokenizer, signal, tmp_path, damage):
    rng, expected = np.random.default_rng(11), tokenizer.encode(signal)
    tokenizer.save(tmp_path / "t.json")
    tables = tmp_path / "t.automaton.npz"
    content = tables.read_bytes()
    for case in range(1000):
        tables.write_bytes(damage(content, rng))
        assert np.array_equal(ECGTokenizer.load(tmp_path / "t.json").encode(signal), expected), f"case {case}"


@settings(max_examples=60)
@given(st.data())
def test_damaged_bytes_give_a_typed_error_or_the_same_tokenizer(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "t.json"
    expected = ECGTokenizer(Quantizer(-0.5, 0.5), BPE.train(np.arange(20, dtype=np.uint8) // 3, 5))
    expected.save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        assert equal(ECGTokenizer.load(path), expected)
    except TokenizerError as error:
        assert "t.json" in str(error)


def test_the_encoder_s_tables_are_saved_next_to_the_tokenizer_and_used(tokenizer, signal, tmp_path, monkeypatch):
    for name in ("a", "b"):
        tokenizer.save(tmp_path / name / "t.json")
    tables = [tmp_path / name / "t.automaton.npz" for name in ("a", "b")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    expected = tokenizer.encode(signal)
    with monkeypatch.context() as patch:
        patch.setattr(Automaton, "of", lambda tokens: pytest.fail("built again"))
        np.testing.assert_array_equal(ECGTokenizer.load(tmp_path / "a/t.json").encode(signal), expected)


@pytest.mark.parametrize("damage", ["missing", "cut", "bits", "pickle", "other tokens", "other version"])
def test_missing_or_damaged_tables_are_rebuilt(tokenizer, signal, tmp_path, damage):
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
            np.savez(tables, of=np.array([object()]))
        case "other version":
            automaton = Automaton.of(tokenizer.bpe.tokens)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(matching, "_VERSION", 0)
                replace(automaton, ids=automaton.ids[::-1]).save(tables, tokenizer.bpe.tokens_sha256)
        case "other tokens":
            shorter = BPE.of_merges(tokenizer.bpe.merges[:20], tokenizer.bpe.counts[:20])
            ECGTokenizer(tokenizer.quantizer, shorter).save(tmp_path / "o.json")
            tables.write_bytes((tmp_path / "o.automaton.npz").read_bytes())
    np.testing.assert_array_equal(ECGTokenizer.load(tmp_path / "t.json").encode(signal), tokenizer.encode(signal))
