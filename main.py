"""Runs an experiment: `python main.py --config=experiments/demo.py`."""

import errno
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
    "config", None, "The experiment file, with its argument if any: experiments/ptb.py:tiny.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder, for all of its outputs; default: runs/<experiment>.")
_STAGES = flags.DEFINE_list(
    "stage",
    ["prepare", "train", "eval", "report"],
    "Stages to run, always in this order: tokenizer, prepare, inspect, train, eval, attend, report, export, ask."
    " Or compare by itself, which needs no --config.",
)
_RUNS = flags.DEFINE_list("runs", [], "compare: the folders of the evaluated runs.")
_OUT = flags.DEFINE_string(
    "out", "runs/compare.json", "compare: the JSON file to write; the table is written beside it as CSV."
)
_PROFILE = flags.DEFINE_list("profile_steps", [], "FIRST,LAST: write a JAX profile of these steps to <workdir>/profile.")

_RECORDS = flags.DEFINE_multi_string(
    "record", [], "ask: your own WFDB record, .csv or .npy file; for several, separate them by commas or repeat the flag."
)
_QUESTIONS = flags.DEFINE_multi_string(
    "question", [], "ask: the question; repeat the flag for several. Default: read from the terminal, one a line."
)
_SAMPLE_RATE = flags.DEFINE_float("sample_rate", 0.0, "ask: the sample rate of a .csv or .npy file, Hz.", lower_bound=0.0)
_LEADS = flags.DEFINE_list("leads", [], "ask: names of the leads, in order, of a .npy file or a .csv file without a header.")
_UNITS = flags.DEFINE_enum(
    "units", "", ["", "mV", "uV", "V"], "ask: the units of a .csv or .npy file; default: those in its header, or mV."
)
_TOGETHER = flags.DEFINE_bool("together", False, "ask: put all recordings into one prompt, to compare them.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "ask: text for people, or one JSON object a line.")
_RECORD_LIST = flags.DEFINE_string(
    "record_list", "", "ask: a text file with the path of a recording on each line; all are asked every --question."
)
_PICTURE = flags.DEFINE_string("picture", "", "ask: also draw the attention over the trace, to this .png or .svg file.")

_FULL, _FORBIDDEN = "free some space; the same command then continues", "it must be readable and writable to go on"
_ADVICE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL)  # by errno
_ADVICE |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _FORBIDDEN)
_STOPPED = 75  # EX_TEMPFAIL: a run ended by SIGTERM or Ctrl-C, with everything saved; the same command continues it


def main(argv: list[str]) -> None:
    """Runs the requested stages; an error that the user can fix is printed as one line."""
    logging.set_verbosity(logging.ERROR)
    sys.stdout.reconfigure(errors="backslashreplace")  # stderr's default; the terminal may not be able to show a path
    if len(argv) > 1:
        _fail(f"unknown argument {argv[1]!r}; flags look like --workdir=DIR")
    if _STAGES.value == ["compare"]:
        return _run(_compare)
    if _RUNS.value:
        _fail("--runs is for --stage=compare alone")
    if _CONFIG.value is None:
        _fail("--config=experiments/NAME.py is needed; --config=experiments/demo.py needs no data")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would warn that PyTorch, which is not used, is missing
    _run(_run_stages)


def _run_stages() -> None:
    # Imported after the flags are checked: these imports take seconds, and errors in the flags should be reported at once.
    from ecgbyte_jax.stages.inquiry import Inquiry
    from ecgbyte_jax.stages.pipeline import run

    records = tuple(expanduser(path.strip()) for paths in _RECORDS.value for path in paths.split(",") if path.strip())
    others = (_SAMPLE_RATE.value, tuple(_LEADS.value), _UNITS.value, _TOGETHER.value, expanduser(_PICTURE.value))
    others += (_FORMAT.value, expanduser(_RECORD_LIST.value))
    inquiry = Inquiry(records, tuple(_QUESTIONS.value), *others)
    run(_CONFIG.value, Path(expanduser(_WORKDIR.value or _default_workdir())), _STAGES.value, _profile_steps(), inquiry)


def _compare() -> None:
    from ecgbyte_jax.stages.compare import compare

    compare([expanduser(run) for run in _RUNS.value], Path(expanduser(_OUT.value)))


def _run(work: Callable[[], None]) -> None:
    try:
        work()
    except StoppedError as error:
        print(error, file=sys.stderr)
        sys.exit(_STOPPED)
    except EcgByteError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        _fail(f"{error.filename or 'the run folder'}: {error.strerror}; {_ADVICE[error.errno]}")
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues from the last complete output")


def _profile_steps() -> tuple[int, int]:
    """The first and the last step; (0, 0) for none."""
    given = _PROFILE.value or ["0", "0"]
    if len(given) != 2 or not all(step.isdecimal() for step in given) or int(given[0]) > int(given[1]):
        _fail(f"--profile_steps={','.join(given)} found, the first and the last step expected: --profile_steps=10,12")
    return int(given[0]), int(given[1])


def _default_workdir() -> Path:
    """runs/ptb for experiments/ptb.py, runs/ptb_tiny for experiments/ptb.py:tiny."""
    file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs") / "_".join(filter(None, (Path(file).stem, argument)))


def _parse_flags(argv: list[str]) -> list[str]:
    """Calls absl's parser, with errors about settings printed as one line instead of a stack trace."""
    home = f"--config={expanduser('~')}"  # shells do not expand ~ after a =
    try:
        rest = flags.FLAGS([arg.replace("--config=~", home, 1) if arg.startswith("--config=~/") else arg for arg in argv])
        if _CONFIG.value is not None:
            _CONFIG.value.keys()  # a config file that did not load raises its error here
        return rest
    except flags.Error as error:
        _fail(_last_line(error).removeprefix("ValueError: "))
    except (SyntaxError, ImportError, ValueError) as error:
        _fail(f"--config: {type(error).__name__}: {error}")
    except (AttributeError, KeyError) as error:
        if "get_config" in str(error):
            _fail(f"--config: the file has no function get_config: {_last_line(error)}")
        given = [arg for arg in argv if arg.startswith("--config.")]
        _fail(f"one of {given} is not a setting: {_last_line(error)}; ecgbyte_jax/settings.py lists them all")
    except (OSError, TypeError) as error:
        _fail(f"--config: {_last_line(error)}")


def _last_line(error: Exception) -> str:
    """The cause of an error: config_flags wraps one error in another, with the cause on the last line."""
    return str(error).replace("\\n", "\n").strip().splitlines()[-1].strip()


def _fail(message: str) -> NoReturn:
    """Prints one line, with control characters of the data escaped, and exits with code 1."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
    print(f"error: {shown}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
