"""The command `ecgbyte`, in a checkout also `python main.py`: `--config=experiments/demo.py` runs an experiment."""

import errno
import os
import re
import select
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from os.path import expanduser
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from ecgbyte_jax.errors import ConfigError, EcgByteError, StoppedError
from ecgbyte_jax.run.workdir import Workdir, runs_beside
from ecgbyte_jax.setting_names import expected_values, nearest_settings, setting_fields, setting_of
from ecgbyte_jax.stages.usage import usage

_PACKAGE = Path(__file__).parent
# A wheel has the experiments inside the package, a checkout beside it.
_EXPERIMENTS = next(folder / "experiments" for folder in (_PACKAGE, _PACKAGE.parent) if (folder / "experiments").is_dir())
_OWN = "ecgbyte:"  # --config=ecgbyte:ptb:tiny is experiments/ptb.py:tiny of this package, wherever it is
_STORED = _EXPERIMENTS / "stored.py"  # reads the config.json of a run
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment file, with its argument if any: experiments/ptb.py:tiny; ecgbyte:ptb:tiny for one of this package; or the "
    "config.json of a run.",
    lock_config=True,
)
_RUN = flags.DEFINE_string("run", None, "A run's folder, the same as --config=DIR/config.json --workdir=DIR.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder, for all of its outputs; default: runs/<experiment>.")
_STAGES = flags.DEFINE_list(
    "stage",
    ["prepare", "train", "eval", "report"],
    "Stages to run, always in this order: tokenizer, prepare, inspect, fit, pretrain, train, eval, attend, report,"
    " export, ask, serve."
    " Or compare or list by itself, which need no --config.",
)
_RUNS = flags.DEFINE_list(
    "runs", [], "compare: the folders of the evaluated runs. list: folders, below which runs are listed; default: runs."
)
_OUT = flags.DEFINE_string(
    "out", "runs/compare.json", "compare: the JSON file to write; the table is written beside it as CSV."
)
_LOG_EVERY = flags.DEFINE_float(
    "log_every", 30.0, "Seconds between lines on the progress where the output is no terminal; 0: none.", 0.0, 1e6
)
_PROFILE = flags.DEFINE_list("profile_steps", [], "FIRST,LAST: write a JAX profile of these steps to <workdir>/profile.")

_RECORDS = flags.DEFINE_multi_string(
    "record",
    [],
    "ask: your own recording: WFDB, .csv, .npy, .mat, DICOM, EDF, SCP-ECG, or XML of MUSE, Philips or HL7 aECG; for several, "
    "separate them by commas or repeat the flag.",
)
_QUESTIONS = flags.DEFINE_multi_string(
    "question", [], "ask: the question; repeat the flag for several. Default: read from the terminal, one a line."
)
_SAMPLE_RATE = flags.DEFINE_float("sample_rate", 0.0, "ask: the sample rate of a .csv, .npy or .mat file, Hz.", lower_bound=0.0)
_LEADS = flags.DEFINE_list("leads", [], "ask: names of the leads, in order, of a .npy or .mat file or a .csv without header.")
_UNITS = flags.DEFINE_enum(
    "units", "", ["", "mV", "uV", "V"], "ask: the units of a .csv, .npy or .mat file; default: those in its header, or mV."
)
_TOGETHER = flags.DEFINE_bool("together", False, "ask: put all recordings into one prompt, to compare them.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "ask: text for people, or one JSON object a line.")
_RECORD_LIST = flags.DEFINE_string(
    "record_list", "", "ask: a text file with the path of a recording on each line; all are asked every --question."
)
_PICTURE = flags.DEFINE_string("picture", "", "ask: also draw the attention over the trace, to this .png or .svg file.")

_OF_A_MIXTURE = re.compile(r"--?config\.data\.(?:mixture|parts)\.(\w+)")
_FULL, _FORBIDDEN = "free some space; the same command then continues", "it must be readable and writable to go on"
_ADVICE = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _FULL)  # by errno
_ADVICE |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _FORBIDDEN)
_STOPPED = 75  # EX_TEMPFAIL: a run ended by SIGTERM or Ctrl-C, with everything saved; the same command continues it


