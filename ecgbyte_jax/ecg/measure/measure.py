"""What can be measured in a part of a recording, as numbers.

Axes: L leads (12), N samples, B beats, M samples of a beat.
"""

from dataclasses import asdict, dataclass, field, replace

import numpy as np
from scipy.signal import butter, sosfiltfilt

from ecgbyte_jax.ecg.clean_config import CleanConfig
from ecgbyte_jax.ecg.measure.beats import BEFORE, Beats, find_beats, median_beat
from ecgbyte_jax.ecg.measure.waves import LEVEL_AT, Waves, find_waves
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.ecg.signal import filter_bands, select_leads
from ecgbyte_jax.errors import RecordError

VERSION = 1  # of all numbers, to be raised with them
_HUM = CleanConfig(band=(), highpass=0.0)  # the mains' notches alone
ST_AT = 0.06  # s after QRS: where the ST level is read
_EDGE = 0.15  # s from an end of the part, within which a beat may or may not count
_FEWEST_OF_RATE, _FEWEST_OF_VARIATION = 2, 4  # RR intervals
_IRREGULAR = 0.1  # variation above which what is like a P wave may be fibrillation
_OF_WAVES = ("pr", "qrs", "qt", "axis", "amplitudes")
_AREA_LIMB = 2 / np.sqrt(3)  # aVF is recorded with 0.866 of lead I's strength
_LEAST_AREA = 0.15  # of the QRS' area in the frontal plane, in its total area: below, no direction dominates
_FEWEST_SAMPLES = 15  # for filters of order 4, forward and backward
_HIGH, _LOW = 40.0, 0.5  # Hz: above and below, there is more noise than ECG


@dataclass(frozen=True)
class Amplitudes:
    """Of the commonest beat by lead, mV: the R wave, QRS from its lowest to its highest place, ST 60 ms after QRS."""

    r: tuple[float, ...]
    qrs: tuple[float, ...]
    st: tuple[float, ...]


@dataclass(frozen=True)
class Measures:
    """One part of a recording; None for what cannot be measured, for the reason in `missing`.

    beats: R peaks in it, None where one is close to an end; rate: beats per minute; variation: the standard deviation of the RR
    intervals, in their mean; pr, qrs, qt in ms; axis of the QRS in degrees; noise, drift: by lead, the root mean square in mV
    above 40 Hz outside of QRS, and the span below 0.5 Hz; peaks: R peaks, s from its start; places: of Waves, s from R.
    """

    beats: int | None = None
    rate: float | None = None
    variation: float | None = None
    pr: float | None = None
    qrs: float | None = None
    qt: float | None = None
    axis: float | None = None
    amplitudes: Amplitudes | None = None
    noise: tuple[float, ...] = ()
    drift: tuple[float, ...] = ()
    peaks: tuple[float, ...] = ()
    places: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Found:
    """The beats of a whole recording, and its signal [L, N] in mV without hum."""

    signal: np.ndarray
    beats: Beats

    @classmethod
    def of(cls, record: Record) -> "Found":
        """Finds them; raises RecordError for a recording that `select_leads` refuses, or whose beats are not found."""
        rate = record.sample_rate
        signal = filter_bands(select_leads(record), rate, _HUM)
        return cls(signal, find_beats(signal, rate))

    def measure(self, start: float, stop: float) -> tuple[Measures, Waves | None]:
        """Measures the part from `start` to before `stop`, s, by its own beats; and the waves, for `amplitudes`."""
        rate, times = self.beats.rate, self.beats.times
        peaks = times[(times >= start) & (times < stop)]
        near = np.concatenate([times, self.beats.cut / rate])
        close = bool(((np.abs(near - start) < _EDGE) | (np.abs(near - stop) < _EDGE)).any())
        intervals = np.diff(peaks)
        missing = {"beats": "a beat is close to an end"} if close else {}
        missing |= {"rate": "too few beats"} if len(intervals) < _FEWEST_OF_RATE else {}
        missing |= {"variation": "too few beats"} if len(intervals) < _FEWEST_OF_VARIATION else {}
        noise, drift = _disturbances(self.signal[:, round(start * rate) : round(stop * rate)], (peaks - start) * rate, rate)
        measures = Measures(
            beats=None if close else len(peaks),
            rate=None if "rate" in missing else float(60 / intervals.mean()),
            variation=None if "variation" in missing else float(intervals.std() / intervals.mean()),
            noise=noise,
            drift=drift,
            peaks=tuple((peaks - start).tolist()),
            missing=missing,
        )
        try:
            waves, median = find_waves(self.signal, self.beats, start, stop)
        except RecordError as error:
            return replace(measures, missing=missing | dict.fromkeys(_OF_WAVES, str(error))), None
        axis = _axis(median, waves, rate)
        missing |= {"axis": "no direction dominates"} if axis is None else {}
        no_p = waves.no_p or ("its beats are irregular" if (measures.variation or 0.0) > _IRREGULAR else "")
        missing |= {"pr": f"P: {no_p}"} if no_p else {}
        missing |= {"qt": f"T: {waves.no_t}"} if waves.no_t else {}
        places = {name: float(place) for name, place in asdict(waves).items() if not isinstance(place, str)}
        return replace(
            measures,
            pr=None if no_p else 1000 * float(waves.qrs_on - waves.p_on),
            qrs=1000 * float(waves.qrs_off - waves.qrs_on),
            qt=None if waves.no_t else 1000 * float(waves.t_off - waves.qrs_on),
            axis=axis,
            amplitudes=_amplitudes(median, waves, rate),
            places={name: place for name, place in places.items() if np.isfinite(place)},
            missing=missing,
        ), waves


