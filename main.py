"""Runs an experiment: `python main.py --config=experiments/demo.py`."""

import os
import sys
from collections.abc import Callable
from os.path import expanduser
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from ecgbyte_jax.errors import EcgByteError, StoppedError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, with its argument: experiments/ptb.py:tiny", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where everything that the run makes goes; runs/<experiment> if not given.")
_STAGES = flags.DEFINE_list(
    "stage",
    ["prepare", "train", "eval", "report"],
    "What to run of tokenizer, prepare, inspect, train, eval, attend, report, export, ask, in this order."
    " Or compare alone, which needs no --config.",
)
_RUNS = flags.DEFINE_list("runs", [], "For --stage=compare: the evaluated runs' work directories.")
_OUT = flags.DEFINE_string(
    "out", "runs/compare.json", "For --stage=compare: the file to write; the table goes beside it as CSV."
)
_PROFILE = flags.DEFINE_list("profile_steps", [], "FIRST,LAST: a JAX profile of these training steps, in <workdir>/profile.")

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
_TOGETHER = flags.DEFINE_bool("together", False, "ask: put all recordings into one prompt, as a comparison.")
_PICTURE = flags.DEFINE_string("picture", "", "ask: also draw the attention over the trace into this .png or .svg file.")

_STOPPED = 75  # exit code of a run that SIGTERM ended, with everything saved: the same command goes on (EX_TEMPFAIL)


def main(argv: list[str]) -> None:
    """Runs the stages asked for; what the user can mend ends in one line."""
    logging.set_verbosity(logging.ERROR)
    sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it: a path may hold what a terminal cannot show
    if len(argv) > 1:
        _fail(f"unknown argument {argv[1]!r}; flags look like --workdir=DIR")
    if _STAGES.value == ["compare"]:
        return _run(_compare)
    if _RUNS.value:
        _fail("--runs is for --stage=compare alone")
    if _CONFIG.value is None:
        _fail("--config=experiments/NAME.py is needed; --config=experiments/demo.py needs no data")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it says that PyTorch is missing, which is not used here
    _run(_run_stages)


def _run_stages() -> None:
    # Behind the flags: these imports take seconds, and a mistake in the flags is told at once.
    from ecgbyte_jax.run.inquiry import Inquiry
    from ecgbyte_jax.run.pipeline import run

    records = tuple(expanduser(path.strip()) for paths in _RECORDS.value for path in paths.split(",") if path.strip())
    others = (_SAMPLE_RATE.value, tuple(_LEADS.value), _UNITS.value, _TOGETHER.value, expanduser(_PICTURE.value))
    inquiry = Inquiry(records, tuple(_QUESTIONS.value), *others)
    run(_CONFIG.value, Path(expanduser(_WORKDIR.value or _default_workdir())), _STAGES.value, _profile_steps(), inquiry)


def _compare() -> None:
    from ecgbyte_jax.run.compare import compare

    compare([expanduser(run) for run in _RUNS.value], Path(expanduser(_OUT.value)))


def _run(work: Callable[[], None]) -> None:
    try:
        work()
    except StoppedError as error:
        print(error, file=sys.stderr)
        sys.exit(_STOPPED)
    except EcgByteError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("stopped; the same command goes on from what is whole")


def _profile_steps() -> tuple[int, int]:
    """(first, last), (0, 0) for none."""
    given = _PROFILE.value or ["0", "0"]
    if len(given) != 2 or not all(step.isdecimal() for step in given) or int(given[0]) > int(given[1]):
        _fail(f"--profile_steps={','.join(given)} found, the first and the last step wanted: --profile_steps=10,12")
    return int(given[0]), int(given[1])


def _default_workdir() -> Path:
    """runs/ptb for experiments/ptb.py, runs/ptb_tiny for experiments/ptb.py:tiny."""
    file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs") / "_".join(filter(None, (Path(file).stem, argument)))


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, whose errors about settings come as stack traces otherwise."""
    home = f"--config={expanduser('~')}"  # no shell expands it after a =
    try:
        rest = flags.FLAGS([arg.replace("--config=~", home, 1) if arg.startswith("--config=~/") else arg for arg in argv])
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
    """In one line, whatever the data holds that it tells of."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
    print(f"error: {shown}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
