"""A plan as a table for a person, and as JSON for a program."""

from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from mallowspo.plan.stages import Case, Stage, mean_lengths

COLUMNS = ("stage", "jobs", "threads", "GPUs", "memory", "GPU memory", "time of each", "hours of all")


def told(case: Case, planned: list[Stage]) -> Group:
    """What the command prints."""
    unit = _unit(case)
    shown = Table(title=escape(case.experiment.title), title_justify="left")
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "stage" else "right")
    for stage in planned:
        shown.add_row(
            *(stage.name, str(stage.jobs), str(stage.threads), str(stage.gpus), _gigabytes(stage.memory)),
            *(_gigabytes(stage.gpu_memory) if stage.gpus else "", _duration(stage.seconds), f"{_hours(stage):.2f}"),
        )
    lines = [f"{total(planned):,.1f} {unit} in all"]
    lines += [f"{stage.name}: {note}" for stage in planned for note in stage.notes]
    return Group(shown, *(escape(line) for line in [*lines, *assumptions(case)]))


def as_json(case: Case, planned: list[Stage]) -> dict[str, Any]:
    """Bytes, seconds, operations and hours; what the plan took for true in words."""
    return {
        "model": {**vars(case.shape), "parameters": case.shape.parameters},
        "device": vars(case.device),
        "precision": case.precision,
        "pairs": {name: getattr(case.data, name).count for name in ("train", "test")},
        "stages": [vars(stage) | {"gpu_hours": stage.gpu_hours, "core_hours": stage.core_hours} for stage in planned],
        "gpu_hours": sum(stage.gpu_hours for stage in planned),
        "core_hours": sum(stage.core_hours for stage in planned),
        "assumptions": assumptions(case),
    }


def assumptions(case: Case) -> list[str]:
    """On what the plan rests."""
    shape, device, data = case.shape, case.device, case.data
    prompt, chosen, rejected = mean_lengths(data.train.lengths)
    what = "GPU" if device.is_gpu else "core"
    rates = f"{_tera(device.bfloat16)} in bfloat16, {_tera(device.float32)} in float32"
    return [
        f"model: {shape.parameters / 1e9:.3f} thousand million parameters; products in {case.precision}",
        f"device: {device.name}, {rates} million million operations a second and {what}, of which "
        f"{device.fraction:.0%} are reckoned with",
        f"{data.train.count:,} training pairs, {data.test.count:,} test pairs and as many test prompts; mean tokens of "
        f"prompt, chosen and rejected: {prompt:.0f}, {chosen:.0f}, {rejected:.0f}",
        data.told,
        f"every answer is as long as generation.max_new_tokens, {case.experiment.generation.max_new_tokens}",
        "not counted: fetching, a judge that is a model, the items of lm-eval, further sets of pairs, "
        "traffic between processes, the queue",
    ]


def total(planned: list[Stage]) -> float:
    """GPU hours where GPUs are used, else core hours."""
    return sum(_hours(stage) for stage in planned if stage.gpus or not any(other.gpus for other in planned))


def _unit(case: Case) -> str:
    return "GPU hours" if case.device.is_gpu else "core hours"


def _hours(stage: Stage) -> float:
    return stage.gpu_hours if stage.gpus else stage.core_hours


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
