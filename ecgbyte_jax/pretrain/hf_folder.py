"""Hugging Face folders of encoders: their config.json, and what is wrong with their tensors, in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ecgbyte_jax.errors import WeightsError

T = TypeVar("T")


def read_config(setting: str, folder: Path, model: str, read: Callable[[dict], T]) -> T:
    """What `read` makes of a folder's config.json; model: "a BERT".

    Raises WeightsError, which names the setting and the file, where it is missing or damaged, or `read` raises it or KeyError.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise WeightsError("a JSON object with the model's settings expected")
        return read(raw)
    except OSError as error:
        raise WeightsError(f"{setting}: {path}: {error.strerror}; a Hugging Face folder of {model} expected") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{setting}: {path}: not readable as JSON: {error}") from error
    except KeyError as error:
        raise WeightsError(f"{setting}: {path}: field {error} is missing, which {model} has") from error
    except WeightsError as error:
        raise WeightsError(f"{setting}: {path}: {error}") from error


def refuse_tensors(setting: str, folder: Path, model: str, problems: list[str]) -> None:
    """Raises WeightsError where there are problems, of which it names three; model: "no BERT's"."""
    if problems:
        others = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise WeightsError(f"{setting}: {folder}: the weights are {model}: {'; '.join(problems[:3])}{others}")
