"""What a report is to MERL: a frozen BERT's features of its text, or a sum of random vectors of its words.

Axes: M texts, T tokens, F features.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np

from ecgbyte_jax.encoders.bert import BertConfig, bert_pooled, bert_shapes
from ecgbyte_jax.errors import WeightsError
from ecgbyte_jax.inputs.text import load_text_tokenizer
from ecgbyte_jax.model.families.fields import divided, positive, refuse, whole
from ecgbyte_jax.model.weights.stored import stored_tensors
from ecgbyte_jax.pretrain.hf_folder import read_config, refuse_tensors
from ecgbyte_jax.train.utilisation import product_flops

WORDS_WIDTH = 768  # F where there is no BERT; that of most BERTs too
_SETTING = "encoder.text_encoder"
_TOKENS, _TOGETHER = 64, 64  # of a text, as published; texts of a batch
_HEADS = re.compile(r"cls\..*|.*\.position_ids|classifier\..*")  # tensors of BERT's uses, and a buffer


def read_bert(folder: Path) -> BertConfig:
    """The BERT that a folder's config.json describes; raises WeightsError for another model, or a fault of a field."""

    def read(raw: dict) -> BertConfig:
        refuse(raw, "model_type", ("bert",))
        refuse(raw, "hidden_act", ("gelu",))
        refuse(raw, "position_embedding_type", ("absolute",), "absolute")
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
                 "max_position_embeddings", "type_vocab_size")  # fmt: skip
        config = BertConfig(*(whole(raw, field) for field in sizes), epsilon=positive(raw, "layer_norm_eps"))
        divided(raw, "hidden_size", "num_attention_heads")
        return config

    return read_config(_SETTING, folder, "a BERT", read)


def features_width(text_encoder: str) -> int:
    """F of a text; raises WeightsError as `read_bert`."""
    return read_bert(Path(text_encoder)).width if text_encoder else WORDS_WIDTH


def load_bert(folder: Path) -> tuple[BertConfig, dict[str, jax.Array]]:
    """The BERT of a folder and its float32 tensors by PyTorch's names.

    Raises WeightsError, which names all missing, misshapen and non-finite tensors, and those that no BERT has.
    """
    config = read_bert(folder)
    shapes, weights, problems = bert_shapes(config), {}, []
    for stored, array in stored_tensors(folder):
        name = stored.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if name not in shapes:
            problems += [] if _HEADS.fullmatch(name) else [f"no place for {stored}"]
        elif array.shape != shapes[name]:
            problems.append(f"{stored} has shape {array.shape}, {shapes[name]} expected")
        elif not np.isfinite(values := array.astype(np.float32)).all():
            problems.append(f"{stored} holds values that are not finite")
        else:
            weights[name] = jax.numpy.asarray(values)
    problems = problems or [f"no tensor for {name}" for name in sorted(shapes.keys() - weights.keys())]
    refuse_tensors(_SETTING, folder, "no BERT's", problems)
    return config, weights


def encode_by_bert(folder: Path, texts: list[str]) -> Iterator[np.ndarray]:
    """The pooled features float32 [M', F] of the first 64 tokens of each text, a batch of at most 64 texts at a time.

    Raises WeightsError as `load_bert`, and where the folder's tokenizer has more words than its BERT; TokenizerError.
    """
    (config, weights), tokenizer = load_bert(folder), load_text_tokenizer(folder)
    length = min(_TOKENS, config.places)
    if len(tokenizer) > config.words:
        raise WeightsError(
            f"{_SETTING}: {folder}: a tokenizer of {len(tokenizer)} tokens found, vocab_size {config.words} in "
            "config.json at most expected"
        )
    compute: Callable = jax.jit(partial(bert_pooled, config))
    for start in range(0, len(texts), _TOGETHER):
        batch = texts[start : start + _TOGETHER]
        filled = batch + batch[-1:] * (_TOGETHER - len(batch))
        found = tokenizer(filled, padding="max_length", truncation=True, max_length=length, return_tensors="np")
        yield np.asarray(compute(weights, found["input_ids"], found["attention_mask"] > 0))[: len(batch)]


def report_flops(text_encoder: str) -> float:
    """Of encoding one text, 64 tokens with its padding; 0 for sums of random vectors."""
    if not text_encoder:
        return 0.0
    config = read_bert(Path(text_encoder))
    weights = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in bert_shapes(config).items()}
    ids, mask = (jax.ShapeDtypeStruct((1, min(_TOKENS, config.places)), kind) for kind in (np.int32, np.bool_))
    return product_flops(partial(bert_pooled, config), weights, ids, mask)


def encode_by_words(texts: list[str]) -> Iterator[np.ndarray]:
    """Features float32 [1, F] of each text: the sum of the vectors of its n words and pairs of neighbours, over n^0.5.

    The vectors are drawn from N(0, 1), seeded by the word or pair: what has no word in common is nearly orthogonal, as with
    hashed bags of words (Weinberger et al. 2009), and nothing is known of words that are alike.
    """
    for text in texts:
        words = re.findall(r"\w+", text.lower())
        terms = [*words, *map(" ".join, pairwise(words))] or [""]
        yield np.sum([_vector(term) for term in terms], axis=0)[None] / np.float32(len(terms) ** 0.5)


@lru_cache(maxsize=2**16)
def _vector(term: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(term.encode("utf-8", "surrogatepass")).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(WORDS_WIDTH, np.float32)
