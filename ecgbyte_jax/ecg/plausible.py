"""Whether a recording is what it says: its units, its sample rate and the names of its limb leads.

Axes: L leads, N samples, K limb leads.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter1d
from scipy.signal import find_peaks

from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.errors import RecordError

# The limb leads as sums of I and II: Einthoven's law (III = II - I) and Goldberger's leads.
LIMB = {"I": (1, 0), "II": (0, 1), "III": (-1, 1), "aVR": (-0.5, -0.5), "aVL": (1, -0.5), "aVF": (-0.5, 1)}
# Hz. A recording holds frequencies up to half of its rate, and a QRS complex has 40 Hz and more.
_LEAST_RATE = 50.0
# Generous bounds in mV on the span (1st to 99th percentile) of an ECG's median lead.
_LEAST_SPAN, _MOST_SPAN = 0.02, 20.0
# A rate wrong by a factor of 5 makes most hearts too slow with flat slopes, or too fast. 130 recordings of PTB-XL have 44 to
# 173 beats per minute and a median slope frequency of 8 to 115 Hz.
_SLOW, _FLAT, _FAST = 30.0, 12.0, 300.0  # beats/min, Hz, beats/min
# Beats per minute times the slope frequency, and the QRS width in s, that a rate twice or half the true one would explain.
_TOO_FAST, _TOO_SLOW, _NARROW = 3500.0, 600.0, 0.05  # beats/min Hz, beats/min Hz, s
# What the limb leads may deviate from Einthoven's law, as a part of their amplitude; other names are right if they fit so
# many times better.
_DEVIATION, _TIMES_BETTER = 0.1, 10.0


def check_plausible(record: Record, path: Path) -> tuple[str, ...]:
    """Raises RecordError, with what to do, if leads are missing or units or rate are implausible; values are finite.

    Returns a sentence if the rate appears to be twice or half the true one. Of 399 recordings (388 of PTB-XL, 10 of CPSC 2018,
    a DICOM file), by which the bounds were chosen, this is said of 1 at the true rate; at twice the rate 377 are refused or
    noted, at half of it 366.
    """
    missing = [lead for lead in LEADS if lead not in record.leads]
    if missing:
        raise RecordError(
            f"{path}: leads {missing} are missing, found {list(record.leads)}; name the twelve standard leads, or V1 to V6 and "
            "two of I, II and III"
        )
    if not record.signal.size:
        raise RecordError(f"{path}: no samples found")
    signal = record.signal.astype(np.float64)
    span = float(np.median(np.subtract(*np.percentile(signal, [99, 1], axis=1))))
    if span == 0:
        raise RecordError(f"{path}: most leads are flat in {record.signal.shape[1]} samples, an ECG expected")
    if not _LEAST_SPAN <= span <= _MOST_SPAN:
        looks = "microvolts" if span > _MOST_SPAN else "volts"
        unit = "uV" if span > _MOST_SPAN else "V"
        raise RecordError(
            f"{path}: the leads span {span:.3g} mV, which looks like {looks}: give --units={unit} with a .csv or .npy file, "
            "or correct the unit in its header or the gain in the WFDB header"
        )
    rate = record.sample_rate
    if rate < _LEAST_RATE:
        raise RecordError(
            f"{path}: at {rate:g} Hz a QRS complex is not recorded, {_LEAST_RATE:g} Hz or more expected; give the rate of the "
            "recording"
        )
    peaks, beats, slopes = *_beats(signal, rate), _slope_frequency(signal, rate)
    if beats > _FAST or (beats < _SLOW and slopes < _FLAT):
        raise RecordError(
            f"{path}: at {rate:g} Hz the heart would beat {beats:.0f} times a minute, so the rate is wrong; give the rate of "
            "the recording"
        )
    width = _qrs_width(signal, peaks, rate)
    fast = beats * slopes > _TOO_FAST and width < _NARROW
    slow = beats * slopes < _TOO_SLOW and width > _NARROW
    if not fast and not slow:
        return ()
    return (
        f"at {rate:g} Hz the heart beats {beats:.0f} times a minute with {'narrow' if fast else 'wide'} QRS complexes of "
        f"{1000 * width:.0f} ms; check the rate, it may be {rate / 2 if fast else rate * 2:g} Hz",
    )


def check_limb_leads(record: Record, path: Path) -> tuple[str, ...]:
    """Checks Einthoven's law, II = I + III, and what follows for aVR, aVL and aVF, on the limb leads that a recording has.

    Raises RecordError if they deviate by more than a tenth of their amplitude and fit ten times better with other names, or
    with one lead turned upside down; the message names these. Returns a sentence if they deviate and nothing repairs it. 423
    recordings of PTB-XL, CPSC 2018 and a DICOM file deviate by 0.2% (median), all but one by less than 0.7%, that one by 7%. Of
    the 6,345 swaps of two limb leads' names in them, 6,324 are refused and 9 noted.

    What cannot be seen: swapped electrodes, as all leads are then recorded consistently; swapped chest leads; all leads upside
    down; I and III swapped where aVR, aVL and aVF are absent; anything where fewer than three limb leads are given.
    """
    names = [name for name in LIMB if name in record.leads]
    if len(names) < 3 or record.signal.shape[1] < 2:
        return ()
    covariance = np.cov(record.signal.astype(np.float64))  # [L, L]
    columns = [record.leads.index(name) for name in names]
    deviation = _deviation(covariance[np.ix_(columns, columns)], names)
    if deviation <= _DEVIATION or not covariance[columns, columns].any():
        return ()
    found = f"the limb leads deviate by {deviation:.0%} from Einthoven's law, II = I + III"
    repairs = _renamed(covariance, names, columns, record.leads) + _inverted(covariance, names, columns)
    best = min((fit for fit, _ in repairs), default=np.inf)
    if best > min(_DEVIATION, deviation / _TIMES_BETTER):
        return (f"{found}, and no other names of the leads explain it; check names, signs and units",)
    fitting = [text for fit, text in repairs if fit <= min(_DEVIATION, deviation / _TIMES_BETTER, 2 * best)]
    raise RecordError(f"{path}: {found}, but {best:.1%} if {', or '.join(fitting[:3])}; correct the file or the names")


def _deviation(covariance: np.ndarray, names: Sequence[str]) -> float:
    """The part of the amplitude (root mean square) of leads, covariance [K, K], that no two potentials I and II explain."""
    mixture = np.array([LIMB[name] for name in names])
    unexplained = np.eye(len(names)) - mixture @ np.linalg.pinv(mixture)
    power = float(np.trace(covariance))
    return float(np.sqrt(max(np.sum(unexplained * covariance), 0.0) / power)) if power > 0 else np.inf


def _inverted(covariance: np.ndarray, names: list[str], columns: list[int]) -> list[tuple[float, str]]:
    """(deviation, what is supposed) for each single lead upside down."""
    block = covariance[np.ix_(columns, columns)]
    signs = 1 - 2 * np.eye(len(names))
    return [(_deviation(block * np.outer(s, s), names), f"{name} is upside down") for name, s in zip(names, signs)]


def _renamed(covariance: np.ndarray, names: list[str], columns: list[int], leads: tuple[str, ...]) -> list[tuple[float, str]]:
    """(deviation, what is supposed) for other names, few changes first: any two leads may be the first two of `names`.

    The leads that are nearest to what these two imply are the others.
    """
    mixture = np.array([LIMB[name] for name in names])
    weights = mixture[2:] @ np.linalg.inv(mixture[:2])  # [K - 2, 2]
    repairs = []
    for a in range(len(leads)):
        for b in range(len(leads)):
            if a == b:
                continue
            pair = covariance[[a, b]]
            explained = np.einsum("ki,ij,kj->k", weights, pair[:, [a, b]], weights)
            distance = np.diag(covariance) - 2 * weights @ pair + explained[:, None]  # [K - 2, L]
            distance[:, [a, b]] = np.inf
            order = [a, b, *(int(i) for i in distance.argmin(axis=1))]
            if len(set(order)) == len(order) and order != columns:
                changed = [(leads[i], name) for i, name in zip(order, names) if leads[i] != name]
                repairs.append((len(changed), _deviation(covariance[np.ix_(order, order)], names), _say(changed)))
    return [(fit, text) for _, fit, text in sorted(repairs)]


def _say(changed: list[tuple[str, str]]) -> str:
    """Says which leads have wrong names, given as (name, right name)."""
    old, new = zip(*changed)
    if len(changed) == 2 and set(old) == set(new):
        return f"the names {new[0]} and {new[1]} are swapped"
    return f"the leads named {', '.join(old)} are {', '.join(new)}"


def beats_a_minute(record: Record) -> float:
    """The heart rate by the median distance of the QRS complexes; NaN if there are fewer than three of them."""
    return _beats(record.signal.astype(np.float64), record.sample_rate)[1]


def _beats(signal: np.ndarray, rate: float) -> tuple[np.ndarray, float]:
    """Bursts of steep slopes (samples) of signal [L, N] and, by their median distance, beats per minute; NaN if under three."""
    if signal.shape[1] < 2:
        return np.zeros(0, int), np.nan
    span, steep = _steepness(signal, 0.02, rate)
    energy = uniform_filter1d(steep, max(1, round(0.08 * rate)))
    energy = energy - np.median(energy)
    peaks, _ = find_peaks(energy, distance=max(1, round(0.1 * rate)), prominence=0.4 * np.percentile(energy, 98))
    beats = 60 * rate / float(np.median(np.diff(peaks))) if len(peaks) > 2 else np.nan
    return peaks + span // 2, beats


def _steepness(signal: np.ndarray, seconds: float, rate: float) -> tuple[int, np.ndarray]:
    """(a span of about `seconds` in samples, the mean over leads of the changes of signal [L, N] over this span)."""
    span = min(max(1, round(seconds * rate)), signal.shape[1] - 1)
    slopes = np.abs(signal[:, span:] - signal[:, :-span])
    return span, (slopes / (np.percentile(slopes, 99, axis=1, keepdims=True) + 1e-9)).mean(axis=0)


def _qrs_width(signal: np.ndarray, peaks: np.ndarray, rate: float) -> float:
    """Duration in s of the steep part (above 0.3 of the steepest) of signal [L, N]'s median beat; NaN without two beats."""
    side = round(0.15 * rate)
    if signal.shape[1] < 2 or not side:
        return np.nan
    steep = uniform_filter1d(_steepness(signal, 0.012, rate)[1], max(1, round(0.012 * rate)))
    inside = peaks[(peaks >= side) & (peaks < len(steep) - side)]
    if len(inside) < 2:
        return np.nan
    beat = np.median(np.stack([steep[peak - side : peak + side + 1] for peak in inside]), axis=0)
    beat = beat - np.percentile(beat, 20)
    wide = np.flatnonzero(beat > 0.3 * beat.max())
    return (wide[-1] - wide[0] + 1) / rate if len(wide) else np.nan


def _slope_frequency(signal: np.ndarray, rate: float) -> float:
    """The median frequency in Hz of the power of the slopes of signal [L, N]; NaN for a single sample."""
    slopes = np.diff(signal, axis=1)
    if not slopes.size:
        return np.nan
    slopes = slopes / (slopes.std(axis=1, keepdims=True) + 1e-9)
    power = np.cumsum((np.abs(np.fft.rfft(slopes, axis=1)) ** 2).sum(axis=0))
    return float(np.fft.rfftfreq(slopes.shape[1], 1 / rate)[np.searchsorted(power, power[-1] / 2)])
