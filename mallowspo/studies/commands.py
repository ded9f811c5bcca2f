"""`mallowspo study` and `mallowspo reward-model`; what computes is imported when it runs."""

from typing import Annotated

import typer

from mallowspo.errors import InputError
from mallowspo.experiments import dump_settings, experiment_file, load_study
from mallowspo.layout import Layout
from mallowspo.model_files import trust_fetched
from mallowspo.reward_model.settings import RewardModelStudy
from mallowspo.settings import ComputeSettings

ExperimentName = Annotated[str, typer.Argument(help="a name in config/experiments, or a path to a .yaml file")]
Results = Annotated[str, typer.Option(help="folder of all results")]
Threads = Annotated[int, typer.Option(help="torch threads; 0: what the experiment says")]


def study(experiment: ExperimentName, results: Results = "results", threads: Threads = 0) -> None:
    """Run an experiment that is no comparison (its key `kind` says which study): tables, figures, page."""
    from mallowspo.studies import page

    settings = load_study(experiment)
    _use(settings.compute, threads)
    layout = Layout(results, experiment_file(experiment).stem)
    folder = None
    if settings.model:
        folder = layout.model(settings.model.key)
        trust_fetched(folder, settings.model.trust_remote_code)
    page.run(settings, layout, folder, dump_settings(settings))


def reward_model(experiment: ExperimentName, results: Results = "results", threads: Threads = 0) -> None:
    """Train a reward model on preference pairs; goes on from its last checkpoint if it was killed."""
    from mallowspo.reward_model import training

    settings = load_study(experiment)
    if not isinstance(settings, RewardModelStudy):
        raise InputError(f"{experiment_file(experiment)}: kind {settings.kind} trains nothing; run `mallowspo study`")
    _use(settings.compute, threads)
    layout = Layout(results, experiment_file(experiment).stem)
    training.run(settings, layout, layout.model(settings.model.key))


def _use(compute: ComputeSettings, threads: int) -> None:
    """Lock a GPU if one is asked for, and set the threads."""
    from mallowspo.devices import claim
    from mallowspo.models import use_threads

    if compute.device != "cpu":
        claim(min(compute.gpus, 1))
    use_threads(threads or compute.threads)
