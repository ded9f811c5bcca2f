"""A policy that two processes share out: the same training as by one that holds it whole, and the same files."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from mallowspo import memory
from mallowspo.errors import InputError
from mallowspo.experiments import load_experiment
from mallowspo.files import read_json
from mallowspo.memory_formula import shared_out_bytes
from mallowspo.model_files import BASE
from mallowspo.models import load_model, make_made_up
from mallowspo.scoring import Scorer
from mallowspo.sharding import layers
from tests.made_up_run import training_command
from tests.several_processes import assert_same_training, kill_in_the_middle, made_up, train_in, train_in_one

#: A policy whose head is not its embedding, and one that scales its logits besides, so that it is scored by all of
#: them.
UNTIED = {"tie_word_embeddings": False}
SCALED = {"model_type": "granite", "logits_scaling": 2.0, "tie_word_embeddings": False}
#: A learning rate at which the loss does not jump: a jump makes a difference of rounding a thousand times as large.
ADAPTERS = {"lora": {"rank": 4, "alpha": 8}, "learning_rate": 2e-3}


def a_model(folder, changes):
    """The made-up model with these changes to its configuration."""
    make_made_up(folder)
    values = AutoConfig.from_pretrained(folder).to_diff_dict() | changes
    kind = values.pop("model_type")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values)).save_pretrained(folder)
    return f"path:{folder}"


def assert_same_files(run, expected):
    """By name; of the policy also the configuration, and names and types of the weights."""
    for folder in (".", "model"):
        names = [sorted(path.name for path in (place / folder).iterdir()) for place in (run, expected)]
        assert names[0] == names[1]
    for file in (expected / "model").glob("*config.json"):
        found, wanted = (read_json(place / "model" / file.name) for place in (run, expected))
        for config in (found, wanted):
            config.pop(BASE, None)  # where adapters find their model
        assert found == wanted
    weights, others = (load_file(next((place / "model").glob("*.safetensors"))) for place in (run, expected))
    types, other_types = ({name: values.dtype for name, values in each.items()} for each in (weights, others))
    assert types == other_types


def assert_each_held_half(run, expected):
    """Of weights and both moments, 4 bytes each."""
    summary, whole = read_json(run / "summary.json"), read_json(expected / "summary.json")
    all_of_it = 4 * summary["parameters"] + 8 * summary["trainable_parameters"]
    assert (whole["sharded"], summary["sharded"], summary["processes"]) == (False, True, 2)
    assert whole["bytes_held"] == pytest.approx([all_of_it], rel=0.01)
    assert summary["bytes_held"] == pytest.approx([all_of_it / 2] * 2, rel=0.02)


@pytest.mark.parametrize(("method", "changes", "settings"), [("epsilon_dpo", SCALED, {}), ("lb_dpo", UNTIED, ADAPTERS)])
def test_it_trains_as_one_process(tmp_path, method, changes, settings):
    """epsilon-DPO scores once more between a forward and its backward; LB-DPO learns a part of its loss."""
    settings = settings | {"model": a_model(tmp_path / "model", changes)}
    expected = train_in_one(made_up(tmp_path / "one", method, **settings))
    run = train_in(2, tmp_path / "two", made_up(tmp_path / "two", method, **settings), sharded=True)
    assert_same_training(run, expected)
    assert_same_files(run, expected)
    assert_each_held_half(run, expected)


def test_it_goes_on_from_the_checkpoint_of_one_process(tmp_path):
    """By beta-DPO, which scores a step's parts without gradient first; its policy has embedding and head in one."""
    expected = train_in_one(made_up(tmp_path / "one", "beta_dpo"))
    prepared = made_up(tmp_path / "cut", "beta_dpo")
    kill_in_the_middle(prepared)
    run = train_in(2, tmp_path / "cut", prepared, sharded=True)
    assert read_json(run / "summary.json")["resumed_from_step"] == [12]
    assert_same_training(run, expected)
    assert_same_files(run, expected)
    assert_each_held_half(run, expected)


def test_its_memory_is_a_share_and_what_is_put_together(tmp_path):
    make_made_up(tmp_path)
    scorer = Scorer(load_model(tmp_path).train(), "float32")
    weights = 4 * sum(parameter.numel() for parameter in scorer.model.parameters())
    layer = 4 * sum(parameter.numel() for parameter in layers(scorer.causal)[0].parameters())
    outside = weights - 2 * layer  # two layers; the head is the embedding
    assert memory.plan(scorer, 100, 1 << 40, processes=4).fixed == weights + 5 * layer + 3 * outside + memory.PROCESS
    assert shared_out_bytes(10, 4, 0, 0) == 3


def test_it_takes_several_processes(tmp_path):
    made_up(tmp_path / "run")
    training_command(tmp_path / "run", "trained", 1, sharded=True)
    with pytest.raises(InputError, match="compute: .*set processes to 2 or more"):
        load_experiment(str(tmp_path / "run" / "made_up.yaml"))


def test_layers_must_be_known():
    with pytest.raises(InputError, match="transformers marks no layers in Linear"):
        layers(torch.nn.Linear(2, 2))
