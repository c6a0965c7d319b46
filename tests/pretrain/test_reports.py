from dataclasses import replace

import numpy as np
import pytest

from ecgbyte_jax.errors import ShardsError
from ecgbyte_jax.inputs.text import add_ecg_tokens, train_text_tokenizer
from ecgbyte_jax.pretrain.reports import ReportFeatures, Reports, ReportTokens, write_features
from tests.pretrain.test_probe import outline


def test_a_report_is_the_answer_to_one_question_or_all_questions_with_their_answers():
    later = replace(outline([3], "Block?", "no"), history=(("Flutter?", "yes"),))
    asked = [outline([1], "Explain.", "Sinus."), outline([2], "Explain.", "Flutter."), outline([2], "Explain.", "Flutter.")]
    reports = Reports.of([*asked, later, outline([4, 5], "Alike?", "yes"), outline([6], "Explain.", "Sinus.")])
    said = {number: [reports.texts[place] for place in places] for number, places in reports.of_segment.items()}
    assert said == {1: ["Sinus."], 2: ["Flutter."], 3: ["Block? no", "Flutter? yes"], 6: ["Sinus."]}
    assert reports.texts == sorted({text for texts in said.values() for text in texts})


def test_features_are_the_mean_over_a_segments_texts(tmp_path):
    reports = Reports.of([outline([0], "A?", "yes"), outline([0], "B?", "no"), outline([7], "A?", "yes")])
    write_features(tmp_path / "features.npy", reports, "")
    features = ReportFeatures.open(tmp_path / "features.npy", reports)
    assert features.features.shape == (3, 768)
    expected = features.features[[reports.texts.index("A? yes"), reports.texts.index("B? no")]].mean(axis=0)
    np.testing.assert_allclose(features.row(0, 0), expected, atol=1e-6)
    np.testing.assert_array_equal(features.row(7, 3), features.features[reports.texts.index("yes")])


def test_tokens_are_a_segments_texts_in_any_order_and_77_at_most(tmp_path):
    asked = [
        outline([0], "A?", "yes"),
        outline([0], "B?", "<eos> no"),
        outline([7], "A?", "yes"),
        outline([8], "A?", "no " * 90),
    ]
    reports = Reports.of(asked)
    tokenizer = train_text_tokenizer(reports.texts, 300)
    add_ecg_tokens(tokenizer, 260)
    tokenizer.save_pretrained(tmp_path)
    tokens = ReportTokens.of(reports, tmp_path)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert tokens.size == len(tokenizer)
    orders = set()
    for batch in range(20):
        row = tokens.row(0, batch)
        assert row.dtype == np.int32 and row.shape == (77,)
        ids = row[row >= 0]
        assert (row[len(ids) :] == -1).all() and [ids[0], ids[-1]] == [start, end] and end not in ids[:-1]
        orders.add(tokenizer.decode(ids[1:-1]))
        np.testing.assert_array_equal(row, tokens.row(0, batch))
    assert orders == {"A? yesB? <eos> no", "B? <eos> noA? yes"}
    assert tokenizer.decode(tokens.row(7, 0)[1:-1][tokens.row(7, 0)[1:-1] >= 0][:-1]) == "yes"
    long = tokens.row(8, 0)
    assert long.min() >= 0 and long[-1] == end and len(tokens.tokens[tokens.reports.of_segment[8][0]]) == 77


def test_damaged_features_and_a_corpus_without_reports_are_said(tmp_path):
    reports = Reports.of([outline([0], "A?", "yes")])
    (tmp_path / "features.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ShardsError, match=r"features\.npy: damaged"):
        ReportFeatures.open(tmp_path / "features.npy", reports)
    np.save(tmp_path / "features.npy", np.zeros((2, 4), np.float32))
    with pytest.raises(ShardsError, match=r"features\.npy: shape \(2, 4\) found for 1 texts; remove its folder"):
        ReportFeatures.open(tmp_path / "features.npy", reports)
    with pytest.raises(ShardsError, match="no question about a single segment found"):
        write_features(tmp_path / "features.npy", Reports.of([outline([0, 1], "Alike?", "yes")]), "")
