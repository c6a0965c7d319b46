"""What somebody asks about their own recordings, in flags and in the terminal; `stages/ask.py` answers it."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.run.console import console

_ENDS = ("quit", "exit")
_HELP = "type a question and press Enter; the arrow keys bring earlier ones back; quit, exit or Ctrl-D ends"


@dataclass(frozen=True)
class Inquiry:
    """Paths of recordings, and questions; without questions they are read from the terminal.

    sample_rate in Hz, the leads' names and the units apply to CSV, NPY and MATLAB files; together: all recordings in one
    prompt; picture: a .png or .svg file, or ""; format: "text", or "json" for one JSON object a line; record_list: a text file
    with the path of a recording on each line, or "".
    """

    records: tuple[str, ...]
    questions: tuple[str, ...] = ()
    sample_rate: float = 0.0
    leads: tuple[str, ...] = ()
    units: str = ""
    together: bool = False
    picture: str = ""
    format: str = "text"
    record_list: str = ""


def read_questions(examples: str = "") -> Iterator[str]:
    """The questions that are typed in the terminal, or the lines of another standard input, until `quit`, `exit` or its end.

    Ctrl-C ends quietly too. In a terminal a question that cannot be asked is explained; elsewhere it raises ConfigError.
    examples: shown with the help.
    """
    hint = f"{_HELP}\n{examples}".rstrip()
    in_terminal = sys.stdin.isatty()
    if in_terminal:
        import readline  # noqa: F401  line editing and history for `input`

        console.print(hint)
    try:
        while (line := _read_line(in_terminal)) is not None:
            match line.strip():
                case "":
                    continue
                case "help" | "?":
                    console.print(hint)
                case word if word.lower() in _ENDS:
                    return
                case question:
                    try:
                        check_question(question)
                    except ConfigError as error:
                        if not in_terminal:
                            raise
                        console.print(str(error))
                        continue
                    yield question
    except KeyboardInterrupt:
        console.print()


def check_question(question: str) -> None:
    """Raises ConfigError for an empty question, and for one that is no text."""
    if not question.strip():
        raise ConfigError("--question: an empty one found; leave it out to be asked in the terminal")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"--question: {question!r} found, text in UTF-8 expected") from error


def _read_line(in_terminal: bool) -> str | None:
    """None at the end of the input."""
    if not in_terminal:
        return sys.stdin.readline() or None
    try:
        if sys.stdout.isatty():
            return input("question: ")
        print("question: ", end="", file=sys.stderr, flush=True)  # the standard output is for answers alone
        return input()
    except EOFError:
        console.print()
        return None
