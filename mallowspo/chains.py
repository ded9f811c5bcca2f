"""Experiments that need another one: they begin where it ended (`model.source: policy:EXPERIMENT/LABEL/seed=N`), or the
reward model that it trains judges them (`reward:path:RESULTS/EXPERIMENT/model`)."""

from collections.abc import Iterable
from pathlib import Path

from mallowspo.errors import InputError
from mallowspo.experiments import EXPERIMENTS_FOLDER, experiment_file, load_experiment
from mallowspo.judges.names import model_of
from mallowspo.layout import Layout
from mallowspo.sections import nearest
from mallowspo.settings import Experiment, ModelSettings, TrainedPolicy
from mallowspo.studies.settings import Study

Loaded = dict[str, Experiment | Study]


def load_all(names: Iterable[str], results: str = "results") -> tuple[dict[str, str], Loaded]:
    """Files and settings of experiments by their names: those that are asked for, and those that they need.

    Args:
        names: in config/experiments, or paths to .yaml files.
        results: folder of all results, in which a judge is known by its place.

    Raises:
        InputError: a file is wrong, begins from a policy that the other does not train, or two begin from each other.
    """
    files = {experiment_file(name).stem: str(experiment_file(name)) for name in names}
    experiments: Loaded = {}
    waiting = list(files)
    while waiting:
        name = waiting.pop(0)
        experiments[name] = load_experiment(files[name])
        policy = trained_policy(experiments[name])
        needed = [policy.experiment] if policy else []
        for other in [*needed, *trained_judges(experiments[name], results)]:
            if other not in files:
                files[other] = str(experiment_file(other))
                waiting.append(other)
    for name in experiments:
        _check_chain(name, files, experiments)
    return files, experiments


def trained_policy(experiment: Experiment | Study) -> TrainedPolicy | None:
    """The other experiment's policy that this one begins from, if it does."""
    return experiment.model.policy if experiment.model else None


def trained_judges(experiment: Experiment | Study, results: str) -> list[str]:
    """Experiments whose reward models judge this one: those that have a file, at the place that it names."""
    if isinstance(experiment, Study):
        return []
    on_policy, evaluation = experiment.pairs.on_policy, experiment.evaluation
    judges = (
        on_policy.judge if on_policy else None,
        evaluation.judge,
        evaluation.second_judge,
        evaluation.alpaca.judge,
    )
    folders = map(model_of, judges)
    places = {folder: Layout.of_reward_model(folder) for folder in folders if folder}
    return [
        place.experiment
        for folder, place in places.items()
        if Path(place.results) == Path(results)
        and Path(folder) == place.reward_model
        and (EXPERIMENTS_FOLDER / f"{place.experiment}.yaml").exists()
    ]


def first_model(model: ModelSettings) -> ModelSettings:
    """The model at the beginning of a chain: of the same shape."""
    while model.policy:
        origin = load_experiment(model.policy.experiment).model
        if origin is None:
            raise InputError(f"model.source '{model.source}': that experiment has no model")
        model = origin
    return model


def located(source: str, results: str) -> str:
    """A source as a place that can be read: a trained policy is a folder of the results, any other is itself."""
    policy = TrainedPolicy.parse(source)
    return f"path:{folder_of(policy, results)}" if policy else source


def folder_of(policy: TrainedPolicy, results: str) -> Path:
    """Where the training leaves it."""
    return Layout(results, policy.experiment).run(policy.label, policy.seed) / "model"


def _check_chain(name: str, files: dict[str, str], experiments: Loaded) -> None:
    passed = [name]
    while policy := trained_policy(experiments[passed[-1]]):
        origin = experiments[policy.experiment]
        said = f"{files[passed[-1]]}: model.source: policy:{policy.experiment}/{policy.label}/seed={policy.seed}"
        if policy.experiment in passed:
            raise InputError(
                f"{said}: the experiments begin from each other ({' -> '.join(passed)}); start one elsewhere"
            )
        if not isinstance(origin, Experiment):
            raise InputError(f"{said}: {files[policy.experiment]} is a study and trains no policy")
        if policy.label not in origin.methods:
            raise InputError(
                f"{said}: no such label in {files[policy.experiment]}; {nearest(policy.label, origin.methods)}"
            )
        if policy.seed not in origin.seeds:
            raise InputError(f"{said}: {files[policy.experiment]} has the seeds {', '.join(map(str, origin.seeds))}")
        passed.append(policy.experiment)
