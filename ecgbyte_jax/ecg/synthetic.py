"""Synthetic 12-lead ECGs: a moving heart dipole seen by twelve leads, with the artefacts of real recordings.

Each wave of a beat is a Gaussian in time along a fixed direction in space (after McSharry et al. 2003, with the dipole of
Sameni et al. 2007). Axes: N samples, W waves, L leads (12); space is x left, y down, z front.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

SAMPLE_RATE = 500  # Hz
DURATION = 10.0  # s
# Directions of the precordial leads in space; unit vectors in the horizontal plane, V1 right of the breastbone.
_PRECORDIAL_DEG = np.array([115.0, 94.0, 70.0, 47.0, 22.0, 0.0])


@dataclass(frozen=True)
class Heart:
    """The findings of one recording, which determine the answers to the demo's questions.

    rate in beats per minute; variability: standard deviation of the beat interval relative to its mean; voltage scales all
    waves; st_elevation and noise amplitudes in mV.
    """

    rate: float = 70.0
    variability: float = 0.03
    fibrillation: bool = False
    bigeminy: bool = False
    block: str = ""  # "", "left", "right": complete bundle branch block
    infarction: str = ""  # "", "anterior", "inferior": where the ST segment is elevated
    st_elevation: float = 0.0
    voltage: float = 1.0
    axis_deg: float = 45.0
    wander: float = 0.05
    hum: float = 0.01
    muscle: float = 0.01


@dataclass(frozen=True)
class _Wave:
    """One Gaussian: centre and width (standard deviation) in s from the R peak, amplitude in mV along `direction`."""

    centre: float
    width: float
    amplitude: float
    direction: tuple[float, float, float]


def random_heart(rng: np.random.Generator) -> Heart:
    """Draws a heart; all findings are independent."""
    rate_class = rng.choice(["slow", "normal", "fast"])
    low, high = {"slow": (42, 54), "normal": (62, 92), "fast": (108, 140)}[rate_class]
    fibrillation = bool(rng.random() < 0.3)
    infarction = str(rng.choice(["", "", "anterior", "inferior"]))
    return Heart(
        rate=float(rng.uniform(low, high)),
        variability=float(rng.uniform(0.15, 0.25) if fibrillation else rng.uniform(0.01, 0.05)),
        fibrillation=fibrillation,
        bigeminy=bool(rng.random() < 0.2),
        block=str(rng.choice(["", "", "left", "right"])),
        infarction=infarction,
        st_elevation=float(rng.uniform(0.2, 0.4)) if infarction else 0.0,
        voltage=float(rng.uniform(0.25, 0.4) if rng.random() < 0.3 else rng.uniform(0.85, 1.3)),
        axis_deg=float(rng.uniform(20, 75)),
        wander=float(rng.uniform(0.0, 0.15)),
        hum=float(rng.uniform(0.0, 0.03)),
        muscle=float(rng.uniform(0.0, 0.015)),
    )


def synthesize(heart: Heart, rng: np.random.Generator) -> np.ndarray:
    """Synthesises 10 s of `heart` at 500 Hz: int16 [12, 5000] in uV, leads in the canonical order.

    The limb leads are exact to 1 uV: III = II - I, and aVR, aVL, aVF follow from I and II.
    """
    time = np.arange(int(DURATION * SAMPLE_RATE)) / SAMPLE_RATE  # [N]
    dipole = np.zeros((3, len(time)))
    for at, ectopic, interval in _beats(heart, rng):
        for wave in _ectopic_waves(heart) if ectopic else _sinus_waves(heart, interval):
            span = np.exp(-0.5 * ((time - at - wave.centre) / wave.width) ** 2)
            dipole += heart.voltage * wave.amplitude * np.array(wave.direction)[:, None] * span
        if heart.infarction:
            dipole += _st_segment(heart, time - at)
    if heart.fibrillation:
        dipole += _fibrillation_waves(time, rng)
    return _add_noise(_project(dipole), heart, time, rng)


def _beats(heart: Heart, rng: np.random.Generator) -> list[tuple[float, bool, float]]:
    """(time of the R peak in s, ectopic, interval since the previous beat in s); some are outside the recording."""
    beats: list[tuple[float, bool, float]] = []
    at, mean = -rng.uniform(0, 60 / heart.rate), 60 / heart.rate
    while at < DURATION + 1:
        ectopic = heart.bigeminy and len(beats) % 2 == 1
        interval = mean * max(1 + heart.variability * rng.standard_normal(), 0.5)
        # An extrasystole is early, followed by a compensatory pause.
        interval *= 0.65 if ectopic else (1.35 if heart.bigeminy and beats else 1.0)
        at += interval
        beats.append((at, ectopic, interval))
    return beats


def _sinus_waves(heart: Heart, interval: float) -> list[_Wave]:
    axis = np.deg2rad(heart.axis_deg)
    x, y = np.cos(axis), np.sin(axis)
    t_centre = 0.30 * np.sqrt(min(interval, 1.2) / 0.85)  # Bazett: QT grows with the square root of RR
    p = [] if heart.fibrillation else [_Wave(-0.16, 0.022, 0.16, (0.6, 0.8, 0.2))]
    if heart.block == "left":
        qrs = [_Wave(-0.01, 0.022, 0.9, (x, y * 0.7, -0.7)), _Wave(0.045, 0.025, 0.8, (x, y * 0.5, -0.9))]
        return [*p, *qrs, _Wave(t_centre + 0.05, 0.05, 0.35, (-0.8 * x, -0.6 * y, 0.9))]
    qrs = [
        _Wave(-0.025, 0.008, 0.15, (-0.5, -0.2, 0.9)),
        _Wave(0.0, 0.012, 1.3, (x, y, -0.15)),
        _Wave(0.03, 0.010, 0.4, (-0.4, -0.2, -0.8)),
    ]
    if heart.block == "right":
        qrs.append(_Wave(0.075, 0.020, 0.7, (-0.7, -0.1, 0.7)))
        return [*p, *qrs, _Wave(t_centre + 0.03, 0.045, 0.25, (0.7 * x, 0.7 * y, -0.4))]
    return [*p, *qrs, _Wave(t_centre, 0.045, 0.32, (0.8 * x, 0.8 * y, 0.35))]


def _ectopic_waves(heart: Heart) -> list[_Wave]:
    """A ventricular extrasystole: no P wave, wide and tall QRS with a different axis, opposite T wave."""
    return [_Wave(0.02, 0.035, 1.6, (-0.3, 0.8, 0.7)), _Wave(0.30, 0.06, 0.5, (0.3, -0.8, -0.5))]


def _st_segment(heart: Heart, since_r: np.ndarray) -> np.ndarray:
    """The injury current between the end of QRS and the T wave, mV [3, N]."""
    rise, fall = expit((since_r - 0.06) / 0.008), expit((0.30 - since_r) / 0.025)
    direction = {"anterior": (0.2, -0.1, 1.0), "inferior": (-0.1, 1.0, -0.3)}[heart.infarction]
    return heart.st_elevation * np.array(direction)[:, None] * rise * fall


def _fibrillation_waves(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fibrillatory waves at 5 to 8 Hz, mV [3, N]."""
    phase = 2 * np.pi * np.cumsum(rng.uniform(5, 8) + rng.standard_normal(len(time)) * 4) / SAMPLE_RATE
    return rng.uniform(0.05, 0.09) * np.array([0.3, 0.6, 0.7])[:, None] * np.sin(phase + rng.uniform(0, 6))


