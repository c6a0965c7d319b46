"""What somebody asks about recordings of their own; `run/ask.py` answers it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Inquiry:
    """What is asked: paths of recordings; questions, none to read them from the terminal.

    sample_rate in Hz, the leads' names and the units are those of CSV and NPY files; together: all recordings in one prompt;
    picture: a .png or .svg file, or "".
    """

    records: tuple[str, ...]
    questions: tuple[str, ...] = ()
    sample_rate: float = 0.0
    leads: tuple[str, ...] = ()
    units: str = "mV"
    together: bool = False
    picture: str = ""
