"""METEOR as nltk computes it (Lavie & Agarwal 2007), fast enough for 100,000 pairs: stems and synonyms are looked up once."""

import io
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nltk
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.data import PathPointer
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score

from ecgbyte_jax.errors import ScoresError

_LEXICOGRAPHER_FILES = 45  # of WordNet 3: lexnames(5WN)


class WordNet(WordNetCorpusReader):
    """nltk's reader without the part for other languages.

    So it also reads Debian's package `wordnet-base`, which lacks two files that METEOR does not need.
    """

    def open(self, file):
        """As nltk's, with unnamed lexicographer files where their list is missing."""
        try:
            return super().open(file)
        except OSError:
            if file != "lexnames":
                raise
            return io.StringIO("".join(f"{number:02d}\tunnamed\t0\n" for number in range(_LEXICOGRAPHER_FILES)))

    def map_wn(self, version="wordnet"):
        """Maps nothing: that is for other languages."""
        return None


class _Lemma(NamedTuple):
    word: str

    def name(self) -> str:
        return self.word


class _Synset(NamedTuple):
    words: tuple[_Lemma, ...]

    def lemmas(self) -> tuple[_Lemma, ...]:
        return self.words


class _Synonyms:
    """The part of WordNet that METEOR needs: the words that share a meaning with a word, as one synthetic synset, cached."""

    def __init__(self, reader: WordNetCorpusReader):
        self._reader = reader
        self.synsets = cache(self._synsets)

    def _synsets(self, word: str) -> list[_Synset]:
        names = {lemma.name() for synset in self._reader.synsets(word) for lemma in synset.lemmas()}
        return [_Synset(tuple(_Lemma(name) for name in sorted(names) if "_" not in name))]


class _Stemmer:
    """Porter's stemmer, cached by word."""

    def __init__(self):
        self.stem = cache(PorterStemmer().stem)


def find_wordnet() -> PathPointer:
    """Where nltk finds WordNet; raises ScoresError that says how to get it."""
    for place in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            return nltk.data.find(place)
        except LookupError:
            continue
    raise ScoresError(
        "METEOR needs WordNet, which is in none of nltk's folders: `python -m nltk.downloader wordnet`, or Debian's package "
        "wordnet-base with /usr/share/wordnet linked as FOLDER/corpora/wordnet and NLTK_DATA=FOLDER"
    )


def read_wordnet(place: PathPointer) -> WordNet:
    """The words' meanings in a folder; raises ScoresError where a file is missing or damaged."""
    if Path(str(place)).is_symlink():  # nltk reads nothing outside the folders that it knows
        nltk.data.path.append(str(Path(str(place)).resolve()))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the missing other languages
            return WordNet(place, None)
    except (OSError, ValueError) as error:
        raise ScoresError(f"{place}: not readable as WordNet, which METEOR needs: {error}") from error


@cache
def load_meteor() -> Callable[[str, str], float]:
    """(reference, answer) -> score 0..1, words split at spaces; raises ScoresError where WordNet is missing."""
    stemmer, synonyms = _Stemmer(), _Synonyms(read_wordnet(find_wordnet()))

    def score(reference: str, answer: str) -> float:
        return single_meteor_score(reference.split(), answer.split(), stemmer=stemmer, wordnet=synonyms)

    return score
