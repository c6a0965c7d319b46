"""Cleaning a recording as published: mains notches, band-pass, wavelet shrinkage, resampling, whole segments.

Axes: L leads (12), N samples, S segments, T samples of a segment.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import pywt
from scipy.interpolate import BSpline, make_interp_spline
from scipy.linalg import companion
from scipy.linalg.lapack import dgbtrf, dgbtrs
from scipy.signal import butter, iirnotch, lfilter
from scipy.sparse import csr_array, find

from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.errors import RecordError

_SPLINE_DEGREE = 3


@dataclass(frozen=True)
class CleanConfig:
    """How recordings are cleaned; the defaults are the published ones. Frequencies in Hz, spans in samples.

    A step is left out by notches (), band (), highpass 0, wavelet "", or target_rate 0, which keeps a recording's own rate.
    A recording beyond max_amplitude is refused; 0 takes all.
    """

    target_rate: float = 250.0
    notches: tuple[float, ...] = (50.0, 60.0)
    notch_quality: float = 30.0
    band: tuple[float, float] = (0.5, 100.0)
    highpass: float = 0.05
    order: int = 4
    wavelet: str = "db6"
    wavelet_level: int = 4
    max_amplitude: float = 20.0  # mV


def clean(record: Record, config: CleanConfig = CleanConfig()) -> np.ndarray:
    """Cleans one recording as ECG-Byte does.

    Returns float64 [12, N] in mV at `config.target_rate`, leads in the order of `LEADS`, taken by name.
    Raises RecordError for a missing, doubled or flat lead, samples that are not finite or beyond `config.max_amplitude`, or too
    short a recording.
    """
    signal = select_leads(record, config.max_amplitude)
    signal = filter_bands(signal, record.sample_rate, config)
    if config.wavelet:
        signal = denoise(signal, config.wavelet, config.wavelet_level)
    return resample(signal, record.sample_rate, config.target_rate) if config.target_rate else signal


def select_leads(record: Record, max_amplitude: float = 0.0) -> np.ndarray:
    """The twelve standard leads by name, float64 [12, N] in mV.

    Raises RecordError where one is missing, doubled, flat, NaN, or beyond `max_amplitude` mV (0: no bound).
    """
    doubled = sorted({lead for lead in record.leads if lead in LEADS and record.leads.count(lead) > 1})
    if doubled:
        raise RecordError(f"leads {doubled} stand there twice; found {list(record.leads)}")
    missing = [lead for lead in LEADS if lead not in record.leads]
    if missing:
        raise RecordError(f"leads {missing} are missing; found {list(record.leads)}")
    # Recorders store whole steps (1 uV in PTB-XL, 5 uV in MIMIC-IV-ECG): rounding to 1 nV turns float32 back into the
    # very float64 that the published code filters. The 0.05 Hz high-pass needs it: it answers a change of one part
    # in 1e15 with 2e-5 mV.
    signal = np.round(record.signal[[record.leads.index(lead) for lead in LEADS]].astype(np.float64), 6)
    broken = [lead for lead, row in zip(LEADS, signal) if not np.isfinite(row).all()]
    if broken:
        raise RecordError(f"leads {broken} hold values that are not finite (NaN)")
    beyond = [lead for lead, row in zip(LEADS, signal) if max_amplitude and np.abs(row).max() > max_amplitude]
    if beyond:
        worst = np.abs(signal).max()
        raise RecordError(
            f"leads {beyond} reach {worst:.1f} mV, beyond {max_amplitude:g} mV: no ECG, or another gain than told"
        )
    flat = [lead for lead, row in zip(LEADS, signal) if row.min() == row.max()]
    if flat:
        raise RecordError(f"leads {flat} are flat: one value throughout, so no electrode was recorded")
    return signal


def filter_bands(signal: np.ndarray, sample_rate: float, config: CleanConfig = CleanConfig()) -> np.ndarray:
    """Notches, band-pass and high-pass, each forward and backward; float64 [L, N] -> [L, N]."""
    filters = _filters(sample_rate, config)
    shortest = max((_padding(b) for b, _, _ in filters), default=0) + 1
    if signal.shape[-1] < shortest:
        raise RecordError(f"{signal.shape[-1]} samples found, at least {shortest} wanted for filtering")
    for b, a, state in filters:
        signal = _forward_backward(b, a, state, signal)
    return signal


@cache
def _filters(sample_rate: float, config: CleanConfig) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(numerator, denominator, initial state) in the order of application; what lies above Nyquist falls away."""
    nyquist = sample_rate / 2
    lowest = max([config.highpass, *config.band[:1]])
    if nyquist <= lowest:
        raise RecordError(f"sample rate {sample_rate:g} Hz found, more than {2 * lowest:g} Hz wanted")
    filters = [iirnotch(f, config.notch_quality, sample_rate) for f in config.notches if f < nyquist]
    if config.band and config.band[1] < nyquist:
        filters.append(butter(config.order, config.band, btype="band", fs=sample_rate))
    elif config.band:
        filters.append(butter(config.order, config.band[0], btype="high", fs=sample_rate))
    if config.highpass:
        filters.append(butter(config.order, config.highpass, btype="high", fs=sample_rate))
    return [(b, a, _initial_state(b, a)) for b, a in filters]