def amplitudes(signal: np.ndarray, beats: Beats, waves: Waves, start: float, stop: float) -> Amplitudes:
    """Of the beats from `start` to `stop` s in another signal [L, N] of the recording, at the rate of these `beats`.

    Raises RecordError where there are no two complete ones.
    """
    median, *_ = median_beat(signal, beats, waves.qrs_on - LEVEL_AT, start, stop)
    return _amplitudes(median, waves, beats.rate)


def _amplitudes(median: np.ndarray, waves: Waves, rate: float) -> Amplitudes:
    on, off = (round((BEFORE + place) * rate) for place in (waves.qrs_on, waves.qrs_off))
    qrs, st = median[:, on : off + 1], median[:, min(round((BEFORE + waves.qrs_off + ST_AT) * rate), median.shape[1] - 1)]
    r = np.maximum(qrs.max(axis=1), 0.0)
    return Amplitudes(tuple(r.tolist()), tuple(np.ptp(qrs, axis=1).tolist()), tuple(st.tolist()))


def _axis(median: np.ndarray, waves: Waves, rate: float) -> float | None:
    """The direction of the QRS in the frontal plane by its area in I and aVF, degrees from -179 to 180."""
    on, off = (round((BEFORE + place) * rate) for place in (waves.qrs_on, waves.qrs_off))
    frontal = median[[LEADS.index("I"), LEADS.index("aVF")], on : off + 1] * np.array([[1.0], [_AREA_LIMB]])
    area = frontal.sum(axis=1)
    if np.linalg.norm(area) < _LEAST_AREA * np.linalg.norm(np.abs(frontal).sum(axis=1)):
        return None
    return float(np.rad2deg(np.arctan2(area[1], area[0])))


def _disturbances(part: np.ndarray, peaks: np.ndarray, rate: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(noise, drift) of Measures by lead; peaks: R peaks in samples."""
    if part.shape[1] <= _FEWEST_SAMPLES:
        return (), ()
    quiet = np.ones(part.shape[1], bool)
    for peak in peaks:
        quiet[max(0, int(peak - 0.12 * rate)) : int(peak + 0.12 * rate)] = False
    drift = np.ptp(sosfiltfilt(butter(2, _LOW, "lowpass", fs=rate, output="sos"), part, axis=1), axis=1)
    if rate <= 2.2 * _HIGH or not quiet.any():
        return (), tuple(drift.tolist())
    fast = sosfiltfilt(butter(4, _HIGH, "highpass", fs=rate, output="sos"), part, axis=1)
    return tuple(np.sqrt((fast[:, quiet] ** 2).mean(axis=1)).tolist()), tuple(drift.tolist())
