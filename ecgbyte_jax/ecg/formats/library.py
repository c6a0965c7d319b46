"""Calls of the libraries that read files which others wrote."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from ecgbyte_jax.errors import ConfigError, EcgByteError, RecordError


def require(path: Path, what: str, *modules: str) -> None:
    """Raises ConfigError, with what to install, if a library that reads `what` is missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"{path}: {what} is read by {' and '.join(missing)}, not installed: pip install 'ecgbyte-jax[formats]'"
        )


@contextmanager
def reading(path: Path, what: str) -> Iterator[list[warnings.WarningMessage]]:
    """Turns whatever a library raises into a RecordError; yields the list of its warnings.

    The library's own words are left out, as they may quote the file, and with it a patient's name.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield caught
        except EcgByteError:
            raise
        except Exception as error:  # damaged files make the libraries raise errors of every type
            raise RecordError(f"{path}: not readable as {what}, or damaged ({type(error).__name__})") from error
