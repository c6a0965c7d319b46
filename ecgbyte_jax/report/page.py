"""The report as one HTML file: its content as plain values, and the template that shows them.

The template escapes everything that comes from data; the file loads nothing from the network, as its content policy states.
"""

import base64
import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image

from ecgbyte_jax.report.glossary import Glossary
from ecgbyte_jax.report.save import small_png

_DPI = 150
_CSS_DPI = 96  # a browser's pixels per inch: pictures are shown true to scale where there is room
_FOLDER = Path(__file__).parent
_SECTIONS = ("scores", "examples", "training", "data", "tokenizer", "settings", "terms")


@dataclass(frozen=True)
class Table:
    """A caption, the columns' names, and rows of texts; the first text names the row."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, its size in browser pixels; alt describes it for those who cannot see it.

    layer: a second picture of the same size that is multiplied with it and can be switched off, with its own layer_alt.
    trace: an ECG as JSON, which trace.js draws in the picture's place (see `sections.trace_json`).
    """

    uri: str
    width: int
    height: int
    name: str
    alt: str
    caption: str
    layer: str = ""
    layer_alt: str = ""
    trace: str = ""


@dataclass(frozen=True)
class Example:
    """One example; verdict: what is said of its answer besides whether it is right; others: other answers, with a name."""

    id: str
    type: str
    question: str
    reference: str
    answer: str
    verdict: str
    right: bool
    others: tuple[tuple[str, str], ...] = ()
    pictures: tuple[Picture, ...] = ()
    shares: tuple[Table, ...] = ()


@dataclass
class Page:
    """The report's content; the notes name what a run lacks.

    facts: (name, text) of what the run is; command: makes the page again; evidence: the results' word for the verdict.
    """

    title: str
    introduction: str
    scores: list[Table]
    facts: list[tuple[str, str]] = field(default_factory=list)
    command: str = ""
    verdict: list[str] = field(default_factory=list)
    verdict_note: str = ""
    evidence: str = ""
    chart: list[Picture] = field(default_factory=list)
    score_pictures: list[Picture] = field(default_factory=list)
    score_notes: list[str] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    examples_note: str = ""
    curves: list[Picture] = field(default_factory=list)
    curve_notes: list[str] = field(default_factory=list)
    data: list[Table] = field(default_factory=list)
    data_notes: list[str] = field(default_factory=list)
    tokenizer: list[Table] = field(default_factory=list)
    tokenizer_pictures: list[Picture] = field(default_factory=list)
    tokenizer_notes: list[str] = field(default_factory=list)
    settings: list[Table] = field(default_factory=list)
    settings_notes: list[str] = field(default_factory=list)

    @property
    def types(self) -> list[str]:
        """The question types of the examples."""
        return sorted({example.type for example in self.examples})


def picture(
    figure: Figure, name: str, alt: str, caption: str, layer: Figure | None = None, layer_alt: str = "", trace: str = ""
) -> Picture:
    """A figure for the page, with a layer of the same size and what trace.js draws in its place, where they are given."""
    data = small_png(figure, _DPI)
    width, height = Image.open(io.BytesIO(data)).size
    size = round(width * _CSS_DPI / _DPI), round(height * _CSS_DPI / _DPI)
    return Picture(_uri(data), *size, name, alt, caption, _uri(small_png(layer, _DPI)) if layer else "", layer_alt, trace)


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def render(page: Page) -> bytes:
    """The report's bytes; the same page gives the same bytes."""
    names = {"tokenizer": "ECG tokenizer"}
    sections = [(name, names.get(name, name.capitalize())) for name in _SECTIONS]
    return fill("page.html", ("trace", "page"), page=page, introduction=page.introduction, sections=sections)


def fill(template: str, parts: tuple[str, ...] = ("page",), **values: object) -> bytes:
    """The file's bytes, with the parts' styles and scripts; the same values give the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = (
        "".join((_FOLDER / f"{part}.{kind}").read_text(encoding="utf-8") for part in parts) for kind in ("css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = environment.get_template(template).render(
        **values, glossary=Glossary(), style=style, script=script, script_hash=f"sha256-{digest}"
    )
    # An unpaired surrogate, as damaged data may hold, is shown as a question mark.
    return html.encode("utf-8", errors="replace")
