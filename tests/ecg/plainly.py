"""The published rules in their simplest form, as a reference for the fast code."""

from collections import Counter
from itertools import pairwise

import numpy as np


def symbols(text: str) -> np.ndarray:
    """uint8 [n] of letters."""
    return np.array([ord(letter) - ord("a") for letter in text], np.uint8)


def train_plainly(parts: list[np.ndarray], num_merges: int) -> list[tuple[int, int, int]]:
    """Recounts every pair at every merge, within parts that no token crosses: (left, right, count)."""
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


def filter_exactly(signal: np.ndarray, rate: float) -> np.ndarray:
    """The published notches, band-pass and high-pass of [N], forward and backward, in fixed point with 400 fractional bits."""
    import mpmath

    with mpmath.workdps(80):
        samples = [_fixed(mpmath.mpf(float(value))) for value in signal]
        for b, a in (_notch(50, rate), _notch(60, rate), _butterworth([0.5, 100], rate), _butterworth([0.05], rate)):
            samples = _forward_backward(b, a, samples)
        return np.array([float(mpmath.mpf(value) / 2**400) for value in samples])


def _fixed(value) -> int:
    return int(value * 2**400)


def _notch(frequency: float, rate: float) -> tuple[list, list]:
    """Polynomials (b, a) of quality 30, as in `scipy.signal.iirnotch`."""
    import mpmath

    angle = 2 * mpmath.pi * frequency / mpmath.mpf(rate)
    gain = 1 / (1 + mpmath.tan(angle / 60))
    return [gain, -2 * gain * mpmath.cos(angle), gain], [1, -2 * gain * mpmath.cos(angle), 2 * gain - 1]


def _butterworth(edges: list[float], rate: float) -> tuple[list, list]:
    """Polynomials (b, a) of order 4: high-pass for one edge, band-pass for two; `edges` are exact floats."""
    import mpmath

    twice = 2 * mpmath.mpf(rate)
    warped = [twice * mpmath.tan(mpmath.pi * edge / rate) for edge in map(mpmath.mpf, edges)]
    low_pass = [mpmath.exp(1j * mpmath.pi * (2 * k + 5) / 8) for k in range(4)]
    if len(warped) == 1:
        zeros, poles, gain = [0] * 4, [warped[0] / pole for pole in low_pass], 1
    else:
        halves = [pole * (warped[1] - warped[0]) / 2 for pole in low_pass]
        roots = [mpmath.sqrt(half**2 - warped[0] * warped[1]) for half in halves]
        zeros, poles = [0] * 4, [h + r for h, r in zip(halves, roots)] + [h - r for h, r in zip(halves, roots)]
        gain = (warped[1] - warped[0]) ** 4
    gain *= mpmath.re(mpmath.fprod(twice - z for z in zeros) / mpmath.fprod(twice - p for p in poles))
    at_z = [(twice + z) / (twice - z) for z in zeros] + [-1] * (len(poles) - len(zeros))
    return [gain * c for c in _polynomial(at_z)], _polynomial([(twice + p) / (twice - p) for p in poles])


def _polynomial(roots: list) -> list:
    import mpmath

    coefficients = [mpmath.mpc(1)]
    for root in roots:
        coefficients = [high - root * low for high, low in zip([*coefficients, 0], [0, *coefficients])]
    return [mpmath.re(c) for c in coefficients]


def _forward_backward(b: list, a: list, samples: list[int]) -> list[int]:
    """`scipy.signal.filtfilt` on integers in units of 2^-400."""
    n, settled, state = 3 * len(b), sum(b) / sum(a), [0]
    for b_k, a_k in zip(b[:0:-1], a[:0:-1]):
        state.insert(0, b_k - a_k * settled + state[0])
    padded = [2 * samples[0] - s for s in samples[n:0:-1]] + samples + [2 * samples[-1] - s for s in samples[-2 : -n - 2 : -1]]
    b, a, state = list(map(_fixed, b)), list(map(_fixed, a)), list(map(_fixed, state))
    for _ in range(2):
        waiting, output = [(s * padded[0]) >> 400 for s in state], []
        for value in padded:
            filtered = ((b[0] * value) >> 400) + waiting[0]
            waiting = [((p * value - q * filtered) >> 400) + w for p, q, w in zip(b[1:], a[1:], waiting[1:])] + [0]
            output.append(filtered)
        padded = output[::-1]
    return padded[n:-n]