def _forward_backward(b: np.ndarray, a: np.ndarray, state: np.ndarray, signal: np.ndarray) -> np.ndarray:
    """What `scipy.signal.filtfilt` does, with a given initial state [order]; [L, N] -> [L, N]."""
    n = _padding(b)
    left, right = 2 * signal[:, :1] - signal[:, n:0:-1], 2 * signal[:, -1:] - signal[:, -2 : -n - 2 : -1]
    padded = np.concatenate([left, signal, right], axis=1)
    for _ in range(2):  # forward, then backward
        padded, _ = lfilter(b, a, padded, axis=1, zi=state * padded[:, :1])
        padded = padded[:, ::-1]
    return padded[:, n:-n]


def _padding(b: np.ndarray) -> int:
    """Samples by which a signal is extended at each end before filtering."""
    return 3 * len(b)


def _initial_state(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The filter state [order] that a constant input of 1 settles to (`scipy.signal.lfilter_zi`).

    For the 0.05 Hz high-pass this linear system is so ill-conditioned that its third digit depends on which BLAS
    kernel solves it, and the cleaned signal by 1e-5 mV with it. Elimination in plain IEEE steps (a pivot's
    reciprocal, no fused multiply-add) gives the published numbers, and the same ones on every machine.
    """
    order = len(a) - 1
    matrix = np.eye(order) - companion(a).T
    x = b[1:] - a[1:] * b[0]
    for k in range(order):
        pivot = k + np.argmax(np.abs(matrix[k:, k]))
        matrix[[k, pivot]], x[[k, pivot]] = matrix[[pivot, k]], x[[pivot, k]]
        factors = matrix[k + 1 :, k] * (1.0 / matrix[k, k])
        matrix[k + 1 :] -= factors[:, None] * matrix[k]
        x[k + 1 :] -= factors * x[k]
    for k in reversed(range(order)):
        x[k] /= matrix[k, k]
        x[:k] -= matrix[:k, k] * x[k]
    return x


def denoise(signal: np.ndarray, wavelet: str = "db6", level: int = 4) -> np.ndarray:
    """Soft-thresholds all wavelet details of each lead at median|coarsest detail| / 0.6745; float64 [L, N] -> [L, N]."""
    approximation, *details = pywt.wavedec(signal, wavelet, level=level, axis=-1)
    threshold = np.median(np.abs(details[0]), axis=-1, keepdims=True) / 0.6745  # [L, 1]
    shrunk = [np.sign(d) * np.maximum(np.abs(d) - threshold, 0.0) for d in details]
    return pywt.waverec([approximation, *shrunk], wavelet, axis=-1)[..., : signal.shape[-1]]


def resample(signal: np.ndarray, sample_rate: float, target_rate: float) -> np.ndarray:
    """Cubic interpolation onto linspace(0, duration, n), both ends included, as published; [L, N] -> [L, n]."""
    factors, pivots, evaluate = _spline(signal.shape[-1], sample_rate, target_rate)
    coefficients, _ = dgbtrs(factors, _SPLINE_DEGREE, _SPLINE_DEGREE, signal.T, pivots)  # [N, L]
    return np.ascontiguousarray((evaluate @ coefficients).T)


@lru_cache(maxsize=16)  # recordings of a corpus have few lengths
def _spline(samples: int, sample_rate: float, target_rate: float) -> tuple[np.ndarray, np.ndarray, csr_array]:
    """The not-a-knot cubic spline on its two fixed grids: the LU factors of what its coefficients solve, and the matrix [n, N]
    that evaluates it. The same as `scipy.interpolate.make_interp_spline`, without doing it anew for every recording.
    """
    duration = samples / sample_rate  # s
    found = np.linspace(0.0, duration, samples)
    wanted = np.linspace(0.0, duration, int(duration * target_rate))
    if samples <= _SPLINE_DEGREE:
        raise RecordError(f"{samples} samples found, more than {_SPLINE_DEGREE} wanted for resampling")
    knots = make_interp_spline(found, found, k=_SPLINE_DEGREE).t
    rows, columns, values = find(BSpline.design_matrix(found, knots, _SPLINE_DEGREE))
    bands = np.zeros((3 * _SPLINE_DEGREE + 1, samples), order="F")  # LAPACK's layout, with room for the factors
    bands[2 * _SPLINE_DEGREE + rows - columns, columns] = values
    factors, pivots, _ = dgbtrf(bands, _SPLINE_DEGREE, _SPLINE_DEGREE)
    return factors, pivots, csr_array(BSpline.design_matrix(wanted, knots, _SPLINE_DEGREE))


def segment(signal: np.ndarray, length: int) -> np.ndarray:
    """Cuts [L, N] into its whole segments [S, L, length] from the start; raises RecordError where there is none."""
    leads, samples = signal.shape
    count = samples // length
    if count == 0:
        raise RecordError(f"{samples} samples found after resampling, at least one segment of {length} wanted")
    return signal[:, : count * length].reshape(leads, count, length).swapaxes(0, 1)
