"""`mallowspo plan EXPERIMENT`: what its jobs will need and cost, before anything is fetched or submitted."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mallowspo.chains import first_model
from mallowspo.errors import InputError
from mallowspo.experiments import experiment_file, load_experiment, load_workflow
from mallowspo.files import write_json
from mallowspo.layout import Layout
from mallowspo.plan.data import expected, prepared
from mallowspo.plan.hardware import DEVICES, USUAL_GPU, Device
from mallowspo.plan.requests import UNKNOWN, model_folders
from mallowspo.plan.shapes import shape_of
from mallowspo.plan.stages import Case, stages
from mallowspo.plan.table import as_json, told
from mallowspo.settings import Experiment, nearest
from mallowspo.studies.settings import Study


def plan(
    experiment: Annotated[
        str | None, typer.Argument(help="a name in config/experiments, or a path to a .yaml file", show_default=False)
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="experiments=NAME, or several with commas: as snakemake takes it")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(DEVICES)} [default: {USUAL_GPU} where compute.gpus is above 0, else cpu]"),
    ] = None,
    flops: Annotated[
        float | None, typer.Option(help="peak rate in place of the device's, in model.precision: operations a second")
    ] = None,
    fraction: Annotated[float | None, typer.Option(min=0.01, max=1, help="share of the peak that is reached")] = None,
    cores: Annotated[int, typer.Option(help="cores that `threads: auto` shares; 0: of this machine")] = 0,
    model: Annotated[Path | None, typer.Option(help="folder with the config.json of a model not well known")] = None,
    results: Annotated[str, typer.Option(help="folder of all results")] = "results",
    json_file: Annotated[Path | None, typer.Option("--json", help="write every figure here")] = None,
) -> None:
    """Jobs, memory, time and cost of an experiment, before anything is fetched or submitted."""
    from rich.console import Console

    names = asked_for(experiment, config)
    if json_file and len(names) > 1:
        raise InputError("--json holds the plan of one experiment; ask for one at a time")
    for name in names:
        case = make_case(name, device, flops, fraction, cores, model, results)
        planned = stages(case)
        if json_file:
            write_json(json_file, as_json(case, planned))
        Console(width=None if sys.stdout.isatty() else 140).print(told(case, planned))


def asked_for(experiment: str | None, config: str | None) -> list[str]:
    """The experiments that are named, one way or the other.

    Raises:
        InputError: none is, or both ways were taken.
    """
    key, _, names = (config or "").partition("=")
    if bool(experiment) == bool(config) or (config and (key != "experiments" or not names)):
        raise InputError("give one experiment, as in `mallowspo plan demo`, or --config experiments=NAME,NAME")
    return [experiment] if experiment else load_workflow({"experiments": names}, "--config").experiments


def make_case(
    name: str,
    device: str | None = None,
    flops: float | None = None,
    fraction: float | None = None,
    cores: int = 0,
    model: Path | None = None,
    results: str = "results",
) -> Case:
    """An experiment on a device, by the best that is known of its model and its pairs.

    Raises:
        InputError: the device, the model's size or the number of pairs is not known.
    """
    experiment = load_experiment(name)
    if isinstance(experiment, Study):
        raise InputError(
            f"{experiment_file(name)}: a study (kind: {experiment.kind}) is not planned; its jobs ask for its "
            f"compute.memory_mb and compute.minutes, else for {UNKNOWN.memory_mb} MiB and {UNKNOWN.minutes} minutes"
        )
    layout = Layout(results, experiment_file(name).stem)
    first = first_model(experiment.model)
    folders = [model] if model else model_folders(first.source, layout.model(first.key))
    shape = shape_of(first.source, folders)
    data = prepared(layout) or expected(experiment)
    shared = cores or len(os.sched_getaffinity(0))
    return Case(experiment, shape, data, _device(experiment, device, flops, fraction), shared)


def _device(experiment: Experiment, name: str | None, flops: float | None, fraction: float | None) -> Device:
    usual = USUAL_GPU if experiment.compute.gpus else "cpu"
    if name and name not in DEVICES:
        raise InputError(f"--device {name}: {nearest(name, DEVICES)}")
    device = DEVICES[name or usual]
    if flops:
        device = faster(device, flops, experiment.model.precision)
    return replace(device, fraction=fraction) if fraction else device


def faster(device: Device, flops: float, precision: str) -> Device:
    """The same device with another peak rate in `precision` (auto: bfloat16); both rates in proportion."""
    times = flops / (device.float32 if precision == "float32" else device.bfloat16)
    return replace(
        device, name=f"{device.name}, --flops", bfloat16=times * device.bfloat16, float32=times * device.float32
    )
