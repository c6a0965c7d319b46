"""The package's own code from a recording to a prompt, copied into an export, and an example that uses it.

Answers depend on every step of the cleaning, so an export brings the very code that the model was trained with; it imports
NumPy, SciPy and PyWavelets, but neither jax (except for the map to vectors) nor this package. One script shows how to use it.
"""

import re
from pathlib import Path

from jinja2 import Environment, StrictUndefined

import ecgbyte_jax
from ecgbyte_jax.files import write_whole

_PACKAGE = Path(__file__).parents[1]
_FOLDER = "ecgbyte_numpy"
_INPUTS = ("inputs/chat.py", "inputs/form.py", "inputs/plain.py", "inputs/prompt.py", "inputs/text.py")
# These, and those of the map below, import nothing else of the package (tests/export/test_code.py).
_COPIED = ("errors.py", "files.py", "rules.py", "ecg/*.py", "ecg/formats/*.py", *_INPUTS, "evaluate/votes.py")
_MAP = "encoders/*.py"  # besides, where a model reads vectors: these import jax, flax and safetensors
_IMPORT = re.compile(r"^( *)from ecgbyte_jax\.(?:\w+\.)*(\w+) import ", re.MULTILINE)
_ABOUT = f'''"""From a recording to a prompt: NumPy, SciPy and PyWavelets alone, but for the map to vectors, where there is one.

Copied from ecgbyte-jax {ecgbyte_jax.__version__} (MIT License, Copyright (c) 2026 The ecgbyte-jax authors): change it there.
"""
'''


def write_code(folder: Path, vectors: bool = False) -> None:
    """Writes the package's modules as the flat folder `ecgbyte_numpy`, which import each other relatively. Raises OSError.

    vectors: with the map from signals to the vectors that a model reads in place of tokens.
    """
    write_whole(folder / _FOLDER / "__init__.py", [_ABOUT.encode()])
    patterns = (*_COPIED, _MAP) if vectors else _COPIED
    files = [file for pattern in patterns for file in sorted(_PACKAGE.glob(pattern)) if file.name != "__init__.py"]
    for file in files:
        text = _IMPORT.sub(r"\1from .\2 import ", file.read_text(encoding="utf-8"))
        write_whole(folder / _FOLDER / file.name, [text.encode()])


def write_example(folder: Path, adapter_rows: int = 0, dtype: str = "float32", vectors: bool = False) -> None:
    """Writes `example.py`, which answers a question about a WFDB record, by a model of tokens or of vectors.

    adapter_rows: 0 for a whole model; for an adapter, the rows that the base model's vocabulary is grown to, and the dtype that
    the base model's weights had in training. Raises OSError.
    """
    template = Environment(trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined).from_string(
        (Path(__file__).parent / "example.py.jinja").read_text(encoding="utf-8")
    )
    text = template.render(code=_FOLDER, rows=adapter_rows, dtype=dtype, vectors=vectors)
    write_whole(folder / "example.py", [text.encode()])
