"""Runs an experiment: `python main.py --config=experiments/demo.py`."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from ecgbyte_jax.errors import EcgByteError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, with its argument: experiments/ptb.py:tiny", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything that the run makes goes; runs/<experiment> if not given.")
_STAGES = flags.DEFINE_list(
    "stage",
    ["prepare", "train", "eval", "report"],
    "What to run of tokenizer, prepare, inspect, train, eval, attend, report, export, ask, in this order.",
)
# Of --stage=ask.
_RECORDS = flags.DEFINE_multi_string(
    "record", [], "ask: your own WFDB record, .csv or .npy file; several parted by commas, or the flag again."
)
_QUESTIONS = flags.DEFINE_multi_string(
    "question", [], "ask: the question; the flag again for more; without it they are read from the terminal, a line each."
)
_SAMPLE_RATE = flags.DEFINE_float("sample_rate", 0.0, "ask: Hz of a .csv or .npy file.", lower_bound=0.0)
_LEADS = flags.DEFINE_list("leads", [], "ask: the leads' names, in order, of a .npy file or a .csv file without a header.")
_UNITS = flags.DEFINE_enum("units", "mV", ["mV", "uV", "V"], "ask: the units of a .csv or .npy file.")
_COMPARE = flags.DEFINE_bool("compare", False, "ask: put all recordings into one prompt, as a comparison.")
_PICTURE = flags.DEFINE_string("picture", "", "ask: also draw the attention over the trace into this .png or .svg file.")


def main(argv: list[str]) -> None:
    """Runs the stages asked for; what the user can mend ends in one line."""
    logging.set_verbosity(logging.ERROR)
    if len(argv) > 1:
        _fail(f"unknown argument {argv[1]!r}; flags look like --workdir=DIR")
    if _CONFIG.value is None:
        _fail("--config=experiments/NAME.py is needed; --config=experiments/demo.py needs no data")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it says that PyTorch is missing, which is not used here
    # Behind the flags: these imports take seconds, and a mistake in the flags is told at once.
    from ecgbyte_jax.run.ask import Inquiry
    from ecgbyte_jax.run.pipeline import run

    records = tuple(path.strip() for paths in _RECORDS.value for path in paths.split(",") if path.strip())
    others = (_SAMPLE_RATE.value, tuple(_LEADS.value), _UNITS.value, _COMPARE.value, _PICTURE.value)
    try:
        inquiry = Inquiry(records, tuple(_QUESTIONS.value), *others)
        run(_CONFIG.value, Path(_WORKDIR.value or _default_workdir()), _STAGES.value, inquiry=inquiry)
    except EcgByteError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on from what is whole")


def _default_workdir() -> Path:
    """runs/ptb for experiments/ptb.py, runs/ptb_tiny for experiments/ptb.py:tiny."""
    file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs") / "_".join(filter(None, (Path(file).stem, argument)))


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, whose errors about settings come as stack traces otherwise."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _CONFIG.value.keys()  # a config file that did not load says so when it is used
        return rest
    except flags.Error as error:
        _fail(_last_line(error))
    except (SyntaxError, ImportError, ValueError) as error:
        _fail(f"--config: {type(error).__name__}: {error}")
    except (AttributeError, KeyError) as error:
        if "get_config" in str(error):
            _fail(f"--config: the file has no function get_config: {_last_line(error)}")
        given = [arg for arg in argv if arg.startswith("--config.")]
        _fail(f"one of {given} is no setting of this experiment: {_last_line(error)}; see experiments/common.py")
    except (OSError, TypeError) as error:
        _fail(f"--config: {_last_line(error)}")


def _last_line(error: Exception) -> str:
    """Where config_flags wraps one error in another, the last line tells what is wrong."""
    return str(error).replace("\\n", "\n").strip().splitlines()[-1].strip()


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
