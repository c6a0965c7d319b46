import math

import pytest

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.run.check import check_config
from experiments.common import get_defaults


@pytest.mark.parametrize(
    "name, value",
    [
        ("train.epochs", math.inf),
        ("train.epochs", math.nan),
        ("optim.peak_rate", math.inf),
        ("optim.clip_norm", math.inf),
        ("optim.weight_decay", -0.1),
        ("optim.b2", 1.0),
        ("lora.alpha", 0.0),
        ("model.rope_theta", math.inf),
        ("eval.temperature", math.inf),
        ("signal.target_rate", math.inf),
        ("signal.max_amplitude", math.inf),
        ("signal.notches", (50.0, math.inf)),
        ("signal.notches", ("50",)),
        ("signal.band", (0.5, math.inf)),
        ("signal.band", ("a", "b")),
        ("data.length_buckets", (320, "x")),
    ],
)
def test_settings_without_a_meaning_are_refused_by_name(name, value):
    config = get_defaults()
    check_config(config)
    part, field = name.split(".")
    config[part][field] = value
    with pytest.raises(ConfigError, match=rf"{part}\.{field}: .* found, .* wanted"):
        check_config(config)
