"""How pages are filled in: their template, the style sheet, and what may pass unescaped."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def environment(*packages: str) -> Environment:
    """Templates of `packages`, and of the report, whose parts and style every page shares."""
    # autoescape for every template: prompts and answers are hostile text. Only our own SVG and CSS are marked safe.
    loader = ChoiceLoader([PackageLoader(package, ".") for package in (*packages, "mallowspo.report")])
    made = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["svg"] = lambda panel: Markup(panel.svg)
    made.globals["css"] = Markup(loader.get_source(made, "page.css")[0])
    return made
