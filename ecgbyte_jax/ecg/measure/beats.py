"""R peaks, found by NeuroKit2 in all leads at once, and the median beat.

Axes: L leads (12), N samples, B beats, M samples of a beat.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.signal import butter, fftconvolve, find_peaks, sosfiltfilt

from ecgbyte_jax.errors import RecordError

BEFORE, AFTER = 0.40, 0.60  # s of a median beat around its R peak
_BAND = 0.5, 40.0  # Hz of the signal in which peaks are sought
_MIRRORED = 1.0  # s at both ends, so that the first and last beats are found as well
_TEMPLATE = 0.10  # s on each side of an R peak, by which beats are aligned and compared
_SHIFT = 0.04  # s that a beat is moved at most
_ALIKE = 0.8  # correlation with the commonest beat from which on a beat is of its kind
_APART = 0.2  # s between two beats, at least
_STEEP = 0.33  # of the commonest beats' steepest slope: what is less steep is no beat, for example a tall T wave
_CUT = 0.15  # s from an end of the recording, within which a beat may be cut
_LEVEL = 0.024  # s that a beat's level is averaged over


@dataclass(frozen=True, eq=False)
class Beats:
    """The beats of a signal: R peaks in samples, int [B]; whether each is of the commonest kind, bool [B]; rate in Hz.

    cut: places close to an end where there may be another beat, int.
    """

    peaks: np.ndarray
    alike: np.ndarray
    rate: float
    cut: np.ndarray

    @property
    def times(self) -> np.ndarray:
        """The R peaks in s, float64 [B]."""
        return self.peaks / self.rate

    def at_rate(self, rate: float) -> "Beats":
        """The same beats in samples at another rate."""
        return Beats(np.round(self.times * rate).astype(np.int64), self.alike, rate, np.round(self.cut * rate / self.rate))


def _waves_alone(signal: np.ndarray, rate: float) -> np.ndarray:
    """A signal [L, N] from 0.5 to 40 Hz."""
    sections = butter(2, (_BAND[0], min(_BAND[1], 0.45 * rate)), "bandpass", fs=rate, output="sos")
    return sosfiltfilt(sections, signal, axis=1)


def find_beats(signal: np.ndarray, rate: float) -> Beats:
    """Finds the beats of a signal [L, N] in mV; raises RecordError where there are fewer than two, or NeuroKit2 fails."""
    import neurokit2  # three seconds

    padding = min(round(_MIRRORED * rate), signal.shape[1] - 1)
    filtered = _waves_alone(signal, rate)
    # The root mean square over the leads, in which no wave is negative.
    padded = np.pad(np.sqrt((filtered**2).mean(axis=0)), padding, "reflect")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = neurokit2.ecg_peaks(padded, sampling_rate=rate)[1]["ECG_R_Peaks"]
        except (ArithmeticError, LookupError, ValueError) as error:
            raise RecordError(f"NeuroKit2 finds no R peaks: {error}") from error
    peaks = np.asarray(found, np.int64) - padding
    peaks = peaks[(peaks >= 0) & (peaks < signal.shape[1])]
    if len(peaks) < 2:
        raise RecordError(f"{len(peaks)} R peaks found in {signal.shape[1] / rate:.1f} s, two or more expected")
    return _align(filtered, peaks, rate)


def _align(signal: np.ndarray, peaks: np.ndarray, rate: float) -> Beats:
    """Moves the beats of the commonest kind to where they fit their median best, and adds those that were missed.

    Slopes are compared, which wander does not change. Raises RecordError where no two beats are alike.
    """
    half, shift = round(_TEMPLATE * rate), round(_SHIFT * rate)
    slopes = np.pad(np.gradient(signal, axis=1), ((0, 0), (half + shift, half + shift)))
    peaks, alike, template = _fit(slopes, peaks, half, shift)
    missed = _find_template(slopes[:, shift:-shift], template, peaks[alike], round(_APART * rate))
    missed = missed[np.abs(missed[:, None] - peaks).min(axis=1) > _APART * rate]
    if len(missed):
        peaks, alike, _ = _fit(slopes, np.sort(np.concatenate([peaks, missed])), half, shift)
    steep = np.array([_steepest(slopes[:, peak + shift : peak + shift + 2 * half]) for peak in peaks])
    cut = ~alike & (np.minimum(peaks, signal.shape[1] - peaks) < _CUT * rate)
    beats = alike | (~cut & (steep > _STEEP * np.median(steep[alike])))
    return Beats(peaks[beats], alike[beats], rate, peaks[cut])


def _fit(slopes: np.ndarray, peaks: np.ndarray, half: int, shift: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(peaks where they fit best, which are alike, the median slopes [L, 2 half + 1] of these, of norm 1)."""
    pieces = np.stack([slopes[:, peak : peak + 2 * (half + shift) + 1] for peak in peaks])  # [B, L, 2 (half + shift) + 1]
    windows = np.lib.stride_tricks.sliding_window_view(pieces, 2 * half + 1, axis=2)  # [B, L, 2 shift + 1, 2 half + 1]
    norms = np.maximum(np.sqrt((windows**2).sum(axis=(1, 3))), 1e-9)  # [B, 2 shift + 1]
    units = windows[:, :, shift] / norms[:, shift, None, None]
    likeness = np.einsum("blt,clt->bc", units, units)
    alike = likeness[(likeness > _ALIKE).sum(axis=1).argmax()] > _ALIKE
    places = np.full(len(peaks), shift)
    for _ in range(2):
        template = np.median(windows[alike, :, places[alike]], axis=0)
        template = template / max(np.linalg.norm(template), 1e-9)
        fits = np.einsum("blst,lt->bs", windows, template) / norms
        places, alike = fits.argmax(axis=1), fits.max(axis=1) > _ALIKE
        if alike.sum() < 2:
            raise RecordError("no two beats are alike")
    return np.where(alike, peaks + places - shift, peaks), alike, template


