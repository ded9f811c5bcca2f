"""The kinds of studies: a row here is all that the workflow, the command line and the checks need to know of one."""

import importlib
from dataclasses import dataclass
from typing import Any

from mallowspo.studies.settings import Study


@dataclass(frozen=True)
class Kind:
    """`settings`: MODULE:CLASS of a `Study`, free of torch; `module`: has `run(settings, layout, model_folder)`."""

    settings: str
    module: str


KINDS = {
    "bandit": Kind("mallowspo.bandits.settings:BanditStudy", "mallowspo.bandits.study"),
    "dispersion_study": Kind("mallowspo.dispersion_study.settings:DispersionStudy", "mallowspo.dispersion_study.study"),
    "reward_model": Kind("mallowspo.reward_model.settings:RewardModelStudy", "mallowspo.reward_model.study"),
}


def settings_class(kind: str) -> type[Study]:
    """The class that checks the settings of a study."""
    module, _, name = KINDS[kind].settings.partition(":")
    found: type[Study] = getattr(importlib.import_module(module), name)
    return found


def study_module(kind: str) -> Any:
    """The module that runs a study."""
    return importlib.import_module(KINDS[kind].module)
