"""Pictures as files: PNG and SVG, the same bytes for the same picture."""

import io
import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial import cKDTree

from ecgbyte_jax.errors import ConfigError
from ecgbyte_jax.files import write_whole

MM = 1 / 25.4  # inches
EVERY_SAMPLE = {"path.simplify": False}  # read when a path is made: at plotting, and for a long trace again at saving
_STYLE = {"svg.hashsalt": "ecgbyte-jax", "font.family": "DejaVu Sans"} | EVERY_SAMPLE
_DPI = 200
_COLOURS, _COMMONEST, _STEPS = 128, 48, 40  # of a small PNG: all colours, those that are most frequent, those of a scale
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
    """A PNG of at most 128 colours, a third of the bytes, for pages that hold many.

    Samples of the figure's colour maps are among them, so that a scale keeps its steps however little room it takes.
    """
    pixels = np.asarray(Image.open(io.BytesIO(picture_bytes(figure, "png", dpi))).convert("RGB"))
    codes, place, counts = np.unique(pixels.astype(np.int32) @ (1 << 16, 1 << 8, 1), return_inverse=True, return_counts=True)
    colours = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.uint8)
    commonest = np.argsort(-counts, kind="stable")[:_COMMONEST]
    rarer = np.delete(colours, commonest, axis=0)
    palette = [_scale_colours(figure), colours[commonest]]
    room = _COLOURS - sum(map(len, palette))
    if len(rarer):
        spread = Image.fromarray(rarer[None]).quantize(room, dither=Image.Dither.NONE).convert("RGB")
        palette.append(np.unique(np.asarray(spread).reshape(-1, 3), axis=0))
    chosen = np.unique(np.concatenate(palette), axis=0)
    image = Image.fromarray(cKDTree(chosen).query(colours)[1].astype(np.uint8)[place].reshape(pixels.shape[:2]), "P")
    image.putpalette(chosen.tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True, dpi=(dpi, dpi))
    return buffer.getvalue()


def _scale_colours(figure: Figure) -> np.ndarray:
    """Samples uint8 [n, 3] of the colour map of the figure's images, as they look on white."""
    images = [image for axes in figure.axes for image in axes.images]
    if not images:
        return np.empty((0, 3), np.uint8)
    alpha = 1.0 if images[0].get_alpha() is None else images[0].get_alpha()
    colours = images[0].cmap(np.linspace(0, 1, _STEPS))[:, :3] * alpha + 1 - alpha
    return np.unique((255 * colours).round().astype(np.uint8), axis=0)


def save_picture(figure: Figure, path: str | Path) -> None:
    """Writes PNG or SVG by the name's ending; raises ConfigError for other names, OSError."""
    check_picture(path, "picture")
    path = Path(path)
    write_whole(path, [picture_bytes(figure, "svg") if path.suffix.lower() == ".svg" else small_png(figure, _DPI)])
