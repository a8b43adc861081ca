"""A matplotlib figure as inline SVG that takes its colours, fonts and links from the page around it."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_SERIES = 8
# Colours that stand for classes of page.css, which has a light and a dark one for each.
INK, MUTED, GRID, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = tuple(f"#0000a{number}" for number in range(NUM_SERIES))
_CLASSES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    colour: f"s{number}" for number, colour in enumerate(SERIES)
}
_SETTINGS = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout on every machine
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,  # names are foreign: a dollar sign is not a formula
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}
_PLAIN_ATTRIBUTE = re.compile(r"[a-z-]+")
_SIZE = re.compile(r"([\d.]+)px")


def available() -> bool:
    """Whether matplotlib can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def draw(name: str, height: float, fill: Callable[[Figure], None], width: float = 4.7) -> str:
    """Draw a figure of `width` × `height` inches with `fill`, and return it as SVG without a style or a foreign link.

    `name` makes the ids of this figure its own. The same content gives the same bytes.
    """
    import warnings

    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a user's own matplotlibrc changes nothing
        matplotlib.rcParams.update(_SETTINGS | {"svg.hashsalt": f"fedmed-{name}"})  # type: ignore[arg-type]
        # A script's letters that the layout font lacks are drawn by the reader's own font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=(width, height), layout="constrained")
        fill(figure)
        figure.savefig(buffer, format="svg")
    return _convert(buffer.getvalue())


def _convert(text: str) -> str:
    """Matplotlib's SVG with classes for colours, attributes for every other style, and no id that nothing names."""
    root = ET.fromstring(re.sub(r"<!DOCTYPE[^>]*>", "", text))
    for parent in root.iter():
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style", "title"):
                parent.remove(child)
    used = set(re.findall(r"url\(#([^)]+)\)|href=\"#([^\"]+)\"", text))
    linked = {one or other for one, other in used}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if attributes.get("id") not in linked:
            attributes.pop("id", None)
        _restyle(attributes)
        element.attrib.clear()
        element.attrib.update(attributes)
        element.tail = element.tail.strip() if element.tail else None
        if element.tag != "text":
            element.text = element.text.strip() if element.text else None
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    # What matplotlib's own style element says of every element.
    root.attrib |= {"stroke-linejoin": "round", "stroke-linecap": "butt", "aria-hidden": "true", "focusable": "false"}
    return ET.tostring(root, encoding="unicode")


def _restyle(attributes: dict[str, str]) -> None:
    declarations = attributes.pop("style", "").split(";")
    classes = []
    for key, value in [part.strip().split(":", 1) for part in declarations if ":" in part] + [
        (key, attributes.pop(key)) for key in ("fill", "stroke") if key in attributes
    ]:
        key, value = key.strip(), value.strip()
        if key in ("fill", "stroke") and value.lower() in _CLASSES:
            classes.append(f"{key}-{_CLASSES[value.lower()]}")
        elif key == "font":
            if size := _SIZE.search(value):
                attributes["font-size"] = size[1]
            if "bold" in value or re.search(r"\b700\b", value):
                attributes["font-weight"] = "bold"
        elif key != "font-family" and _PLAIN_ATTRIBUTE.fullmatch(key):
            attributes[key] = value.removesuffix("px") if key == "font-size" else value
    if classes:
        attributes["class"] = " ".join(classes)
