"""`mallowspo paper`; what computes is imported when it runs."""

from typing import Annotated

import typer

from mallowspo.paper.published import load_published
from mallowspo.paper.settings import load_paper


def paper(
    scale: Annotated[str, typer.Option(help="of config/paper.yaml: cpu or paper")] = "cpu",
    results: Annotated[str, typer.Option(help="folder of all results")] = "results",
) -> None:
    """The page of the paper's claims from what is finished: results/paper/index.html, its tables and figures."""
    settings = load_paper()
    settings.parts(scale)
    published = load_published(list(settings.claims))
    from mallowspo.paper import page

    typer.echo(page.run(settings, published, scale, results))
