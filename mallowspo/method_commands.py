"""`mallowspo methods` and `mallowspo method-figures`; what draws is imported when it runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from mallowspo.methods import METHODS


def methods(as_json: Annotated[bool, typer.Option("--json", help="print a JSON list")] = False) -> None:
    """Print the table of methods: name, formula, needs, source."""
    rows = [
        {"name": name, "formula": row.formula, "needs": list(row.needs), "source": row.source}
        for name, row in METHODS.items()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"{row['name']}\n    loss    {row['formula']}\n    needs   {', '.join(row['needs'])}")
        typer.echo(f"    source  {row['source']}")


def method_figures(
    folder: Annotated[Path, typer.Option(help="where the SVG files go")] = Path("docs/images"),
) -> None:
    """Draw the figures of docs/method.md: links, the jump at 0 and its smoothings, weight against entropy."""
    from mallowspo.method_figures import run

    for path in run(folder):
        typer.echo(path)
