"""Whether a call of the workflow asks for the page of the paper, and so for all experiments of its scale.

The Snakefile is read before Snakemake knows its targets, so the command line itself is looked at. Jobs of a cluster
read it again with another command line: they are told by the environment, which they inherit.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from mallowspo.errors import InputError
from mallowspo.paper.settings import load_paper
from mallowspo.workflow_settings import Workflow

TARGET, PAGE = "paper", "paper/index.html"
#: Set for the jobs of a call that asks for the page.
ASKED = "MALLOWSPO_PAPER"


def experiments_of_the_page(
    workflow: Workflow, config: Mapping[str, Any], arguments: Sequence[str], environment: MutableMapping[str, str]
) -> list[str]:
    """Names of all experiments of the scale; none where nobody asks for the page, and then no file is read.

    Args:
        workflow: the validated settings.
        config: values of config/config.yaml with those of --config; `scale` is only in them if somebody said it.
        arguments: of the command line.
        environment: of this process; the jobs' too.

    Raises:
        InputError: config/paper.yaml is wrong or has no such scale, or a file of --config experiments has the name of
            another that plays a part.
    """
    asked = any(argument == TARGET or argument.endswith(PAGE) for argument in arguments)
    if not (asked or "scale" in config or ASKED in environment):
        return []
    names = load_paper().experiments(workflow.scale)
    for given in workflow.experiments:
        if given.endswith((".yaml", ".yml")) and Path(given).stem in names:
            raise InputError(f"experiments: {given} has the name of a part of scale '{workflow.scale}'; rename it")
    environment[ASKED] = "1"
    return names
