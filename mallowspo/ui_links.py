"""`mallowspo ui-links EXPERIMENT`: where MLflow compares the runs of an experiment."""

import json
from typing import Annotated

import typer

from mallowspo.experiments import experiment_file
from mallowspo.layout import Layout


def ui_links(
    experiment: Annotated[str, typer.Argument(help="a name in config/experiments, or a path to a .yaml file")],
    results: Annotated[str, typer.Option(help="folder of all results")] = "results",
    server: Annotated[
        str | None, typer.Option(help="MLflow's address [default: the store's where it is one, else this machine's]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Print the addresses of MLflow's pages for a tracked experiment: its runs compared, and their table."""
    from mallowspo.tracking.links import links

    found = links(Layout(results, experiment_file(experiment).stem), server)
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(f"{what}  {url}" for what, url in found.items()))
