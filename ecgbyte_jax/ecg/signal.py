"""Cleaning a recording as published: mains notches, band-pass, wavelet shrinkage, resampling, segmentation.

Axes: L leads (12), N samples, S segments, T samples per segment.
"""

from collections.abc import Callable
from functools import cache, lru_cache, partial

import numpy as np
import pywt
from scipy.interpolate import BSpline, make_interp_spline
from scipy.linalg import companion
from scipy.linalg.lapack import dgbtrf, dgbtrs
from scipy.signal import butter, iirnotch, lfilter, sosfilt, sosfilt_zi
from scipy.sparse import csr_array, find

from ecgbyte_jax.ecg.clean_config import CleanConfig
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.errors import RecordError

_PUBLISHED_RATE = 500.0  # Hz
_HIGHEST_RATE = 1e5  # Hz; the filters' error is 1e-7 mV there
_SPLINE_DEGREE = 3


def clean(record: Record, config: CleanConfig = CleanConfig()) -> np.ndarray:
    """Cleans one recording as ECG-Byte does.

    Returns float64 [12, N] in mV at `config.target_rate`, leads in the order of `LEADS`, taken by name.
    Raises RecordError for a missing, duplicate or flat lead, samples that are not finite or exceed `config.max_amplitude`,
    before or after cleaning, or a recording that is too short.
    """
    signal = select_leads(record, config.max_amplitude)
    signal = filter_bands(signal, record.sample_rate, config)
    if config.wavelet:
        signal = denoise(signal, config.wavelet, config.wavelet_level)
    if config.target_rate:
        signal = resample(signal, record.sample_rate, config.target_rate)
    _check_values(signal, config.max_amplitude, "after cleaning, ")
    return signal


def select_leads(record: Record, max_amplitude: float = 0.0) -> np.ndarray:
    """Returns the twelve standard leads by name, float64 [12, N] in mV.

    Raises RecordError if one is missing, duplicate, flat, NaN, or exceeds `max_amplitude` mV (0: no bound).
    """
    duplicates = sorted({lead for lead in record.leads if lead in LEADS and record.leads.count(lead) > 1})
    if duplicates:
        raise RecordError(f"leads {duplicates} are there twice; found {list(record.leads)}")
    missing = [lead for lead in LEADS if lead not in record.leads]
    if missing:
        raise RecordError(f"leads {missing} are missing; found {list(record.leads)}")
    # Recorders store integer steps (1 uV in PTB-XL, 5 uV in MIMIC-IV-ECG): rounding to 1 nV recovers from float32 the exact
    # float64 that the published code filters. The 0.05 Hz high-pass needs it: a change of one part in 1e15 changes its output
    # by 2e-5 mV.
    signal = np.round(record.signal[[record.leads.index(lead) for lead in LEADS]].astype(np.float64), 6)
    _check_values(signal, max_amplitude)
    flat = [lead for lead, row in zip(LEADS, signal) if row.min() == row.max()]
    if flat:
        raise RecordError(f"leads {flat} are flat: one value throughout, so no electrode was recorded")
    return signal


def _check_values(signal: np.ndarray, max_amplitude: float, when: str = "") -> None:
    broken = [lead for lead, row in zip(LEADS, signal) if not np.isfinite(row).all()]
    if broken:
        raise RecordError(f"{when}leads {broken} hold values that are not finite (NaN)")
    beyond = [lead for lead, row in zip(LEADS, signal) if max_amplitude and np.abs(row).max() > max_amplitude]
    if beyond:
        worst = np.abs(signal).max()
        raise RecordError(
            f"{when}leads {beyond} reach {worst:.1f} mV, beyond {max_amplitude:g} mV: not an ECG, or the gain is wrong"
        )


def filter_bands(signal: np.ndarray, sample_rate: float, config: CleanConfig = CleanConfig()) -> np.ndarray:
    """Applies notches, band-pass and high-pass, each forward and backward; float64 [L, N] -> [L, N].

    Raises RecordError if the recording is too short or its rate unsuitable.
    """
    filters = _filters(sample_rate, config)
    shortest = max((padding for padding, _ in filters), default=0) + 1
    if signal.shape[-1] < shortest:
        raise RecordError(f"{signal.shape[-1]} samples found, at least {shortest} expected for filtering")
    for padding, run in filters:
        signal = _forward_backward(padding, run, signal)
    return signal


# A filter: the padding in samples at each end, and the forward pass [L, N] -> [L, N] from the steady state.
_Filter = tuple[int, Callable[[np.ndarray], np.ndarray]]


@cache
def _filters(sample_rate: float, config: CleanConfig) -> list[_Filter]:
    """The filters in the order of application, without those above Nyquist."""
    nyquist = sample_rate / 2
    lowest = max([config.highpass, *config.band[:1]])
    if nyquist <= lowest:
        raise RecordError(f"sample rate {sample_rate:g} Hz found, more than {2 * lowest:g} Hz expected")
    if sample_rate > _HIGHEST_RATE:
        raise RecordError(
            f"sample rate {sample_rate:g} Hz found, at most {_HIGHEST_RATE:g} Hz expected; correct the header's rate"
        )
    as_published = _as_published(sample_rate, config)
    butterworth = partial(butter, config.order, fs=sample_rate, output="ba" if as_published else "sos")
    notches = [iirnotch(f, config.notch_quality, sample_rate) for f in config.notches if f < nyquist]
    filters = notches if as_published else [np.concatenate(notch)[None] for notch in notches]
    if config.band and config.band[1] < nyquist:
        filters.append(butterworth(config.band, btype="band"))
    elif config.band:
        filters.append(butterworth(config.band[0], btype="high"))
    if config.highpass:
        filters.append(butterworth(config.highpass, btype="high"))
    return [_by_polynomials(*coefficients) if as_published else _by_sections(coefficients) for coefficients in filters]


