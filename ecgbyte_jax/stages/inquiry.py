"""What somebody asks about their own recordings; `stages/ask.py` answers it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Inquiry:
    """Paths of recordings, and questions; without questions they are read from the terminal.

    sample_rate in Hz, the leads' names and the units apply to CSV and NPY files; together: all recordings in one prompt;
    picture: a .png or .svg file, or "".
    """

    records: tuple[str, ...]
    questions: tuple[str, ...] = ()
    sample_rate: float = 0.0
    leads: tuple[str, ...] = ()
    units: str = "mV"
    together: bool = False
    picture: str = ""
