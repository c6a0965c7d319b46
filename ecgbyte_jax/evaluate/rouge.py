"""ROUGE-1, -2 and -L (Lin 2004) of one pair, as the library `rouge` computes them."""

from ecgbyte_jax.evaluate.bleu import ngrams

ROUGE = ("rouge_1", "rouge_2", "rouge_l")
_EPSILON = 1e-8  # the library's, in the denominator of F


def rouge_scores(reference: str, hypothesis: str) -> tuple[float, float, float]:
    """F of ROUGE-1, -2 and -L of one pair; sentences end at full stops, and repeated words count once, as in the library."""
    sides = [[" ".join(part.split()).split(" ") for part in text.split(".") if part] for text in (reference, hypothesis)]
    if not all(sides):
        return 0.0, 0.0, 0.0
    words = [[word for sentence in side for word in sentence] for side in sides]
    scores = []
    for order in (1, 2):
        expected, given = (set(ngrams(side_words, order)) for side_words in words)
        scores.append(_f(len(expected & given), len(expected), len(given)))
    common = set().union(*(common_words(r, h) for r in sides[0] for h in sides[1]))
    return *scores, _f(len(common), len(set(words[0])), len(set(words[1])))


def _f(common: int, expected: int, given: int) -> float:
    precision, recall = common / max(given, 1), common / max(expected, 1)
    return 2 * precision * recall / (precision + recall + _EPSILON)


def common_words(reference: list[str], hypothesis: list[str]) -> set[str]:
    """The words of a longest common subsequence; of several, the one that the library finds."""
    if reference == hypothesis:
        return set(reference)
    if set(reference).isdisjoint(hypothesis):
        return set()
    table = [[0] * (len(hypothesis) + 1)]
    for word in reference:
        above, row = table[-1], [0]
        for j, other in enumerate(hypothesis):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        table.append(row)
    i, j, words = len(reference), len(hypothesis), set()
    while i and j:
        if reference[i - 1] == hypothesis[j - 1]:
            words.add(reference[i - 1])
            i, j = i - 1, j - 1
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
