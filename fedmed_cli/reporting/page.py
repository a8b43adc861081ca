"""The report's page: one HTML file without a script or a reference to elsewhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedmed_cli.reporting import plots
from fedmed_cli.reporting.parts import Section
from fedmed_cli.text import clean

HERE = Path(__file__).parent
GENERATOR = "fedmed report"


def render(title: str, lead: Sequence[str], sections: Sequence[Section], footer: Sequence[str]) -> str:
    """The page. Every text is escaped, and stripped of what could turn the direction of what stands around it."""
    import jinja2
    from markupsafe import Markup

    def plain(value: Any) -> Any:
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["class_name"] = lambda part: type(part).__name__
    style = (HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    # Nothing may be fetched, run or styled but the one style element of this digest.
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return environment.get_template("page.html.jinja").render(
        title=title,
        lead=lead,
        sections=sections,
        footer=footer,
        style=Markup(style),
        policy=Markup(policy),
        generator=GENERATOR,
        plots=plots,
        markup=Markup,
    )
