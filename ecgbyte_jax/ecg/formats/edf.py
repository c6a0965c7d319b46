"""EDF and EDF+ files (Kemp and Olivan 2003).

Axes: L leads, N samples.
"""

from pathlib import Path

import numpy as np

from ecgbyte_jax.ecg.formats.leads import millivolts, name_leads
from ecgbyte_jax.ecg.formats.library import reading, require
from ecgbyte_jax.ecg.records import LEADS, Record
from ecgbyte_jax.errors import RecordError

_WHAT = "EDF"


def read_edf(path: Path) -> Record:
    """Reads the signals that are leads, 'ECG V1'; raises RecordError, and ConfigError without edfio."""
    require(path, _WHAT, "edfio")
    import edfio

    with reading(path, _WHAT) as warned:
        file = edfio.read_edf(path, lazy_load_data=False)
        if file.reserved.startswith("EDF+D"):
            raise RecordError(f"{path}: EDF+D found, a recording with gaps; one without expected")
        signals = [(name, signal) for signal in file.signals for name in name_leads(path, [signal.label])[0] if name in LEADS]
        names = name_leads(path, [name for name, _ in signals])[0]  # two signals may be the same lead
        if not signals:
            raise RecordError(f"{path}: signals {[signal.label for signal in file.signals]} found, leads ('ECG V1') expected")
        rates = sorted({float(signal.sampling_frequency) for _, signal in signals})
        if len(rates) > 1:
            raise RecordError(f"{path}: leads at {rates} Hz found, one rate expected")
        rows = [signal.data * millivolts(path, name, signal.physical_dimension) for name, signal in signals]
        if warned:  # of data that end early, and of signals without calibration
            raise RecordError(f"{path}: truncated or not calibrated: {warned[0].message}")
        return Record(np.stack(rows).astype(np.float32), rates[0], names)
