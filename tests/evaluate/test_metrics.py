import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu
from nltk.translate.meteor_score import meteor_score
from rouge import Rouge

from ecgbyte_jax.errors import ScoresError
from ecgbyte_jax.evaluate.meteor import find_wordnet, load_meteor, read_wordnet
from ecgbyte_jax.evaluate.metrics import Scorers, bleu, exact_match, macro_f1, mean_bleu, meteor, rouge, score

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


def test_without_wordnet_the_other_scores_come_and_the_way_to_get_it_is_reported(monkeypatch):
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
