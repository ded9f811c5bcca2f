"""`mallowspo compare EXPERIMENT`, a stage of the workflow; `mallowspo compare FOLDER FOLDER`, two finished experiments.

How many arguments there are tells the two apart: one experiment is compared within itself, two with each other.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from mallowspo.errors import InputError
from mallowspo.experiments import EXPERIMENTS_FOLDER, experiment_file, load_comparison
from mallowspo.layout import Layout
from mallowspo.provenance import STAGE_MODULES

SHARED = 0.5


def compare(
    first: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="the stage's; or the folder of a finished one")],
    second: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="folder of another finished one, to compare it with")
    ] = None,
    results: Annotated[str, typer.Option(help="folder of all results")] = "results",
    policies: Annotated[
        str | None, typer.Option(help="of two experiments: a:LABEL,b:LABEL,... [default: the labels of both]")
    ] = None,
    shared: Annotated[
        float | None, typer.Option(min=0, max=1, help=f"share of prompts in both that pairs them [default: {SHARED}]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="of two experiments: folder for CSV, Markdown, LaTeX, JSON")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="of two experiments: print JSON")] = False,
) -> None:
    """Estimates and tests within an experiment: a stage. With two finished experiments' folders: between them."""
    if second is None:
        if policies or shared is not None or out or as_json:
            raise InputError(
                f"compare {first}: --policies, --shared, --out and --json are for two experiments; name another folder"
            )
        _stage(first, results)
        return
    from rich.console import Console

    from mallowspo.between.differences import compare_finished
    from mallowspo.between.finished import open_finished
    from mallowspo.between.told import as_json as values
    from mallowspo.between.told import told, write

    opened = [open_finished(folder, results) for folder in (first, second)]
    if opened[0].layout.root.resolve() == opened[1].layout.root.resolve():
        raise InputError(
            f"{first} and {second} are one experiment; `mallowspo compare EXPERIMENT` compares its methods"
        )
    found = compare_finished(opened[0], opened[1], policies, SHARED if shared is None else shared)
    if out:
        write(found, out)
    if as_json:
        typer.echo(json.dumps(values(found), indent=2, ensure_ascii=False))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(told(found))


def _stage(experiment: str, results: str) -> None:
    """The stage of the workflow."""
    if Path(experiment).is_dir() and not (EXPERIMENTS_FOLDER / f"{experiment}.yaml").exists():
        raise InputError(
            f"compare {experiment}: one folder; give two finished experiments' folders to compare them, or, for the "
            "stage, an experiment's name"
        )
    settings = load_comparison(experiment)
    layout = Layout(results, experiment_file(experiment).stem)
    importlib.import_module(STAGE_MODULES["compare"]).run(settings.stage_view("compare"), layout)