def _project(dipole: np.ndarray) -> np.ndarray:
    """Projects the dipole [3, N] onto leads I, II and V1..V6 in mV, [8, N]."""
    angle = np.deg2rad(_PRECORDIAL_DEG)
    directions = np.zeros((8, 3))
    directions[0] = (1, 0, 0)
    directions[1] = (np.cos(np.pi / 3), np.sin(np.pi / 3), 0)
    directions[2:, 0], directions[2:, 2] = np.cos(angle), np.sin(angle)
    return directions @ dipole


def _add_noise(leads: np.ndarray, heart: Heart, time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Adds baseline wander, mains hum and muscle noise to the eight leads, and derives all twelve; int16 [12, N] in uV."""
    breath = np.sin(2 * np.pi * (rng.uniform(0.15, 0.35) * time + rng.random()))
    mains = np.sin(2 * np.pi * (50 * time + rng.random()))
    noisy = leads + heart.wander * rng.uniform(-1, 1, (8, 1)) * breath + heart.hum * rng.uniform(0, 1, (8, 1)) * mains
    noisy += heart.muscle * rng.standard_normal(leads.shape)
    uv = np.round(np.clip(noisy, -30, 30) * 1000).astype(np.int64)
    i, ii, chest = uv[0], uv[1], uv[2:]
    limb = np.stack([i, ii, ii - i, -(i + ii) // 2, i - ii // 2, ii - i // 2])
    return np.concatenate([limb, chest]).astype(np.int16)
