"""What each rule's jobs ask the scheduler for, from the same estimates as `mallowspo plan`.

What an experiment says in compute.memory_mb and compute.minutes holds for all its jobs. Else memory is the estimate and
a quarter, time three times the estimate and ten minutes: more than planned on purpose, for a job that is killed costs
more than one that asks for too much. Nothing here changes a result, and no stage runs again for it.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from mallowspo.chains import first_model
from mallowspo.errors import InputError
from mallowspo.layout import Layout
from mallowspo.memory_formula import MEBIBYTE
from mallowspo.plan.data import expected
from mallowspo.plan.hardware import DEVICES, USUAL_GPU
from mallowspo.plan.shapes import shape_of
from mallowspo.plan.stages import Case, Stage, stages
from mallowspo.settings import Experiment
from mallowspo.studies.settings import Study

MEMORY_MARGIN = 1.25
TIME_MARGIN, TIME_ADDED = 3, 10


@dataclass(frozen=True)
class Request:
    """Of one job."""

    memory_mb: int
    minutes: int


#: Where the model's size or the number of pairs is not known before they are fetched.
UNKNOWN = Request(4000, 120)
#: Rules that have another name than the stage which holds a model as they do. A judge's model is not planned.
AS = {
    **dict.fromkeys(("reference_shard", "dispersion", "other_pairs"), "reference"),
    **dict.fromkeys(("score_answers", "score_other_pairs", "score_shard", "score_other_pairs_shard"), "score"),
    **dict.fromkeys(("second_score", "signals"), "score"),
    "generate_shard": "generate",
    "alpaca": "judge",
    **dict.fromkeys(("lm_eval", "lm_eval_shard"), "lm-eval"),
}


class Requests:
    """What the rules of one experiment ask for."""

    def __init__(self, experiment: Experiment | Study, results: str, cores: int):
        self.compute = experiment.compute
        self.planned = {} if isinstance(experiment, Study) else requests(experiment, results, cores)

    def of(self, rule: str, method: str | None = None) -> Request:
        """Of a rule that holds a model; of `train` by the method's label."""
        stage = f"train {method}" if rule == "train" else AS.get(rule, rule)
        said = Request(self.compute.memory_mb or UNKNOWN.memory_mb, self.compute.minutes or UNKNOWN.minutes)
        return self.planned.get(stage, said)


def requests(experiment: Experiment, results: str, cores: int) -> dict[str, Request]:
    """Name of a stage -> what its jobs ask for; a training by "train LABEL". Empty where nothing can be told."""
    compute = experiment.compute
    try:
        planned = stages(usual_case(experiment, results, cores))
    except InputError:
        return {}
    return {
        stage.name: Request(compute.memory_mb or _memory(stage), compute.minutes or _minutes(stage))
        for stage in planned
    }


def usual_case(experiment: Experiment, results: str, cores: int) -> Case:
    """By the settings alone, so that a job's request is the same before and after the data are there.

    Raises:
        InputError: the model's size or the number of pairs is not known.
    """
    device = DEVICES[USUAL_GPU if experiment.compute.gpus else "cpu"]
    model = first_model(experiment.model)
    folders = model_folders(model.source, Layout(results, "").model(model.key))
    return Case(experiment, shape_of(model.source, folders), expected(experiment), device, cores)


def model_folders(source: str, fetched: Path) -> list[Path]:
    """Where a model's config.json may lie: where it was fetched to, or was given."""
    kind, _, place = source.partition(":")
    return [fetched, Path(place)] if kind == "path" else [fetched]


def _memory(stage: Stage) -> int:
    return math.ceil(stage.memory * MEMORY_MARGIN / MEBIBYTE / 100) * 100


def _minutes(stage: Stage) -> int:
    planned = math.ceil(TIME_MARGIN * stage.seconds / 60) + TIME_ADDED
    return max(planned, UNKNOWN.minutes) if stage.name == "lm-eval" else planned  # its items are not counted
