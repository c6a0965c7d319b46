"""A run that is there: the settings in its config.json, given as --run=DIR or --config=DIR/config.json.

    python main.py --run=runs/demo --stage=eval --config.eval.split=valid

`main.py` reads such a file through this experiment. Hardware, time and result are those of the run.
"""

from pathlib import Path

from ml_collections import ConfigDict

from ecgbyte_jax.settings import stored_config


def get_config(path: str) -> ConfigDict:
    """The settings in this file; raises ConfigError where it is not the config.json of a run."""
    return stored_config(Path(path))
