import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu
from nltk.translate.meteor_score import meteor_score
from rouge import Rouge
from scipy import stats

from ecgbyte_jax.errors import ScoresError
from ecgbyte_jax.run import metrics
from ecgbyte_jax.run.intervals import bootstrap, interval, over_seeds
from ecgbyte_jax.run.meteor import find_wordnet, load_meteor, read_wordnet
from ecgbyte_jax.run.metrics import Scorers, bleu, exact_match, macro_f1, mean_bleu, measure, meteor, rouge, score

# (reference, answer)
ODD = [
    ("sinus rhythm normal ecg", "sinus rhythm"),
    ("sinus rhythm normal ecg", ""),
    ("yes", "yes"),
    ("yes", "no"),
    ("no no no", "no"),
    ("no", "no no no no"),
    ("sinus rhythm. normal axis. no st changes.", "normal axis. sinus rhythm. st changes"),
    ("sinus rhythm, normal axis!", "sinus rhythm normal axis"),
    ("a. . b", ". . a"),
    ("sinusrhythmus lagetyp Övrig", "Övrig lagetyp sinusrhythmus normal"),
    ("正常 心電図 🫀", "心電図 🫀 正常"),
    ("the heart beats quickly and the rate is fast", "a heart beating quick and rates are speedy"),
    ("Atrial Fibrillation", "atrial fibrillation"),
    ("left axis deviation left anterior fascicular block", "left anterior fascicular block left axis deviation"),
    ("  spaces\tand\nlines ", "spaces and lines"),
]  # fmt: skip
REFERENCES, HYPOTHESES = map(list, zip(*ODD))
WORDS = ["yes", "no", "a", "b", "a.", ".", "..", "x,", "Övrig", "🫀", "beats", "beating", "fast", "quick"]
texts = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)
repeated = st.lists(st.sampled_from("abcd"), min_size=4, max_size=12).map(" ".join)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def wordnet():
    """nltk's reader of WordNet, and nothing of ours about it."""
    try:
        return read_wordnet(find_wordnet())
    except ScoresError as error:
        pytest.skip(str(error))


def published_bleu(references, hypotheses):
    return corpus_bleu(
        [[r.split()] for r in references], [h.split() for h in hypotheses], smoothing_function=SmoothingFunction().method1
    )


