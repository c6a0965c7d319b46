"""The site: `make docs` builds it into docs/_build, executes the tutorials, and fails at any warning."""

import os
import sys
from dataclasses import fields
from pathlib import Path

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE.parent))
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the tutorials call `ecgbyte`
os.environ["COLUMNS"] = "100"
os.environ["TTY_COMPATIBLE"] = "0"  # Jupyter sets FORCE_COLOR, by which rich takes a notebook for a terminal

from myst_nb.core import render  # noqa: E402

from ecgbyte_jax import __version__  # noqa: E402
from ecgbyte_jax.setting_names import default_of, setting_fields  # noqa: E402
from ecgbyte_jax.settings import Settings  # noqa: E402

project, author, release = "ecgbyte-jax", "the authors of ecgbyte-jax", __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated", "tutorials/runs"]
html_theme, html_title = "furo", "ecgbyte-jax"
html_theme_options = {"source_repository": "", "top_of_page_buttons": []}
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_show_sourcelink = html_show_copyright = False

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # executed again where a cell has changed
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
smartquotes = False
default_role = "code"  # as the docstrings use single backquotes


def join_streams(outputs: list[dict]) -> list[dict]:
    """A cell's outputs, each stream's pieces as one text: they are cut every 100 characters, where MyST-NB would end a line."""
    joined: list[dict] = []
    streams: dict[str, dict] = {}
    for output in outputs:
        name = output["name"] if output["output_type"] == "stream" else None
        if name in streams:
            streams[name]["text"] += output["text"]
            continue
        joined.append(output)
        if name:
            streams[name] = output
    return [output for output in joined if output["output_type"] != "stream" or output["text"].strip()]


render.coalesce_streams = join_streams


def write_settings(app: object = None) -> None:
    """Writes _generated/settings.md, a table for each part of the settings."""
    purposes = {part.name: part.default_factory.__doc__ for part in fields(Settings) if isinstance(part.default_factory, type)}
    lines: list[str] = []
    last = None
    for name, setting in setting_fields().items():
        part = name.rpartition(".")[0]
        if part != last:
            title, purpose = (f"`{part}`", purposes[part].strip().split("\n\n")[0]) if part else ("Of the whole run", "")
            lines += ["", f"## {title}", "", purpose, "", "| setting | default | meaning |", "| --- | --- | --- |"]
            last = part
        rule = setting.metadata["rule"]
        meaning = setting.metadata["meaning"] + (f" [{rule.expected}]" if rule else "")
        default = f"`{default_of(setting)!r}`" if setting.default != "" else '`""`'
        lines.append(f"| `{name}` | {default} | {meaning.replace('|', chr(92) + '|').replace('<', '&lt;')} |")
    (_HERE / "_generated").mkdir(exist_ok=True)
    (_HERE / "_generated/settings.md").write_text("\n".join(lines) + "\n")


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", write_settings)
