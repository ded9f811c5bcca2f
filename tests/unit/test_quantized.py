"""Weights in four bits under adapters that train: one rounded policy for all stages, and no gradient lost.

`make test-quantized` brings bitsandbytes; elsewhere what needs it is skipped.
"""

import importlib.util
import shutil
import sys

import pytest
import torch
import yaml

from mallowspo import models, training
from mallowspo.errors import InputError
from mallowspo.experiments import load_experiment
from mallowspo.files import read_json
from mallowspo.metrics import MetricsFile
from mallowspo.models import load_model
from mallowspo.quantized import BLOCK
from mallowspo.scoring import Scorer
from mallowspo.training_job import initial_policy
from tests.made_up_run import experiment_file, prepare

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: make test-quantized"
)
LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Rounded model, pairs, reference table and weights."""
    folder = tmp_path_factory.mktemp("quantized")
    return prepare(folder, quantized="nf4", lora=LORA, max_steps=6, epochs=3, keep=[0.5], checkpoint_every=2)


def train(prepared, label):
    experiment, layout, model_folder = prepared
    view, method = experiment.stage_view("train"), experiment.methods[label]
    training.run(view, method, label, 1, layout, model_folder, "cpu", 2000)
    return layout.run(label, 1)


@needs_bitsandbytes
def test_the_model_holds_what_four_bits_can_hold(prepared, tmp_path):
    models.fetch("made_up:two_layers", None, tmp_path / "whole")
    whole, rounded = load_model(tmp_path / "whole"), load_model(prepared[2])
    for name, weight in rounded.named_parameters():
        before = whole.get_parameter(name)
        if "proj" not in name:
            assert torch.equal(weight, before), name
            continue
        blocks = weight.reshape(-1, BLOCK)
        assert max(len(block.unique()) for block in blocks) <= 16
        assert torch.equal(blocks.abs().amax(dim=1), before.reshape(-1, BLOCK).abs().amax(dim=1))
        assert 0.02 < ((weight - before).norm() / before.norm()).item() < 0.15
    models.fetch(f"path:{prepared[2]}", None, tmp_path / "again", four_bits="nf4")
    assert all(
        torch.equal(a, b)
        for a, b in zip(load_model(tmp_path / "again").parameters(), rounded.parameters(), strict=True)
    )


@needs_bitsandbytes
def test_scores_and_gradients_are_those_of_the_rounded_weights(prepared):
    """bitsandbytes (0.50) loses the gradient through a layer that has scored without one before, on some processors."""
    experiment, _, folder = prepared
    found = []
    for four_bits in (None, "float32"):
        policy = initial_policy(folder, experiment.training.lora, 1, four_bits=four_bits)
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
        policy.eval()
        with torch.no_grad():
            policy(torch.arange(9)[None])
        policy.train()
        loss = policy(torch.arange(3, 30)[None], labels=torch.arange(3, 30)[None]).loss
        loss.backward()
        gradients = {name: p.grad for name, p in policy.named_parameters() if p.requires_grad}
        found.append((loss.detach(), gradients))
    (loss, gradients), (held, held_gradients) = found
    assert float(held) == pytest.approx(float(loss), abs=1e-5)
    assert gradients.keys() == held_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 0
        assert torch.allclose(held_gradients[name], gradient, rtol=1e-3, atol=1e-5), name


@needs_bitsandbytes
def test_a_training_starts_at_the_reference_and_is_merged_in_float32(prepared):
    folder = train(prepared, "mallows_theta")
    summary = read_json(folder / "summary.json")
    assert summary["steps"] == 6
    assert summary["step0_max_abs_margin"] < 1e-4
    whole = sum(parameter.numel() for parameter in load_model(prepared[2]).parameters())
    assert summary["parameters"] - summary["trainable_parameters"] == whole
    assert summary["memory"]["fixed"] < 4 * whole * 0.7 + 16 * summary["trainable_parameters"] + (700 << 20)
    merged = load_model(folder / "model")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    before = load_model(prepared[2]).state_dict()
    moved = [name for name, weight in merged.state_dict().items() if not torch.equal(weight, before[name])]
    assert moved and all("proj" in name for name in moved)
    # What was kept half-way is the adapters alone, for the same rounded weights.
    assert load_model(folder / "kept" / "0.5").state_dict().keys() == merged.state_dict().keys()


@needs_bitsandbytes
def test_a_training_goes_on_from_its_checkpoint_with_the_same_bits(prepared, monkeypatch):
    append = MetricsFile.append

    def ended_at_step_5(file, row):
        if row["step"] == 5:
            raise KeyboardInterrupt
        append(file, row)

    monkeypatch.setattr(MetricsFile, "append", ended_at_step_5)
    with pytest.raises(KeyboardInterrupt):
        train(prepared, "dpo")
    monkeypatch.undo()
    resumed = train(prepared, "dpo")
    assert read_json(resumed / "summary.json")["resumed_from_step"] == [4]
    weights = (resumed / "model/adapter_model.safetensors").read_bytes()
    shutil.rmtree(resumed)
    assert (train(prepared, "dpo") / "model/adapter_model.safetensors").read_bytes() == weights


@needs_bitsandbytes
def test_a_gpu_would_hold_half_a_byte_a_weight(prepared):
    held, whole = (load_model(prepared[2], four_bits=four_bits) for four_bits in ("float32", None))
    name = "model.layers.0.mlp.up_proj"
    assert held.get_submodule(name).weight.nbytes * 8 == whole.get_submodule(name).weight.nbytes
    assert Scorer(held, "float32").vocabulary == Scorer(whole, "float32").vocabulary


def test_settings_that_do_not_go_together(tmp_path):
    with pytest.raises(InputError, match="model.quantized holds weights that do not train: set training.lora"):
        load_experiment(str(experiment_file(tmp_path, quantized="nf4")))
    file = experiment_file(tmp_path, quantized="nf4", lora=LORA)
    assert load_experiment(str(file)).model.key != load_experiment("smoke").model.key
    compute = {"processes": 2, "sharded": True}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"compute": compute}))
    with pytest.raises(InputError, match="not compute.sharded"):
        load_experiment(str(file))
    with pytest.raises(InputError, match="model.quantized: 'int8'"):
        load_experiment(str(experiment_file(tmp_path, quantized="int8", lora=LORA)))


def test_without_bitsandbytes_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="model.quantized needs bitsandbytes: pip install"):
        models.fetch("made_up:two_layers", None, tmp_path / "model", four_bits="nf4")
    assert not (tmp_path / "model").exists()