def _as_published(sample_rate: float, config: CleanConfig) -> bool:
    """Whether the published form of the filters, two polynomials, is accurate: it loses digits as roots approach 1.

    Its error is 1e-4 mV at 500 Hz and 0.2 mV at 2,048 Hz, and it is unstable at 3,000 Hz; the error of second-order sections
    is 1e-9 mV at 10 kHz.
    """
    published = CleanConfig()
    accurate = config.order <= published.order and (not config.band or config.band[0] >= published.band[0])
    return accurate and sample_rate <= _PUBLISHED_RATE and (not config.highpass or config.highpass >= published.highpass)


def _by_polynomials(b: np.ndarray, a: np.ndarray) -> _Filter:
    state = _initial_state(b, a)
    return 3 * len(b), lambda signal: lfilter(b, a, signal, axis=1, zi=state * signal[:, :1])[0]


def _by_sections(sections: np.ndarray) -> _Filter:
    state = sosfilt_zi(sections)[:, None]  # [sections, 1, 2]
    first_order = int((sections[:, [2, 5]] == 0).all(axis=1).sum())  # one if the order is odd
    padding = 3 * (2 * len(sections) + 1 - first_order)
    return padding, lambda signal: sosfilt(sections, signal, axis=1, zi=state * signal[:, :1])[0]


def _forward_backward(n: int, run: Callable[[np.ndarray], np.ndarray], signal: np.ndarray) -> np.ndarray:
    """Like `scipy.signal.filtfilt`, with a filter that starts in its steady state; [L, N] -> [L, N]."""
    left, right = 2 * signal[:, :1] - signal[:, n:0:-1], 2 * signal[:, -1:] - signal[:, -2 : -n - 2 : -1]
    padded = np.concatenate([left, signal, right], axis=1)
    for _ in range(2):  # forward, then backward
        padded = run(padded)[:, ::-1]
    return padded[:, n:-n]


def _initial_state(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """The steady state [order] of a filter with a constant input of 1 (`scipy.signal.lfilter_zi`).

    For the 0.05 Hz high-pass this linear system is so ill-conditioned that its third digit depends on the BLAS kernel, and
    with it the cleaned signal by 1e-5 mV. Elimination in plain IEEE steps (a pivot's reciprocal, no fused multiply-add)
    reproduces the published numbers on every machine.
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
    """Soft-thresholds each lead's wavelet details at median|coarsest details| / 0.6745; float64 [L, N] -> [L, N]."""
    approximation, *details = pywt.wavedec(signal, wavelet, level=level, axis=-1)
    threshold = np.median(np.abs(details[0]), axis=-1, keepdims=True) / 0.6745  # [L, 1]
    shrunk = [np.sign(d) * np.maximum(np.abs(d) - threshold, 0.0) for d in details]
    return pywt.waverec([approximation, *shrunk], wavelet, axis=-1)[..., : signal.shape[-1]]


def resample(signal: np.ndarray, sample_rate: float, target_rate: float) -> np.ndarray:
    """Interpolates cubically onto linspace(0, duration, n), both ends included, as published; [L, N] -> [L, n].

    Raises RecordError if the recording is too short.
    """
    factors, pivots, evaluate = _spline(signal.shape[-1], sample_rate, target_rate)
    coefficients, _ = dgbtrs(factors, _SPLINE_DEGREE, _SPLINE_DEGREE, signal.T, pivots)  # [N, L]
    return np.ascontiguousarray((evaluate @ coefficients).T)


@lru_cache(maxsize=16)  # the recordings of a corpus have few distinct lengths
def _spline(samples: int, sample_rate: float, target_rate: float) -> tuple[np.ndarray, np.ndarray, csr_array]:
    """The not-a-knot cubic spline between two fixed grids, shared by all recordings of a length and rate.

    Returns the LU factors and pivots of its coefficients' equations, and the matrix [n, N] that evaluates it; equal to
    `scipy.interpolate.make_interp_spline`.
    """
    duration = samples / sample_rate  # s
    source = np.linspace(0.0, duration, samples)
    # Rounded once, as published: int(duration * target_rate) would lose a sample of 2,002 at 500 Hz.
    target = np.linspace(0.0, duration, int(samples * target_rate / sample_rate))
    if samples <= _SPLINE_DEGREE:
        raise RecordError(f"{samples} samples found, more than {_SPLINE_DEGREE} expected for resampling")
    if not target.size:
        raise RecordError(f"{duration:g} s found, at least {1 / target_rate:g} s expected, one sample at {target_rate:g} Hz")
    knots = make_interp_spline(source, source, k=_SPLINE_DEGREE).t
    rows, columns, values = find(BSpline.design_matrix(source, knots, _SPLINE_DEGREE))
    bands = np.zeros((3 * _SPLINE_DEGREE + 1, samples), order="F")  # LAPACK's band layout, with room for the factors
    bands[2 * _SPLINE_DEGREE + rows - columns, columns] = values
    factors, pivots, _ = dgbtrf(bands, _SPLINE_DEGREE, _SPLINE_DEGREE)
    return factors, pivots, csr_array(BSpline.design_matrix(target, knots, _SPLINE_DEGREE))


def segment(signal: np.ndarray, length: int) -> np.ndarray:
    """Cuts [L, N] into complete segments [S, L, length] from the start; raises RecordError if there is none."""
    leads, samples = signal.shape
    count = samples // length
    if count == 0:
        raise RecordError(f"{samples} samples found after resampling, at least one segment of {length} expected")
    return signal[:, : count * length].reshape(leads, count, length).swapaxes(0, 1)
