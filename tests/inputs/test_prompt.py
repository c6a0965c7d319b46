from dataclasses import replace

import numpy as np
import pytest

from ecgbyte_jax.ecg.bpe import BPE
from ecgbyte_jax.ecg.published import compact_id, ecg_text_ids
from ecgbyte_jax.ecg.symbols import Quantizer
from ecgbyte_jax.ecg.tokenizer import ECGTokenizer
from ecgbyte_jax.errors import ExampleError, TokenizerError
from ecgbyte_jax.inputs.prompt import PromptIds, lay_out, render_prompt, share_room
from ecgbyte_jax.inputs.text import (
    add_ecg_tokens,
    encode_texts,
    load_encoder,
    load_text_tokenizer,
    train_text_tokenizer,
)
from tests.prompts import plain_prompt, plainly

# bos 1, eos 2, pad 0, <sig_start> 3, <sig_end> 4; ECG token k is 100 + k.
IDS = PromptIds(bos=1, eos=2, pad=0, sig_start=3, sig_end=4, ecg=np.arange(100, 130, dtype=np.int32))
ECG, QUESTION, ANSWER = np.array([7, 8, 9]), np.array([50, 51]), np.array([60])


def test_worked_example():
    sequence, mask = plainly(IDS, [ECG], QUESTION, ANSWER, 20)
    assert sequence.tolist() == [1, 3, 107, 108, 109, 4, 50, 51, 60, 2]
    assert mask.tolist() == [False] * 8 + [True] * 2


def test_without_an_answer_the_prompt_ends_with_the_question():
    assert render_prompt(IDS, plain_prompt(IDS, QUESTION), [ECG], 20).tolist() == [1, 3, 107, 108, 109, 4, 50, 51]
    assert render_prompt(IDS, plain_prompt(IDS, QUESTION), [ECG], 8).tolist() == [1, 3, 107, 108, 4, 50, 51]


def test_an_ecg_that_does_not_fit_is_cut_at_its_end():
    sequence, mask = plainly(IDS, [ECG], QUESTION, ANSWER, 9)
    assert sequence.tolist() == [1, 3, 107, 108, 4, 50, 51, 60, 2] and mask.sum() == 2


def test_a_tokenizer_without_bos_begins_with_the_ecg_and_leaves_it_one_more_token():
    without = replace(IDS, bos=None)
    sequence, mask = plainly(without, [ECG], QUESTION, ANSWER, 9)
    assert sequence.tolist() == [3, 107, 108, 109, 4, 50, 51, 60, 2] and mask.tolist() == [False] * 7 + [True] * 2
    sequence, _ = plainly(without, [ECG], QUESTION, ANSWER, 8)
    assert sequence.tolist() == [3, 107, 108, 4, 50, 51, 60, 2]


def test_two_ecgs_follow_each_other():
    sequence, mask = plainly(IDS, [ECG, ECG[:2]], QUESTION, ANSWER, 20)
    assert sequence.tolist() == [1, 3, 107, 108, 109, 4, 3, 107, 108, 4, 50, 51, 60, 2]
    assert mask.tolist() == [False] * 12 + [True] * 2


def test_two_ecgs_share_the_room_evenly_and_a_short_one_leaves_room_to_the_other():
    sequence, _ = plainly(IDS, [ECG, ECG], QUESTION, ANSWER, 13)
    assert sequence.tolist() == [1, 3, 107, 108, 4, 3, 107, 108, 4, 50, 51, 60, 2]
    assert share_room(5, [9, 1]) == [4, 1] and share_room(5, [1, 9]) == [1, 4] and share_room(5, [9, 9]) == [2, 3]
    assert share_room(50, [9, 1]) == [9, 1]


def test_texts_that_leave_no_room_are_refused():
    with pytest.raises(ExampleError, match=r"texts take 7 of prompt.max_length 7 tokens: no room for 1 ECG"):
        plainly(IDS, [ECG], QUESTION, ANSWER, 7)


def test_padding_is_on_the_left_and_positions_count_tokens():
    row = lay_out([plainly(IDS, [ECG[:1]], QUESTION[:1], ANSWER, 10)], 10, 3, IDS.pad)
    assert row["input_ids"].tolist() == [0, 0, 0, 1, 3, 107, 4, 50, 60, 2]
    assert row["segment_ids"].tolist() == [0] * 3 + [1] * 7
    assert row["positions"].tolist() == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6]
    assert row["answer_places"].tolist() == [7, 8, 0] and row["targets"].tolist() == [60, 2, 0]
    assert row["answer_mask"].tolist() == [True, True, False]


