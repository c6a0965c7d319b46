"""Runs an experiment: `python main.py --config=experiments/demo.py --workdir=runs/demo`."""

import os
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging
from ml_collections import config_flags

from ecgbyte_jax.run.pipeline import STAGES, run

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, and its argument: experiments/ptb.py:tiny", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything that the run makes is written.")
_STAGES = flags.DEFINE_list("stage", list(STAGES), f"What to run, of {','.join(STAGES)}.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    """Runs the stages asked for; an error that the user can mend ends with one line and exit code 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}; flags look like --workdir=DIR")
    logging.set_verbosity(logging.ERROR)
    run(_CONFIG.value, Path(_WORKDIR.value), _STAGES.value)


if __name__ == "__main__":
    app.run(main)
