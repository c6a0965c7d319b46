"""An export whose model was trained on other input than what was prepared is refused."""

from dataclasses import replace

import numpy as np
import pytest

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.export.form import check_form, write_form
from ecgbyte_jax.inputs.prompt import PromptIds
from ecgbyte_jax.settings import Settings, SignalSettings


def test_an_export_of_other_segments_or_cleaning_is_refused_by_name(tmp_path):
    settings = Settings()
    check_form(tmp_path, settings)  # not an export: nothing is known
    write_form(tmp_path, settings, PromptIds(ecg=np.arange(3), bos=3, eos=4, pad=5, sig_start=6, sig_end=7), "")
    check_form(tmp_path, settings)
    other = replace(settings, signal=SignalSettings(segment_length=250, wavelet=""))
    with pytest.raises(ConfigError, match=r"signal\.wavelet: '' found, .*signal\.segment_length: 250 found, 500 in the export"):
        check_form(tmp_path, other)
    (tmp_path / "input.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"not the input\.json of an export"):
        check_form(tmp_path, settings)
