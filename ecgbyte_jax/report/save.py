"""Pictures as files: PNG and SVG, the same bytes for the same picture."""

import io
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import write_whole

MM = 1 / 25.4  # inches
EVERY_SAMPLE = {"path.simplify": False}  # read when a path is made: at plotting, and for a long trace again at saving
_STYLE = {"svg.hashsalt": "ecgbyte-jax", "font.family": "DejaVu Sans"} | EVERY_SAMPLE
_DPI = 200
_NO_DATES = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
KINDS = tuple(_NO_DATES)
_NOT_IN_XML = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def title_text(title: str) -> str:
    """A title that comes from data as one line that an SVG can hold and that is not read as a formula."""
    return _NOT_IN_XML.sub("\ufffd", title).replace("$", r"\$")


def check_picture(path: str | Path, what: str) -> None:
    """Raises ConfigError, naming the setting `what`, where a picture's name has an unknown ending."""
    if Path(path).suffix[1:].lower() not in KINDS:
        raise ConfigError(f"{what}: '{path}' found, a name that ends in .png or .svg expected")


def picture_bytes(figure: Figure, kind: str = "png", dpi: int = _DPI) -> bytes:
    """The picture as "png" or "svg", at its own size in mm."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=_NO_DATES[kind])
    return buffer.getvalue()


def small_png(figure: Figure, dpi: int) -> bytes:
    """A PNG of 128 colours, a third of the bytes, for pages that hold many."""
    image = Image.open(io.BytesIO(picture_bytes(figure, "png", dpi))).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(buffer, "png", optimize=True, dpi=(dpi, dpi))
    return buffer.getvalue()


def save_picture(figure: Figure, path: str | Path) -> None:
    """Writes PNG or SVG by the name's ending; raises ConfigError for other names, OSError."""
    check_picture(path, "picture")
    path = Path(path)
    write_whole(path, [picture_bytes(figure, "svg") if path.suffix.lower() == ".svg" else small_png(figure, _DPI)])
