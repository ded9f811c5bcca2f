"""`mallowspo settings` and `mallowspo schema`: what an experiment's file says, and what it may say."""

import json
from typing import Annotated

import typer

from mallowspo.experiments import dump_settings, load_experiment, settings_schema


def settings(
    experiment: Annotated[str, typer.Argument(help="a name in config/experiments, or a path to a .yaml file")],
) -> None:
    """Check an experiment's file and print it with every default written out."""
    typer.echo(dump_settings(load_experiment(experiment)), nl=False)


def schema() -> None:
    """Print the JSON schema of an experiment's file (workflow/schemas/settings.schema.json)."""
    typer.echo(json.dumps(settings_schema(), indent=2))
