"""Morphological features of a recording, as ECG-Byte computes them to sample its tokenizer's training data.

Axes: L leads, N samples, P peaks.
"""

import numpy as np
import pywt
from scipy.signal import find_peaks, welch

FEATURES = 24  # per lead


def features(signal: np.ndarray, sample_rate: float) -> np.ndarray:
    """Computes 24 features per lead from a signal float64 [L, N] in mV: float64 [24 L], lead by lead.

    For each lead: mean, standard deviation, maximum, minimum, median, quartiles; Welch power (total, largest, its frequency,
    centroid); heart rate, its variability, QRS duration, T amplitude, ST deviation; mean magnitudes of six db4 wavelet bands;
    mean and root mean square of the sample-to-sample differences.
    """
    frequencies, power = welch(signal, fs=sample_rate, nperseg=min(1024, signal.shape[-1]), axis=-1)
    bands = pywt.wavedec(signal, "db4", level=5, axis=-1)
    steps = np.diff(signal, axis=-1)
    total = power.sum(axis=-1)
    columns = [
        signal.mean(axis=-1),
        signal.std(axis=-1),
        signal.max(axis=-1),
        signal.min(axis=-1),
        np.median(signal, axis=-1),
        *np.percentile(signal, [25, 75], axis=-1),
        total,
        power.max(axis=-1),
        frequencies[power.argmax(axis=-1)],
        np.divide((frequencies * power).sum(axis=-1), total, out=np.zeros_like(total), where=total > 0),
        *np.array([_beats(lead, sample_rate) for lead in signal]).T,
        *(np.abs(band).mean(axis=-1) for band in bands),
        np.abs(steps).mean(axis=-1),
        np.sqrt(np.square(steps).mean(axis=-1)),
    ]
    return np.stack(columns, axis=-1).ravel()


def _beats(lead: np.ndarray, sample_rate: float) -> tuple[float, float, float, float, float]:
    """Measures the beats of one lead [N]; zeros if it has fewer than two peaks.

    Returns heart rate in beats per minute, standard deviation of the RR interval in s, QRS duration in s, T amplitude and ST
    deviation in mV.
    """
    peaks, _ = find_peaks(lead, height=0.5 * lead.max(), distance=0.2 * sample_rate)
    if len(peaks) < 2:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    intervals = np.diff(peaks) / sample_rate
    between = lead[peaks[-2] : peaks[-1]]
    after = peaks[-1] + int(0.08 * sample_rate)
    deviation = lead[after] - lead[peaks[-1]] if after < len(lead) else 0.0
    duration = np.mean([_qrs_duration(lead, peak, sample_rate) for peak in peaks])
    return 60 / intervals.mean(), intervals.std(), float(duration), between.max() - between.min(), deviation


def _qrs_duration(lead: np.ndarray, peak: int, sample_rate: float) -> float:
    """Time in s, within 100 ms of the peak, that the signal exceeds a tenth of its height."""
    window = int(0.1 * sample_rate)
    around = lead[max(0, peak - window) : peak + window]
    return np.sum(np.abs(around) > 0.1 * around.max()) / sample_rate