def _find_template(slopes: np.ndarray, template: np.ndarray, peaks: np.ndarray, apart: int) -> np.ndarray:
    """The places, `apart` samples or more, where slopes [L, N + 2 half] are like the template [L, 2 half + 1].

    They are at least half as high there as the template's peaks, as no P or T wave is.
    """
    products = fftconvolve(slopes, template[:, ::-1], "valid", axes=1).sum(axis=0)  # [N]
    squares = np.convolve((slopes**2).sum(axis=0), np.ones(template.shape[1]), "valid")
    places = find_peaks(products / np.sqrt(np.maximum(squares, 1e-18)), height=_ALIKE, distance=apart)[0]
    return places[products[places] > np.median(products[peaks]) / 2]


def _steepest(slopes: np.ndarray) -> float:
    """The largest root mean square over the leads of slopes [L, T]."""
    return float(np.sqrt((slopes**2).mean(axis=0)).max())


def median_beat(
    signal: np.ndarray, beats: Beats, level_at: float, start: float, stop: float
) -> tuple[np.ndarray, float, np.ndarray]:
    """The median of the commonest kind's beats that are whole from `start` to `stop` s, its noise, and these beats, in mV.

    They are [L, M], a number and [B, L, M].
    From `BEFORE` s before the R peak to `AFTER` s after it; 0 mV is a line through the levels `level_at` s beside the R peaks.
    Raises RecordError where there are fewer than two.
    """
    rate, samples = beats.rate, signal.shape[1]
    before, after, width = round(BEFORE * rate), round(AFTER * rate), max(1, round(_LEVEL * rate / 2))
    at = beats.peaks + round(level_at * rate)
    known = beats.alike & (at - width >= 0) & (at + width < samples)
    whole = known & (beats.peaks - before >= start * rate) & (beats.peaks + after <= min(stop * rate, samples))
    if whole.sum() < 2:
        raise RecordError(f"{whole.sum()} complete beats of the commonest kind found, two or more expected")
    levels = np.stack([signal[:, place - width : place + width + 1].mean(axis=1) for place in at[known]])  # [B, L]
    spans = np.stack([np.arange(peak - before, peak + after) for peak in beats.peaks[whole]])  # [B, M]
    level = np.stack([np.interp(spans, at[known], of_lead) for of_lead in levels.T], axis=1)  # [B, L, M]
    cut = np.stack([signal[:, span] for span in spans]) - level
    median = np.median(cut, axis=0)
    return median, float(1.4826 * np.median(np.abs(cut - median)) / np.sqrt(len(cut))), cut
