"""Where the waves of the median beat begin and end, in all leads at once.

P and T begin and end where the tangent at their steepest place meets the level beside them (Lepeschkin & Surawicz 1952, of T):
for a Gaussian, two standard deviations from its centre. QRS begins and ends where the slopes of all leads together are as small
as they are there. NeuroKit2's delineation says where the peaks of P and T are.
Axes: L leads (12), N samples, B beats, M samples of a beat; D: a direction in the space of leads.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.signal import savgol_filter

from ecgbyte_jax.ecg.measure.beats import BEFORE, Beats, median_beat
from ecgbyte_jax.errors import RecordError

LEVEL_AT = 0.016  # s before QRS begins: where 0 mV is
_FIRST_LEVEL_AT = -0.10  # s from the R peak, before it is known where QRS begins
_QRS_SMOOTH, _WAVE_SMOOTH = 0.01, 0.02  # s that slopes are fitted over
_QRS_HALF = 0.16  # s on each side of the steepest place of a beat that its QRS may extend
_ONSET, _OFFSET = 0.10, 0.13  # of the steepest slope of a QRS: below, for `_QUIET` s, it has not begun or has ended
_QUIET, _SLURRED = 0.012, 3.5  # mV/s: nor has it ended above it, as where its last deflection is slurred
_REPEATED, _SHARE_BEFORE = 5.0, 0.45  # s of median beats in a row for NeuroKit2; the share of an interval that is before R
_NEAR = 0.024  # s that the highest place of a wave may be from where NeuroKit2 has it
_LONGEST = 0.18  # s of a QRS
_P_HALF, _T_HALF = 0.10, 0.16  # s from its peak that a wave may extend
_LIKE = 0.7  # correlation of a beat's P wave with that of the others
_ABOVE_NOISE = 5.0  # times the noise of the median beat that a wave's height is at least


@dataclass(frozen=True)
class Waves:
    """Places in s from the R peak; nan for those of a P or T wave that is not clear, for the reason in no_p or no_t."""

    qrs_on: float
    qrs_off: float
    p_on: float = np.nan
    p_peak: float = np.nan
    t_peak: float = np.nan
    t_off: float = np.nan
    no_p: str = ""
    no_t: str = ""


def find_waves(signal: np.ndarray, beats: Beats, start: float, stop: float) -> tuple[Waves, np.ndarray]:
    """The waves of the commonest beat from `start` to `stop` s of a signal [L, N] in mV, and its median [L, M].

    Raises RecordError where there are no two complete beats, or QRS has no clear beginning or end.
    """
    rate, at = beats.rate, BEFORE
    median, *_ = median_beat(signal, beats, _FIRST_LEVEL_AT, start, stop)
    on, _ = qrs_bounds(median, rate)
    median, noise, cut = median_beat(signal, beats, on - LEVEL_AT, start, stop)
    on, off = qrs_bounds(median, rate)
    interval = float(np.median(np.diff(beats.times)))
    p_peak, t_peak = _peaks(median, rate, interval)
    p_on, no_p = _tangent(median, rate, at + p_peak, max(at + p_peak - _P_HALF, 0.0), noise)
    p_on -= at
    no_p = no_p or ("" if p_on < p_peak < on else "it is not before QRS")
    no_p = no_p or ("" if _likeness(cut, at + p_on, at + on, at + p_peak, rate) > _LIKE else "it differs from beat to beat")
    next_wave = interval + (on if no_p else p_peak)
    t_off, no_t = _tangent(median, rate, at + t_peak, min(at + t_peak + _T_HALF, at + next_wave), noise)
    t_off -= at
    no_t = no_t or ("" if t_off > t_peak > off else "it is not after QRS")
    p, t = (np.nan, np.nan) if no_p else (p_on, p_peak), (np.nan, np.nan) if no_t else (t_peak, t_off)
    return Waves(on, off, *p, *t, no_p, no_t), median


def _peaks(median: np.ndarray, rate: float, interval: float) -> tuple[float, float]:
    """Where NeuroKit2 has the P and T peaks of a median beat that is repeated every `interval` s: s from R, nan for none."""
    import neurokit2

    before = min(BEFORE, _SHARE_BEFORE * interval)
    first, last = round((BEFORE - before) * rate), round((BEFORE - before + interval) * rate)
    beat = np.sqrt((median[:, first : min(last, median.shape[1])] ** 2).mean(axis=0))
    beat = beat - np.linspace(beat[0], beat[-1], len(beat))  # its end fits its beginning
    repeated = max(5, int(np.ceil(_REPEATED * rate / len(beat))))
    r = np.arange(repeated) * len(beat) + round(before * rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = neurokit2.ecg_delineate(np.tile(beat, repeated), r, sampling_rate=rate, method="dwt")[1]
        except (ArithmeticError, LookupError, ValueError):
            return np.nan, np.nan
    places = (np.array(found[name][:repeated], float) - r for name in ("ECG_P_Peaks", "ECG_T_Peaks"))
    p, t = (float(np.median(place[np.isfinite(place)])) / rate if np.isfinite(place).any() else np.nan for place in places)
    return p, t


def _likeness(cut: np.ndarray, start: float, stop: float, peak: float, rate: float) -> float:
    """The median correlation of each beat [B, L, M] from `start` to `stop` s with the median of the others, where P is largest.

    Fibrillation leaves something in the median too, but not in every beat.
    """
    part = slice(round(start * rate), round(stop * rate))
    direction = np.median(cut, axis=0)[:, round(peak * rate)]
    seen = np.einsum("l,blm->bm", direction, cut[:, :, part])
    seen = seen - seen.mean(axis=1, keepdims=True)
    others = [np.median(np.delete(seen, beat, axis=0), axis=0) for beat in range(len(seen))]
    pairs = [(one @ other) / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12) for one, other in zip(seen, others)]
    return float(np.median(pairs))


def qrs_bounds(median: np.ndarray, rate: float) -> tuple[float, float]:
    """Where the QRS of a median beat [L, M] begins and ends, s from the R peak; raises RecordError where it does not."""
    at, half = round(BEFORE * rate), round(_QRS_HALF * rate)
    slopes = savgol_filter(median, _window(_QRS_SMOOTH, rate), 2, deriv=1, axis=1)
    speed = np.sqrt((slopes**2).mean(axis=0))
    steepest = at - half // 2 + int(speed[at - half // 2 : at + half // 2].argmax())
    top = speed[steepest]
    on = _quiet(speed[steepest - half : steepest][::-1], _ONSET * top, rate)
    off = _quiet(speed[steepest : steepest + half + round(_QUIET * rate)], min(_OFFSET * top, _SLURRED / rate), rate)
    if on is None or off is None:
        raise RecordError(f"QRS has no clear {'beginning' if on is None else 'end'}")
    if on + 1 + off > _LONGEST * rate:
        raise RecordError("QRS goes over into a steep ST segment")
    return (steepest - 1 - on - at) / rate, (steepest + off - at) / rate


def _quiet(speed: np.ndarray, bound: float, rate: float) -> int | None:
    """The first sample from which on the speed [T] stays below the bound for 12 ms."""
    length = max(2, round(_QUIET * rate))
    below = np.convolve(speed < bound, np.ones(length), "valid") > length - 0.5
    return int(below.argmax()) if below.any() else None


def _tangent(median: np.ndarray, rate: float, peak: float, end: float, noise: float) -> tuple[float, str]:
    """Where a wave with a peak at `peak` s ends before `end` s of the median beat, or why that is not clear.

    It is seen from the direction D in which it is largest.
    """
    if not np.isfinite(peak):
        return np.nan, "NeuroKit2 finds none"
    at, stop, few = round(peak * rate), round(end * rate), max(1, round(0.01 * rate))
    direction = median[:, max(at - few, 0) : at + few + 1].mean(axis=1)  # [D]
    wave = savgol_filter(direction @ median / max(np.linalg.norm(direction), 1e-9), _window(_WAVE_SMOOTH, rate), 2)
    near, step = round(_NEAR * rate), 1 if stop > at else -1
    first = max(at - near, 0)
    top = first + int(wave[first : at + near + 1].argmax())
    flank = np.arange(top, stop, step)
    if top in (first, at + near) or len(flank) < 3:
        return np.nan, "NeuroKit2's place is no peak"
    slope = np.gradient(wave)
    steepest = flank[(slope[flank] * step).argmin()]
    level = wave[flank].min()
    if wave[top] - level < _ABOVE_NOISE * noise or slope[steepest] * step >= 0:
        return np.nan, "it is lost in noise"
    return (steepest - (wave[steepest] - level) / slope[steepest]) / rate, ""


def _window(seconds: float, rate: float) -> int:
    return max(5, round(seconds * rate) | 1)
