"""The published rules in their plainest form, to hold the fast code against."""

from collections import Counter
from itertools import pairwise

import numpy as np


def symbols(text: str) -> np.ndarray:
    """uint8 [n] of letters."""
    return np.array([ord(letter) - ord("a") for letter in text], np.uint8)


def train_plainly(parts: list[np.ndarray], num_merges: int) -> list[tuple[int, int, int]]:
    """Every pair recounted at every merge, within parts that no token crosses: (left, right, count)."""
    streams, made = [part.tolist() for part in parts], []
    for new in range(26, 26 + num_merges):
        pairs = Counter(pair for stream in streams for pair in pairwise(stream))
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        made.append((left, right, pairs[left, right]))
        streams = [_merge(stream, [left, right], new) for stream in streams]
    return made


def _merge(stream: list[int], pair: list[int], new: int) -> list[int]:
    merged, i = [], 0
    while i < len(stream):
        match = stream[i : i + 2] == pair
        merged.append(new if match else stream[i])
        i += 2 if match else 1
    return merged


def encode_plainly(tokens: list[np.ndarray], text: np.ndarray) -> list[int]:
    """Greedy longest match over the token strings; of equal strings the later id wins."""
    spelled = {bytes(token): id for id, token in enumerate(tokens)}
    longest, text = max(map(len, spelled)), bytes(text)
    ids, i = [], 0
    while i < len(text):
        end = next(end for end in range(i + longest, i, -1) if text[i:end] in spelled)
        ids.append(spelled[text[i:end]])
        i = min(end, len(text))
    return ids
