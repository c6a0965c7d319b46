"""The process that reads and cleans strangers' files: `python -m ecgbyte_jax.serve.reading`, started by `reader.py`.

It may write no file, and each task has bounds on memory and time. It imports no jax. A task is a line of JSON on the standard
input; its answer on the standard output is a line of JSON, and then the segments, little-endian float64.
"""

import json
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ecgbyte_jax.ecg.clean_config import CleanConfig
from ecgbyte_jax.errors import EcgByteError
from ecgbyte_jax.inputs.recording import read_recording

_FLAGS = re.compile(r"--(sample_rate|leads|units)\b=?")
_QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"[^"]*")(?= found)""")  # from the file: it may be somebody's name


def main() -> None:
    """Serves tasks until the standard input ends; the arguments are bounds: MB of memory."""
    megabytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print
    _send(answers, {"ready": True})
    for line in sys.stdin.buffer:
        _send(answers, *_answer(json.loads(line)))


def _answer(task: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    nothing = np.empty((0, 0, 0))
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + task["cpu_seconds"]) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    path, label = task["path"], task["label"]
    cleaning = {name: tuple(value) if isinstance(value, list) else value for name, value in task["cleaning"].items()}
    try:
        recording = read_recording(
            path, CleanConfig(**cleaning), task["segment_length"], task["sample_rate"], task["leads"], task["units"],
            task["longest"],
        )  # fmt: skip
    except MemoryError:
        return {"error": f"{label}: reading it takes too much memory"}, nothing
    except EcgByteError as error:
        return {"error": _spell(str(error), path, label)}, nothing
    about = {name: getattr(recording, name) for name in ("rate", "seconds", "beats", "clean_rate")}
    notes = [_spell(note, path, label) for note in recording.notes]
    return about | {"notes": notes, "shape": recording.segments.shape}, recording.segments


def _spell(text: str, path: str, label: str) -> str:
    """A text without a path of this machine and without words of the file, and with the names of fields for those of flags."""
    for own, name in ((path, label), (str(Path(path).with_suffix("")), label), (str(Path(path).parent), "")):
        text = text.replace(own, name)
    return _QUOTED.sub("a text", _FLAGS.sub(r"\1 ", text))


def _send(answers: Any, about: dict[str, Any], segments: np.ndarray | None = None) -> None:
    answers.write(json.dumps(about).encode() + b"\n")
    if segments is not None:
        answers.write(segments.astype("<f8").tobytes())
    answers.flush()


if __name__ == "__main__":
    main()
