"""HTML reports: one file each, without external resources, for light and dark mode."""

import io
import json
import math
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

FOLDER = Path(__file__).parent  # holds page.html, which every page extends, page.css and figure.html


def render(template: Path, **values: object) -> str:
    """Render a page.

    Args:
        template: an HTML template that extends `page.html`.
        values: the variables of the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((FOLDER / "page.css").read_text(encoding="utf-8"))
    return environment.from_string(template.read_text(encoding="utf-8")).render(style=style, **values)


def write(path: Path, text: str) -> None:
    """Write a file atomically, as UTF-8."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def number(x: float) -> float | None:
    """Return a number, or None for infinity and NaN, which JSON can't represent."""
    return float(x) if math.isfinite(x) else None


def write_json(path: Path, data: object) -> None:
    """Write a JSON file atomically.

    Raises:
        ValueError: if a number is infinite or NaN, which JSON can't represent.
    """
    write(path, json.dumps(data, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Picture:
    """A picture with a caption, as data URLs in two versions: for light and for dark pages."""

    title: str
    caption: str
    light: str
    dark: str


def draw(title: str, caption: str, size: tuple[float, float], paint: Callable[[Axes], None]) -> Picture:
    """Draw a picture on a transparent background, for light and for dark pages.

    Args:
        title: heading of the picture.
        caption: one sentence that describes the picture.
        size: width and height in inches.
        paint: draws on the axes; called once for each version.
    """
    return Picture(title, caption, *(_draw_svg(style, size, paint) for style in ("default", "dark_background")))


def _draw_svg(style: str, size: tuple[float, float], paint: Callable[[Axes], None]) -> str:
    buffer = io.BytesIO()
    with matplotlib.style.context([style, {"svg.fonttype": "none"}]), warnings.catch_warnings():
        # Text stays text in the SVG. Browsers have fonts for all languages, so it does not matter
        # which glyphs matplotlib's fonts lack.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        paint(figure.subplots())
        figure.savefig(buffer, format="svg", transparent=True)
    return "data:image/svg+xml;base64," + b64encode(buffer.getvalue()).decode()
