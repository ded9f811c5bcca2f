"""How pages are filled in: their template, the style sheet, and what may pass unescaped."""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mallowspo.visible import visible


def environment(*packages: str) -> Environment:
    """Templates of `packages`, and of the report, whose parts and style every page shares."""
    # autoescape for every template: prompts and answers are hostile text. Only our own SVG and CSS are marked safe.
    loader = ChoiceLoader([PackageLoader(package, ".") for package in (*packages, "mallowspo.report")])
    made = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["svg"] = lambda panel: Markup(panel.svg)
    made.globals["css"] = Markup(loader.get_source(made, "page.css")[0])
    return made


def _shown(value: Any) -> Any:
    """Text as it may be shown; our own markup as it is."""
    return visible(value) if type(value) is str else value
