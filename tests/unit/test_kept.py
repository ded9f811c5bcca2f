"""Policies along a training: what a shorter one would have ended with, kept without moving it, whatever kills it."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mallowspo import training
from mallowspo.errors import InputError
from mallowspo.experiments import load_experiment
from mallowspo.files import read_json, read_parquet
from mallowspo.kept import steps_kept, whole_folder
from mallowspo.model_files import ADAPTERS
from mallowspo.models import fetch, load_model, load_tokenizer
from tests.made_up_run import experiment_file, prepare, training_command

LORA = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
#: The learning rate of a step does not depend on how many there are.
STEADY = {"schedule": "constant", "warmup_ratio": 0.0}


def made_up(folder, **settings):
    folder.mkdir(exist_ok=True)
    return prepare(folder, methods={"trained": {"method": "dpo", "beta": 0.5}}, **settings)


def train(prepared):
    experiment, layout, model_folder = prepared
    view = experiment.stage_view("train")
    training.run(view, experiment.methods["trained"], "trained", 1, layout, model_folder, "cpu", 2000)
    return layout.run("trained", 1)


def same(model, other):
    left, right = model.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in right)


def step_of(mark):
    return int(mark.parent.name.split("-")[1])


@pytest.mark.parametrize("lora", [None, LORA])
def test_half_of_a_training_is_a_training_of_half_the_steps(tmp_path, lora):
    whole = train(made_up(tmp_path / "whole", epochs=2, max_steps=4, keep=[0.25, 0.5], lora=lora, **STEADY))
    half = train(made_up(tmp_path / "half", epochs=2, max_steps=2, lora=lora, **STEADY))
    assert {folder.name for folder in (whole / "kept").iterdir()} == {"0.25", "0.5"}
    kept = whole / "kept" / "0.5"
    assert same(load_model(kept), load_model(half / "model"))
    assert not same(load_model(kept), load_model(whole / "kept" / "0.25"))
    assert not same(load_model(kept), load_model(whole / "model"))
    assert load_tokenizer(kept).eos_token == "<eos>"
    assert not list(kept.glob("*.bin")) and not list(kept.glob("*optimizer*"))
    assert (kept / ADAPTERS).exists() == (lora is not None)
    assert not (half / "kept").exists(), "nothing was asked for"


def test_adapters_alone_are_kept_and_merged_for_whoever_reads_them(tmp_path, monkeypatch):
    prepared = made_up(tmp_path / "run", keep=[0.5], lora=LORA)
    run, model_folder = train(prepared), prepared[2]
    kept = run / "kept" / "0.5"
    size = sum(file.stat().st_size for file in kept.glob("*.safetensors"))
    assert 0 < size < 0.2 * (model_folder / "model.safetensors").stat().st_size
    expected = load_model(kept)
    with whole_folder(kept) as folder:
        assert same(load_model(folder), expected) and load_tokenizer(folder).eos_token == "<eos>"
    with whole_folder(model_folder) as folder:
        assert folder == model_folder
    # The last policy lies there in the same way, and another experiment may begin from it.
    assert not (run / "model" / "model.safetensors").exists()
    fetch(f"path:{run / 'model'}", None, tmp_path / "next")
    assert same(load_model(tmp_path / "next"), load_model(run / "model"))
    assert load_model(kept, weights=torch.bfloat16).dtype == torch.bfloat16
    # Results that were moved, read from elsewhere.
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    assert same(load_model(tmp_path / "moved" / kept.relative_to(tmp_path / "run")), expected)


@pytest.mark.parametrize("lora", [None, LORA])
def test_keeping_changes_no_bit_of_the_training(tmp_path, lora):
    settings = {"epochs": 2, "max_steps": 5, "lora": lora}
    plain = train(made_up(tmp_path / "plain", **settings))
    keeping = train(made_up(tmp_path / "keeping", keep=[0.2, 0.4, 0.8], **settings))
    assert len(list((keeping / "kept").iterdir())) == 3
    assert same(load_model(plain / "model"), load_model(keeping / "model"))


@pytest.mark.parametrize("lora", [None, LORA])
def test_killed_and_resumed_keeps_what_an_uninterrupted_training_keeps(tmp_path, lora):
    settings = {"epochs": 20, "checkpoint_every": 7, "keep": [0.1, 0.25, 0.9], "lora": lora}
    expected = train(made_up(tmp_path / "whole", **settings))
    _, layout, _ = made_up(tmp_path / "cut", **settings)
    run = layout.run("trained", 1)
    command = training_command(tmp_path / "cut", "trained", 1)
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(step_of(mark) >= 21 for mark in run.glob("work/checkpoint-*/whole")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (run / "model").exists(), "killed too late to test anything"
    assert (run / "kept" / "0.25").exists(), "step 15 of 60 was before the checkpoint of step 21"
    # What a kill while a policy is written may leave.
    (run / "kept" / ".0.9.made_up.partial").mkdir()
    subprocess.run(command, check=True, capture_output=True)
    assert read_json(run / "summary.json")["resumed_from_step"][0] >= 21
    assert {folder.name for folder in (run / "kept").iterdir()} == {"0.1", "0.25", "0.9"}
    for share in ("0.1", "0.25", "0.9"):
        assert same(load_model(run / "kept" / share), load_model(expected / "kept" / share)), share


def test_other_settings_leave_nothing_of_an_earlier_training(tmp_path):
    run = train(made_up(tmp_path / "run", keep=[0.4, 0.7]))
    assert {folder.name for folder in (run / "kept").iterdir()} == {"0.4", "0.7"}
    assert train(made_up(tmp_path / "run", keep=[0.7])) == run
    assert {folder.name for folder in (run / "kept").iterdir()} == {"0.7"}


def test_of_two_processes_the_first_keeps(tmp_path):
    settings = {"epochs": 4, "max_steps": 8, "keep": [0.5]}
    expected = train(made_up(tmp_path / "one", **settings))
    made_up(tmp_path / "two", **settings)
    subprocess.run(training_command(tmp_path / "two", "trained", 2), check=True, capture_output=True)
    kept = tmp_path / "two" / expected.relative_to(tmp_path / "one") / "kept"
    assert [folder.name for folder in kept.iterdir()] == ["0.5"]
    found, wanted = load_model(kept / "0.5").state_dict(), load_model(expected / "kept" / "0.5").state_dict()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5)


def test_the_steps_of_shares():
    assert steps_kept([0.01, 0.25, 0.5, 0.9], 10) == {1: 0.01, 2: 0.25, 5: 0.5, 9: 0.9}
    with pytest.raises(InputError, match=r"training.keep: 0.3 of 3 steps ends at step 1, that of 0.2; remove it"):
        steps_kept([0.2, 0.3], 3)
    with pytest.raises(InputError, match=r"training.keep: 0.9 of 3 steps ends at step 3, the last; remove it"):
        steps_kept([0.9], 3)


@pytest.mark.parametrize("keep", [[0.5, 0.25], [0.5, 0.5], [0], [1], [-0.5], [float("nan")]])
def test_shares_rise_between_nothing_and_the_whole(tmp_path, keep):
    with pytest.raises(InputError, match=r"training.keep.*must be shares of the steps from 0.001 to below 1"):
        load_experiment(str(experiment_file(tmp_path, keep=keep)))


def test_a_policy_along_the_training_answers_by_its_name(tmp_path):
    """And is scored by it; one that was not kept is refused with those that were."""
    prepared = made_up(tmp_path / "run", keep=[0.5], lora=LORA)
    train(prepared)
    file, results = str(tmp_path / "run" / "made_up.yaml"), str(tmp_path / "run" / "results")

    def run(stage, name):
        command = [sys.executable, "-m", "mallowspo.cli", stage, file, "--results", results]
        command += ["--method", name, "--seed", "1", "--threads", "1"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for stage in ("generate", "score"):
        done = run(stage, "trained@training=0.5")
        assert done.returncode == 0, done.stderr
    scores = prepared[1].scores("trained@training=0.5", 1)
    kl = read_parquet(scores / "score.parquet").query("metric == 'kl'")["value"]
    assert len(kl) and kl.abs().max() > 1e-6, "not the reference"
    assert not (scores / "pairs.parquet").exists(), "held-out pairs are the trained policy's alone"
    refused = run("generate", "trained@training=0.3")
    assert refused.returncode == 2 and "trained@training=0.5" in refused.stderr.splitlines()[-1]
    assert run("generate", "reference@training=0.5").returncode == 2