def main(argv: list[str]) -> None:
    """Runs the requested stages; an error that the user can fix is printed as one line."""
    logging.set_verbosity(logging.ERROR)
    sys.stdout.reconfigure(errors="backslashreplace")  # stderr's default; the terminal may not be able to show a path
    if argv[1:] == ["init"]:
        return _run(_copy_experiments)
    if len(argv) > 1:
        _fail(f"unknown argument {argv[1]!r}; flags look like --workdir=DIR")
    if _STAGES.value == ["compare"]:
        return _run(_compare)
    if _STAGES.value == ["list"]:
        return _run(_list)
    if _RUNS.value:
        _fail("--runs is for --stage=compare or --stage=list alone")
    if _CONFIG.value is None:
        _fail("--config=experiments/NAME.py or --run=DIR is needed; --config=ecgbyte:demo needs no data; see --help")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it would warn that PyTorch, which is not used, is missing
    _run(_run_stages)


def _run_stages() -> None:
    # Imported after the flags are checked: these imports take seconds, and errors in the flags should be reported at once.
    from ecgbyte_jax.run.console import console
    from ecgbyte_jax.stages.inquiry import Inquiry
    from ecgbyte_jax.stages.pipeline import run

    console.log_every = _LOG_EVERY.value
    records = tuple(expanduser(path.strip()) for given in _RECORDS.value for path in _split(given) if path.strip())
    others = (_SAMPLE_RATE.value, tuple(_LEADS.value), _UNITS.value, _TOGETHER.value, expanduser(_PICTURE.value))
    others += (_FORMAT.value, expanduser(_RECORD_LIST.value))
    inquiry = Inquiry(records, tuple(_QUESTIONS.value), *others)
    run(_CONFIG.value, Path(expanduser(_WORKDIR.value or _default_workdir())), _STAGES.value, _profile_steps(), inquiry)


