"""Settings on the pages are settings: every key and value of theirs is taken by an experiment that is whole without."""

import pytest
import yaml

from mallowspo.experiments import validate
from mallowspo.settings import Experiment
from tests.doc_commands import ROOT, all_blocks

WHOLE = yaml.safe_load((ROOT / "config/experiments/smoke.yaml").read_text())


def parts():
    """Blocks that are a part of an experiment's file: all their keys are its sections."""
    for block in all_blocks():
        if block.language not in ("yaml", ""):
            continue
        try:
            values = yaml.safe_load(block.text)
        except yaml.YAMLError:
            continue
        if isinstance(values, dict) and values and set(values) <= set(Experiment.model_fields):
            yield pytest.param(values, id=f"{block.page}:{block.line}")


def merged(whole, part):
    """The whole with the part's values in place of its own, section by section."""
    if not isinstance(part, dict) or not isinstance(whole, dict):
        return part
    return {**whole, **{key: merged(whole.get(key), value) for key, value in part.items()}}


@pytest.mark.parametrize("values", list(parts()))
def test_an_experiment_takes_them(values):
    given = dict(values)
    whole = {} if "title" in given else dict(WHOLE)
    if not str(given.get("pairs", {}).get("source", "on_policy:")).startswith("on_policy:"):
        whole["pairs"] = {}
    if {"selection", "factorial"} & set(given.get("evaluation", {})):  # the block names all of its methods
        whole["methods"] = {}
    if "methods" in given:  # the page that adds a method has one that is not there before
        given["methods"] = {name: row for name, row in given["methods"].items() if name != "bounded_dpo"}
    validate(Experiment, merged(whole, given), "page")


def test_they_are_found():
    assert len(list(parts())) > 8
