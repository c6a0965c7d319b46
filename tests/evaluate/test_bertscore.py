"""BERTScore with a tiny random model, against its definition."""

import numpy as np
import pytest

from ecgbyte_jax.errors import ScoresError
from ecgbyte_jax.evaluate import metrics
from ecgbyte_jax.evaluate.metrics import Scorers, measure


def make_bert(folder):
    """A tiny random BERT that knows letters."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("bert_score", reason="bert-score is not installed: pip install bert-score")
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocab))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocab), **sizes)).eval().save_pretrained(folder)
    return folder


def greedy_matching(folder, reference, hypothesis):
    """P, R, F1 by hand: each token's nearest one by cosine, [CLS] and [SEP] matched but not counted."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model, found = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval(), []
    for text in (hypothesis, reference):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].numpy()
        found.append(hidden / np.linalg.norm(hidden, axis=-1, keepdims=True))
    likeness = found[0] @ found[1].T
    precision, recall = likeness.max(axis=1)[1:-1].mean(), likeness.max(axis=0)[1:-1].mean()
    return precision, recall, 2 * precision * recall / (precision + recall)


def test_bertscore_is_greedy_matching_on_the_model_s_states(tmp_path):
    folder = make_bert(tmp_path / "bert")
    scorers = Scorers.load(str(folder))
    references, hypotheses = ["sinus rhythm", "yes", "a b c"], ["sinus", "", "a b c"]
    found = measure(references, hypotheses, scorers)
    columns = found.averaged[:, [found.names.index(name) for name in metrics.BERTSCORE]]
    assert columns[0] == pytest.approx(greedy_matching(folder, "sinus rhythm", "sinus"), abs=1e-4)
    assert columns[1] == pytest.approx([0, 0, 0]) and columns[2] == pytest.approx([1, 1, 1], abs=1e-4)
    assert found.overall()["bertscore_f1"] == pytest.approx(columns[:, 2].mean())


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ScoresError, match=r"eval\.bertscore_model: no config\.json in"):
        Scorers.load(str(tmp_path))
