"""What can be read off the embeddings that ECG tokens begin with: a linear classifier on their mean, for each question.

    python -m benchmarks.embeddings --run=runs/demo

No language model takes part: each question of the run's training split is answered by one softmax (scikit-learn, extra
`sampling`) from the mean of an ECG's rows, and scored by exact match on its test split. The rows are those of `model.new_rows`,
added to 5,000 random rows; "one row each" gives every token a column of its own, an upper bound for trained rows.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from ecgbyte_jax.inputs.batches import open_split
from ecgbyte_jax.inputs.prepared import Prepared, load_prepared
from ecgbyte_jax.inputs.token_features import token_features
from ecgbyte_jax.model.config import DecoderConfig
from ecgbyte_jax.model.decoder import Decoder
from ecgbyte_jax.model.vocabulary import Described, grow_vocabulary
from ecgbyte_jax.run.workdir import Workdir

_OLD, _WIDTH = 5_000, 576  # rows and width of the embedding that is grown; SmolLM2-135M's width


def rows_of(kind: str, prepared: Prepared) -> np.ndarray:
    """The ECG tokens' rows float32 [E, D] as a training begins with them."""
    tokens = prepared.ecg_tokenizer.bpe.tokens
    if kind == "one row each":
        return np.eye(len(tokens), dtype=np.float32)
    config = DecoderConfig(
        vocab_size=_OLD, width=_WIDTH, layers=1, heads=1, kv_heads=1, head_dim=2, mlp_width=2, max_positions=2, rope_theta=1e4
    )
    ids = np.arange(_OLD, _OLD + len(tokens))
    described = Described(ids, token_features(tokens), _OLD) if kind == "waveform" else None
    model = grow_vocabulary(Decoder(config, nnx.Rngs(0)), int(ids[-1]) + 1, jax.random.key(1), described=described)
    return np.asarray(model.embedding[...], np.float32)[ids]


def examples(prepared: Prepared, split: str, most: int) -> dict[str, tuple[list[np.ndarray], list[str]]]:
    """question -> (the ECGs' compact ids, the answers), of at most so many ECGs drawn at random."""
    found: dict[str, tuple[list[np.ndarray], list[str]]] = defaultdict(lambda: ([], []))
    dataset = open_split(prepared.shards, prepared.manifest, split)
    for place in np.random.default_rng(0).permutation(len(dataset)):
        sequence = dataset[int(place)]
        ecgs, answers = found[sequence.question]
        if len(ecgs) < most:
            ecgs.append(sequence.ecgs[0])
            answers.append(sequence.answer)
    return found


def accuracy(rows: np.ndarray, train: tuple[list, list], test: tuple[list, list]) -> float:
    """The share of test ECGs whose answer the classifier names."""
    pooled = [np.stack([rows[ecg].mean(axis=0) for ecg in ecgs]) for ecgs, _ in (train, test)]
    scaler = StandardScaler().fit(pooled[0])
    # A feature without spread is not blown up by its rounding errors.
    scaler.scale_ = np.maximum(scaler.scale_, 1e-2 * np.abs(rows).max())
    classifier = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(pooled[0]), train[1])
    return float(np.mean(classifier.predict(scaler.transform(pooled[1])) == np.array(test[1])))


def main() -> None:
    """Prints a row for each kind of embedding, and the commonest answer's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="runs/demo", help="a run with plain prompts in which prepare has finished")
    parser.add_argument("--ecgs", type=int, default=800, help="training ECGs for each question")
    given = parser.parse_args()
    prepared = load_prepared(Workdir(Path(given.run)))
    train, test = (examples(prepared, split, given.ecgs) for split in ("train", "test"))
    questions = sorted(train)
    print(f"exact match on {sum(len(test[q][1]) for q in questions)} test questions, {given.ecgs} training ECGs each")
    for number, question in enumerate(questions, start=1):
        print(f"  ({number}) {question}")
    print(f"{'':<16}" + "".join(f"{f'({number})':>8}" for number in range(1, len(questions) + 1)) + f"{'mean':>8}")
    for kind in ("commonest", "mean", "waveform", "one row each"):
        if kind == "commonest":
            scores = [np.mean(np.array(test[q][1]) == max(set(train[q][1]), key=train[q][1].count)) for q in questions]
        else:
            scores = [accuracy(rows_of(kind, prepared), train[q], test[q]) for q in questions]
        print(f"{kind:<16}" + "".join(f"{100 * score:8.1f}" for score in (*scores, np.mean(scores))), flush=True)


if __name__ == "__main__":
    main()
