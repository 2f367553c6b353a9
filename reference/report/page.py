"""Reports to look at: one file each, nothing loaded from anywhere, in one style, with pictures for light and for dark pages."""

import io
import json
import warnings
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import matplotlib.style
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent  # of page.html, which every page extends, its style, and how a picture is shown


def render(template: Path, **values: object) -> str:
    """A page from its template, which extends `page.html`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = Markup((FOLDER / "page.css").read_text(encoding="utf-8"))
    return environment.from_string(template.read_text(encoding="utf-8")).render(style=style, **values)


def write(path: Path, text: str) -> None:
    """All of it or nothing."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def write_json(path: Path, data: object) -> None:
    """All of it or nothing. Raises ValueError where a number is infinite or none, which JSON does not know."""
    write(path, json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Picture:
    """The same picture twice, as data URLs, with a caption that says what it shows."""

    title: str
    caption: str
    light: str
    dark: str


def draw(title: str, caption: str, size: tuple[float, float], paint: Callable[[Axes], None]) -> Picture:
    """Draw a picture on transparent ground for either kind of page."""
    return Picture(title, caption, *(_drawn(style, size, paint) for style in ("default", "dark_background")))


def _drawn(style: str, size: tuple[float, float], paint: Callable[[Axes], None]) -> str:
    buffer = io.BytesIO()
    with matplotlib.style.context([style, {"svg.fonttype": "none"}]), warnings.catch_warnings():
        # Letters stay letters, for the browser has fonts for all languages; what matplotlib's lack is no concern.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
        figure.savefig(buffer, format="svg", transparent=True)
    return "data:image/svg+xml;base64," + b64encode(buffer.getvalue()).decode()