def _copy_experiments() -> None:
    """`ecgbyte init`: the package's experiments as files to be changed, in experiments/ of the current folder."""
    folder = Path("experiments")
    if folder.exists():
        raise ConfigError(f"init: {folder}/ is there already; move it, or start in another folder")
    unfinished = folder.with_suffix(".partial")
    shutil.copytree(_EXPERIMENTS, unfinished, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    unfinished.rename(folder)
    print(f"{folder}/: {', '.join(_names(folder))}")


def _split(paths: str) -> list[str]:
    """Paths that commas separate; a file may have one in its name."""
    return [paths] if os.path.isfile(expanduser(paths)) or os.path.isfile(f"{expanduser(paths)}.hea") else paths.split(",")


def _compare() -> None:
    from ecgbyte_jax.stages.compare import compare

    compare([expanduser(run) for run in _RUNS.value], Path(expanduser(_OUT.value)))


def _list() -> None:
    from ecgbyte_jax.stages.list import list_runs

    list_runs([Path(expanduser(folder)) for folder in _RUNS.value or ["runs"]])


def _run(work: Callable[[], None]) -> None:
    try:
        work()
    except StoppedError as error:
        print(error, file=sys.stderr)
        sys.exit(_STOPPED)
    except EcgByteError as error:
        _fail(str(error))
    except BrokenPipeError:
        if not _reader_has_ended():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        _fail(f"{error.filename or 'the run folder'}: {error.strerror}; {_ADVICE[error.errno]}")
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues from the last complete output")


def _reader_has_ended() -> bool:
    """Whether nobody reads the standard output any more, as after `| head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _profile_steps() -> tuple[int, int]:
    """The first and the last step; (0, 0) for none."""
    given = _PROFILE.value or ["0", "0"]
    if len(given) != 2 or not all(step.isdecimal() for step in given) or int(given[0]) > int(given[1]):
        _fail(f"--profile_steps={','.join(given)} found, the first and the last step expected: --profile_steps=10,12")
    return int(given[0]), int(given[1])


def _default_workdir() -> Path:
    """runs/ptb for experiments/ptb.py, runs/ptb_tiny for experiments/ptb.py:tiny or :X/tiny, the folder of a config.json."""
    file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    if Path(file) == _STORED:
        return Path(argument).parent
    return Path("runs") / "_".join(filter(None, (Path(file).stem, Path(argument).name)))


def _parse_flags(argv: list[str]) -> list[str]:
    """Calls absl's parser, with errors about settings printed as one line instead of a stack trace."""
    if {"--help", "-help", "-h", "--helpshort", "--helpfull"} & {*argv[1:]}:
        _run(lambda: print(usage(flags.FLAGS.flags_by_module_dict()[__name__], _command()), flush=True))
        sys.exit()
    try:
        _check_names(argv)
        arguments = _expand(argv)
        _let_import_experiments(arguments)
        rest = flags.FLAGS(arguments)
        if _RUN.value is not None and _WORKDIR.value is not None:
            raise ConfigError(
                "--workdir: found with --run, which names the folder; --config=DIR/config.json goes with --workdir"
            )
        if _CONFIG.value is not None:
            _CONFIG.value.keys()  # a config file that did not load raises its error here
        return rest
    except EcgByteError as error:
        _fail(str(error))
    except flags.Error as error:
        _fail(_explain_flag(error))
    except (SyntaxError, ImportError, ValueError) as error:
        _fail(f"--config: {type(error).__name__}: {error}")
    except (AttributeError, KeyError) as error:
        if "get_config" in str(error):
            _fail(f"--config: the file has no function get_config: {_last_line(error)}")
        named = (match[1] for arg in argv if (match := _OF_A_MIXTURE.match(arg)))
        if name := next((name for name in named if f"'{name}'" in str(error)), ""):
            _fail(f"--config.data.mixture: no corpus {name!r} in the experiment, whose mixture must name it")
        _fail(f"--config: {_explain_line(error)}")
    except (OSError, TypeError) as error:
        _fail(f"--config: {_last_line(error)}{_experiments_beside(argv)}")


def _expand(argv: list[str]) -> list[str]:
    """Reads ~, which shells do not expand after a =, a run's config.json as a config, and --run=DIR as that file in DIR."""
    expanded = list(argv)
    for place, arg in enumerate(argv[1:], start=1):
        name, equals, value = arg.partition("=")
        if not equals and place + 1 < len(argv):
            value = argv[place + 1]
        if name in ("--config", "-config"):
            path = expanduser(_own_experiment(value))
            path = f"{_STORED}:{path}" if path.endswith(".json") else path
            expanded[place : place + 1 if equals else place + 2] = [f"--config={path}"] if equals else [name, path]
        elif name in ("--run", "-run"):
            file = Workdir(Path(expanduser(value))).config
            if any(re.match("--?config(=|$)", arg) for arg in argv):
                raise ConfigError("--config: found with --run, which means the run's own config.json; give only one of them")
            if not file.is_file():
                raise ConfigError(f"--run: no file '{file}', in which a run keeps its settings{runs_beside(file.parent)}")
            expanded.insert(1, f"--config={_STORED}:{file}")
    return expanded


def _own_experiment(value: str) -> str:
    """The file behind ecgbyte:NAME or ecgbyte:NAME:ARGUMENT; other values are returned as they are."""
    if not value.startswith(_OWN):
        return value
    name, *argument = value.removeprefix(_OWN).split(":", 1)
    if name not in _names(_EXPERIMENTS):
        raise ConfigError(f"--config: no experiment {name!r} in this package; there are {', '.join(_names(_EXPERIMENTS))}")
    return ":".join([str(_EXPERIMENTS / f"{name}.py"), *argument])


def _names(folder: Path) -> list[str]:
    """The experiments in a folder."""
    files = (path for path in folder.glob("*.py") if "def get_config" in path.read_text(errors="replace"))
    return sorted(path.stem for path in files if path.name != _STORED.name)


def _let_import_experiments(argv: list[str]) -> None:
    """Lets `import experiments.common` work anywhere: from the folder `experiments` of the file, else from the package."""
    pairs = zip(argv, [*argv[1:], ""])
    values = [match[1] or after for arg, after in pairs if (match := re.match("--?config(?:=(.*))?$", arg))]
    folders = [Path(value.partition(":")[0]).absolute().parent for value in values]
    package = ModuleType("experiments")
    package.__path__ = [*(str(folder) for folder in folders if folder.name == "experiments"), str(_EXPERIMENTS)]
    sys.modules["experiments"] = package


def _check_names(argv: list[str]) -> None:
    """Raises ConfigError for a --config.NAME that is no setting."""
    known = setting_fields()
    for name in (match[1] for arg in argv if (match := re.match(r"--?(?:no)?config\.([^=]*)", arg))):
        if setting_of(name) not in known:
            inner = [full for full in known if full.startswith(f"{name}.")]
            hint = f"; its settings are {', '.join(inner)}" if inner else _did_you_mean(name)
            raise ConfigError(f"--config.{name} is {'a part, not a' if inner else 'not a'} setting{hint}")


def _did_you_mean(name: str) -> str:
    nearest = nearest_settings(name)
    return f"; did you mean {' or '.join(nearest)}?" if nearest else "; --help lists them all"


def _explain_flag(error: Exception) -> str:
    """A value that a flag cannot hold, with what a setting accepts."""
    line = _last_line(error).removeprefix("ValueError: ")
    if match := re.match(r"flag --config\.([\w.]+)=(.*?): ", line):
        return f"{match[1]}: {match[2]!r} found, {expected_values(match[1])} expected"
    return line


def _explain_line(error: Exception) -> str:
    """The line of the experiment file at fault, which mostly names an unknown setting."""
    library = str(Path(config_flags.__file__).parents[1])
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(library)][-1]
    place = f"{own.filename}, line {own.lineno}"
    name = re.search(r'(?:Key|instead of) "(\w+)"', str(error)) or re.search(r"(\w+)", _last_line(error))
    if not name or own is frames[-1]:
        return f"{place}: {type(error).__name__}: {_last_line(error)}"
    written = re.search(rf"\.([\w.]*\b{name[1]}\b[\w.]*)", own.line or "")
    setting = written[1] if written else name[1]
    return f"{place}: {setting!r} is not a setting{_did_you_mean(setting)}"


def _experiments_beside(argv: list[str]) -> str:
    """The experiments in the folder of a file that is not there."""
    given = next((match[1] for arg in argv if (match := re.match(r"--?config=([^:]*)", arg))), "")
    names = [f"{name}.py" for name in _names(Path(given).parent)]
    return f"; experiments there: {', '.join(names)}" if given and not Path(given).exists() and names else ""


def _last_line(error: Exception) -> str:
    """The cause of an error: config_flags wraps one error in another, with the cause on the last line."""
    return str(error).replace("\\n", "\n").strip().splitlines()[-1].strip()


def _fail(message: str) -> NoReturn:
    """Prints one line, with control characters of the data escaped, and exits with code 1."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
    print(f"error: {shown}", file=sys.stderr)
    sys.exit(1)


def _command() -> str:
    """How this program was called."""
    return "ecgbyte" if Path(sys.argv[0]).stem == "ecgbyte" else "python main.py"


def start() -> None:
    """The program: reads sys.argv, runs, and exits."""
    app.run(main, flags_parser=_parse_flags)
