"""How a recording is cleaned. Apart from `signal`, as the settings need it at once and SciPy takes a second to import."""

import math
from dataclasses import dataclass

import pywt

from ecgbyte_jax.rules import Rule, above, at_least, between, check, setting


@dataclass(frozen=True)
class CleanConfig:
    """How recordings are cleaned; the defaults are the published ones. Raises SettingsError for invalid values."""

    target_rate: float = setting(
        250.0,
        "sample rate after cleaning, Hz; 0 keeps each recording's own",
        Rule(lambda rate: rate == 0 or 1 <= rate < math.inf, "at least 1, or 0 for a recording's own rate"),
    )
    notches: tuple[float, ...] = setting(
        (50.0, 60.0),
        "frequencies of the notch filters, Hz; () leaves the step out",
        Rule(lambda notches: all(0 < frequency < math.inf for frequency in notches), "frequencies above 0 Hz"),
    )
    notch_quality: float = setting(30.0, "quality factor of the notch filters", above(0))
    band: tuple[float, ...] = setting(
        (0.5, 100.0),
        "corner frequencies of the band-pass filter, Hz; () leaves the step out",
        Rule(
            lambda band: not band or (len(band) == 2 and 0 < band[0] < band[1] < math.inf),
            "two rising frequencies above 0 Hz, or ()",
        ),
    )
    highpass: float = setting(0.05, "corner frequency of the high-pass filter, Hz; 0 leaves the step out", at_least(0))
    order: int = setting(4, "order of the Butterworth filters", between(1, 10))
    wavelet: str = setting(
        "db6",
        'wavelet of the shrinkage; "" leaves the step out',
        Rule(lambda name: not name or name in pywt.wavelist(kind="discrete"), 'a discrete wavelet of PyWavelets, or ""'),
    )
    wavelet_level: int = setting(4, "levels of the wavelet decomposition", between(1, 10))
    max_amplitude: float = setting(
        20.0, "largest amplitude accepted, mV; a recording beyond it is set aside; 0 accepts all", at_least(0)
    )

    def __post_init__(self) -> None:
        check(self)