def test_two_examples_in_a_row_are_distinguished():
    rendered = plainly(IDS, [ECG[:1]], QUESTION[:1], ANSWER, 10)
    row = lay_out([rendered, rendered], 15, 4, IDS.pad)
    assert row["input_ids"].tolist() == [0] + 2 * [1, 3, 107, 4, 50, 60, 2]
    assert row["segment_ids"].tolist() == [0] + [1] * 7 + [2] * 7
    assert row["positions"].tolist() == [0] + 2 * list(range(7))
    assert row["answer_places"].tolist() == [5, 6, 12, 13] and row["targets"].tolist() == [60, 2, 60, 2]


TEXTS = ["Does this ECG show atrial fibrillation?", "sinusrhythmus, lagetyp normal", "nÖdvÄndig"] * 3


def test_text_tokenizer_restores_any_text_and_survives_saving(tmp_path):
    tokenizer = train_text_tokenizer(TEXTS, 400)
    add_ecg_tokens(tokenizer, 30)
    tokenizer.save_pretrained(tmp_path)
    for tok in (tokenizer, load_text_tokenizer(tmp_path)):
        for text in [*TEXTS, "unseen € words 漢字"]:
            assert tok.decode(tok(text, add_special_tokens=False).input_ids) == text
    np.testing.assert_array_equal(ecg_text_ids(load_text_tokenizer(tmp_path), 30), ecg_text_ids(tokenizer, 30))


def test_a_text_tokenizer_gets_what_it_lacks_and_nothing_twice(tmp_path):
    tokenizer = train_text_tokenizer(TEXTS, 400)
    tokenizer.bos_token = tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    bare = load_text_tokenizer(tmp_path)
    assert bare.bos_token_id is None and bare.eos_token_id is None and bare.pad_token_id is None
    add_ecg_tokens(bare, 30)
    ids = PromptIds.of(bare, 30)
    assert (bare.eos_token, bare.pad_token) == ("<eos>", "<pad>")
    assert ids.bos is None and len({ids.eos, ids.pad, ids.sig_start, ids.sig_end, *ids.ecg.tolist()}) == 34
    bare.save_pretrained(tmp_path / "again")
    again = load_text_tokenizer(tmp_path / "again")
    add_ecg_tokens(again, 30)
    assert again.get_vocab() == bare.get_vocab() and again.eos_token_id == ids.eos


def test_training_the_text_tokenizer_twice_gives_the_same_files(tmp_path):
    for name in ("a", "b"):
        train_text_tokenizer(TEXTS, 400).save_pretrained(tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_ecg_tokens_have_their_published_names():
    tokenizer = train_text_tokenizer(TEXTS, 400)
    add_ecg_tokens(tokenizer, 28)
    ids = ecg_text_ids(tokenizer, 28)
    assert tokenizer.convert_ids_to_tokens(ids[[0, 25, 26, 27]].tolist()) == [
        "signal_97",
        "signal_122",
        "signal_256",
        "signal_257",
    ]
    assert tokenizer("<sig_start>signal_256<sig_end>", add_special_tokens=False).input_ids[1] == ids[26]


def test_an_ecg_is_encoded_as_the_ids_that_a_model_reads(rng):
    signal = rng.normal(0, 0.1, (12, 50))
    quantizer, text_tokenizer = Quantizer(-0.5, 0.5), train_text_tokenizer(TEXTS, 400)
    tokenizer = ECGTokenizer(quantizer, BPE.train(quantizer.encode(signal), 5))
    with pytest.raises(TokenizerError, match="lacks some of the ECG tokens"):
        tokenizer.encode_as_text_ids(signal, text_tokenizer)
    add_ecg_tokens(text_tokenizer, tokenizer.bpe.vocab_size)
    ids = tokenizer.encode_as_text_ids(signal, text_tokenizer)
    assert ids.min() > len(tokenizer.bpe.tokens)  # compact ids are those of other tokens
    names = text_tokenizer.convert_ids_to_tokens(ids.tolist())
    published = compact_id(np.array([int(name.removeprefix("signal_")) for name in names]))
    np.testing.assert_array_equal(published, tokenizer.encode(signal))


def test_the_light_encoder_gives_the_ids_of_transformers(tmp_path):
    texts = [
        "Sinusrhythmus, linker Lagetyp",
        "",
        "  leading  blanks",
        "<bos> signal_97 <sig_start> <pad> is text",
        "1° AV-Block ß",
    ]
    tokenizer = train_text_tokenizer(texts * 3, 400)
    add_ecg_tokens(tokenizer, 30)
    tokenizer.save_pretrained(tmp_path)
    expected = tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
    encoded = encode_texts(load_encoder(tmp_path / "tokenizer.json"), texts)
    assert [ids.tolist() for ids in encoded] == expected and tokenizer.bos_token_id not in expected[3]