def published_rouge(reference, hypothesis):
    """F of one pair; the library raises where a side is empty to it."""
    try:
        found = Rouge().get_scores(hypothesis, reference)[0]
    except ValueError:
        return [0.0, 0.0, 0.0]
    return [found[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")]


def test_exact_match_counts_whole_answers_and_no_empty_ones():
    assert exact_match(["yes", "no", "a b", "c"], ["yes ", "yes", "a  b", ""]) == 0.25
    assert exact_match([" "], [""]) == 0.0


def test_bleu_of_odd_pairs_is_nltk_s():
    assert bleu(REFERENCES, HYPOTHESES) == pytest.approx(published_bleu(REFERENCES, HYPOTHESES), abs=1e-12)
    alone = [published_bleu([r], [h]) for r, h in ODD]
    assert mean_bleu(REFERENCES, HYPOTHESES) == pytest.approx(np.mean(alone), abs=1e-12)


@given(pairs)
def test_bleu_of_any_pairs_is_nltk_s(some):
    references, hypotheses = map(list, zip(*some))
    assert bleu(references, hypotheses) == pytest.approx(published_bleu(references, hypotheses), abs=1e-12)
    alone = np.mean([published_bleu([r], [h]) for r, h in some])
    assert mean_bleu(references, hypotheses) == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("reference, hypothesis", ODD)
def test_rouge_of_odd_pairs_is_the_library_s(reference, hypothesis):
    assert list(rouge([reference], [hypothesis]).values()) == pytest.approx(published_rouge(reference, hypothesis), abs=1e-12)


@given(texts, texts)
def test_rouge_of_any_pair_is_the_library_s(reference, hypothesis):
    assert list(rouge([reference], [hypothesis]).values()) == pytest.approx(published_rouge(reference, hypothesis), abs=1e-12)


@given(repeated, repeated)
def test_rouge_takes_the_library_s_longest_common_subsequence_of_several(reference, hypothesis):
    assert list(rouge([reference], [hypothesis]).values()) == pytest.approx(published_rouge(reference, hypothesis), abs=1e-12)


def test_rouge_of_many_pairs_is_the_library_s_average():
    whole = [pair for pair in ODD if pair[1]]
    references, hypotheses = map(list, zip(*whole))
    expected = Rouge().get_scores(hypotheses, references, avg=True)
    assert list(rouge(references, hypotheses).values()) == pytest.approx([part["f"] for part in expected.values()])


def test_meteor_of_odd_pairs_is_nltk_s(wordnet):
    expected = [meteor_score([r.split()], h.split(), wordnet=wordnet) for r, h in ODD]
    assert [load_meteor()(r, h) for r, h in ODD] == pytest.approx(expected, abs=1e-12)
    assert meteor(REFERENCES, HYPOTHESES) == pytest.approx(np.mean(expected), abs=1e-12)
    assert load_meteor()("the rate is fast", "the rate is quick") > load_meteor()("the rate is fast", "the rate is yes")


@given(texts, texts)
def test_meteor_of_any_pair_is_nltk_s(wordnet, reference, hypothesis):
    expected = meteor_score([reference.split()], hypothesis.split(), wordnet=wordnet)
    assert load_meteor()(reference, hypothesis) == pytest.approx(expected, abs=1e-12)


def test_without_wordnet_the_other_scores_come_and_the_way_to_get_it_is_told(monkeypatch):
    monkeypatch.setattr("nltk.data.path", [])
    load_meteor.cache_clear()
    scorers = Scorers.load()
    assert "nltk.downloader wordnet" in scorers.missing["meteor"] and "wordnet-base" in scorers.missing["meteor"]
    found = score(REFERENCES, HYPOTHESES, scorers)
    assert "meteor" not in found and found["bleu"] > 0


def test_all_scores_at_once_are_those_one_by_one(wordnet):
    found = score(REFERENCES * 2, HYPOTHESES * 2, Scorers.load())
    assert found == pytest.approx(
        {
            "exact_match": exact_match(REFERENCES, HYPOTHESES),
            "bleu": bleu(REFERENCES, HYPOTHESES),
            "mean_bleu": mean_bleu(REFERENCES, HYPOTHESES),
            "meteor": meteor(REFERENCES, HYPOTHESES),
            **rouge(REFERENCES, HYPOTHESES),
        }
    )


@pytest.mark.parametrize("empty", ["", "  ", ".", ". ."])
def test_an_empty_answer_is_wrong_and_still_counted(empty):
    scores = score(["yes", "no"], ["yes", empty])
    assert scores["exact_match"] == 0.5 and scores["rouge_1"] == pytest.approx(0.5)


def test_perfect_answers_score_one():
    long = ["sinus rhythm with normal axis and no other finding"]
    assert score(long, long) == pytest.approx(dict.fromkeys(score(long, long), 1.0))


@pytest.mark.parametrize("of", [score, bleu, rouge, exact_match, mean_bleu, macro_f1])
def test_no_pairs_and_unequal_numbers_are_refused(of):
    with pytest.raises(ScoresError, match="0 references and 0 answers found"):
        of([], [])
    with pytest.raises(ScoresError, match="2 references and 1 answers found"):
        of(["a", "b"], ["a"])


def test_macro_f1_is_scikit_learn_s_over_the_references_classes():
    f1_score = pytest.importorskip("sklearn.metrics").f1_score
    references = ["yes", "no", "no", "no", "none", "A B", "A"]
    hypotheses = ["yes", "yes", "no", "", "none", "A", "nonsense"]
    expected = f1_score(references, hypotheses, labels=sorted(set(references)), average="macro", zero_division=0)
    assert macro_f1(references, hypotheses) == pytest.approx(expected)


def test_macro_f1_does_not_ask_for_the_order_of_listed_answers():
    assert macro_f1(["left block right block", "none"], ["right block left block", "none"]) == 1.0
    assert macro_f1(["a, b", "none"], ["b, a", "none"]) == 1.0
    assert macro_f1([" ", "none"], ["", "none"]) == 0.5  # an empty answer is never right


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
    monkeypatch.setattr("ecgbyte_jax.run.intervals._AT_ONCE", 15)
    assert json.dumps({k: v.tolist() for k, v in whole.items()}) == json.dumps(
        {k: v.tolist() for k, v in bootstrap([pairs], patients, 20, 0).items()}
    )


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
