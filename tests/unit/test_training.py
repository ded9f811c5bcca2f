"""Training on a made-up model: step 0, resuming to the bit, equal batchings, and what must stop it."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FalconConfig, LlamaConfig

from mallowspo import objectives, training
from mallowspo.errors import InputError
from mallowspo.examples import load_examples
from mallowspo.files import read_json, read_jsonl, read_parquet, sha256_file, write_parquet
from mallowspo.layout import Layout
from mallowspo.methods import METHODS
from mallowspo.metrics import TIMING, MetricsFile
from mallowspo.models import load_model, load_tokenizer
from mallowspo.pairs.prepared import open_tokens
from mallowspo.reference import pair_batch
from mallowspo.scoring import Scorer
from mallowspo.tracking import prepare_store
from mallowspo.training_job import initial_policy
from tests.made_up_run import experiment_file, prepare


def train(prepared, label="dpo", seed=1, live_store=None, memory_mb=2000):
    experiment, layout, model_folder = prepared
    method = experiment.methods[label]
    view = experiment.stage_view("train")
    training.run(view, method, label, seed, layout, model_folder, "cpu", memory_mb, live_store)
    return layout.run(label, seed)


def without_timing(folder):
    return [{key: row[key] for key in row if key not in TIMING} for row in read_jsonl(folder / "metrics.jsonl")]


def test_a_run_leaves_its_files_and_no_others(tmp_path):
    prepared = prepare(tmp_path, pairs=10)
    folder = train(prepared, "mallows_theta")
    assert sorted(path.name for path in folder.iterdir()) == [
        "environment.json", "metrics.jsonl", "model", "settings.yaml", "summary.json",
    ]  # fmt: skip
    summary, rows = read_json(folder / "summary.json"), read_jsonl(folder / "metrics.jsonl")
    assert (summary["steps"], summary["pairs"], summary["resumed_from_step"]) == (3, 10, [])
    assert [row["pairs"] for row in rows] == [4, 4, 2]
    # float32: the policy is the reference exactly, though batched otherwise.
    assert summary["step0_max_abs_margin"] == 0
    assert summary["step0_loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    weight = read_parquet(prepared[1].dispersion).query("split == 'train'")["weight"]
    assert sum(row["effective_beta"] * row["pairs"] for row in rows) / 10 == pytest.approx(0.1 * weight.mean())
    assert min(row["effective_beta_min"] for row in rows) == pytest.approx(0.1 * weight.min())
    assert yaml.safe_load((folder / "settings.yaml").read_text())["method"]["method"] == "mallows_theta"
    before, after = load_model(prepared[2]).state_dict(), load_model(folder / "model").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_logged_log_probabilities_are_the_policys(tmp_path):
    prepared = prepare(tmp_path, pairs=4, pairs_per_step=4)
    row = read_jsonl(train(prepared) / "metrics.jsonl")[0]
    table = read_parquet(prepared[1].reference("train"))
    assert row["logp_chosen"] == pytest.approx(table["chosen_logp"].mean(), abs=1e-3)
    per_token = (table["rejected_logp"] / table["rejected_tokens"]).mean()
    assert row["logp_rejected_per_token"] == pytest.approx(per_token, abs=1e-4)


def test_the_same_settings_and_seed_give_the_same_bits(tmp_path):
    weights = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        folder = train(prepare(tmp_path / name))
        weights.append(sha256_file(folder / "model" / "model.safetensors"))
    assert weights[0] == weights[1]


def test_every_method_sees_the_same_pairs_at_each_step(tmp_path):
    prepared = prepare(tmp_path)
    tokens = [[row["tokens"] for row in read_jsonl(train(prepared, label) / "metrics.jsonl")] for label in (
        "dpo", "mallows_theta", "mallows_phi")]  # fmt: skip
    assert tokens[0] == tokens[1] == tokens[2]
    assert [row["tokens"] for row in read_jsonl(train(prepared, "dpo", 2) / "metrics.jsonl")] != tokens[0]


@pytest.mark.parametrize("method", ["dpo", "beta_dpo", "alpha_dpo", "lb_dpo"])
def test_a_step_is_the_same_in_one_part_and_in_several(tmp_path, method):
    """10 pairs in steps of 4: all at once, about two at a time, one at a time; the last, shorter step included.

    The losses of beta-DPO and AlphaDPO compare the pairs of a step, LB-DPO learns a part of its loss.
    """
    trajectories = []
    for budget in (10_000, 160, 1):
        (tmp_path / str(budget)).mkdir()
        methods = {"trained": {"method": method, "beta": 0.5}}
        folder = train(
            prepare(tmp_path / str(budget), pairs=10, methods=methods, tokens_per_batch=budget, epochs=2), "trained"
        )
        trajectories.append([(row["loss"], row["gradient_norm"]) for row in without_timing(folder)])
    for other in trajectories[1:]:
        for expected, found in zip(trajectories[0], other, strict=True):
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_pairs_above_the_budget_run_alone_and_are_told(tmp_path, caplog):
    folder = train(prepare(tmp_path, pairs=10, tokens_per_batch=60))
    lengths = open_tokens(Layout(str(tmp_path / "results"), "made_up").tokens("train")).lengths.sum(axis=1)
    over = int((lengths > 60).sum())
    assert 0 < over < 10
    assert read_json(folder / "summary.json")["pairs_over_budget"] == over
    assert f"{over} of 10 pairs are longer than training.tokens_per_batch (60) and run alone" in caplog.text


def test_recomputing_for_want_of_memory_changes_no_bit(tmp_path):
    weights = []
    for memory_mb in (2000, 700):
        (tmp_path / str(memory_mb)).mkdir()
        folder = train(prepare(tmp_path / str(memory_mb)), memory_mb=memory_mb)
        weights.append(sha256_file(folder / "model" / "model.safetensors"))
        fitted = read_json(folder / "summary.json")["memory"]
        assert fitted["checkpointing"] is (memory_mb == 700)
        assert (fitted["softmax_kept"] == 0) is (memory_mb == 700)
    assert weights[0] == weights[1]


def test_weights_that_are_not_numbers_are_caught_before_the_first_step(tmp_path):
    prepared = prepare(tmp_path)
    path = prepared[2] / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(InputError, match="1 of its tensors hold values that are not finite .*mlp.up_proj"):
        train(prepared)
    assert not (prepared[1].run("dpo", 1) / "model").exists()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(tmp_path, method):
    """Five steps from the reference: the margin starts at 0, every number is finite, and the weights move."""
    prepared = prepare(tmp_path, methods={"trained": {"method": method, "beta": 0.5}}, max_steps=5, epochs=2)
    folder = train(prepared, "trained")
    rows = without_timing(folder)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert read_json(folder / "summary.json")["step0_max_abs_margin"] < 1e-4
    assert abs(rows[-1]["margin"]) > 1e-3
    assert rows[0]["pairs_dropped"] == (1 if method == "beta_dpo" else 0)


@pytest.mark.parametrize("control", ["none", "constant", "shuffled", "inverted", "length_matched", "outside"])
def test_controls_reach_the_loss(tmp_path, control):
    prepared = prepare(tmp_path, methods={"trained": {"method": "mallows_theta", "beta": 0.5, "control": control}})
    examples = load_examples(prepared[0].stage_view("train"), prepared[0].methods["trained"], prepared[1])
    table = read_parquet(prepared[1].dispersion).set_index("pair_id").loc[examples.pairs.pair_ids]
    column = {"none": "weight", "outside": "weight"}.get(control, f"weight_{control}")
    expected = [1.0] * len(examples) if control == "constant" else table[column].tolist()
    assert examples.tables["weight"].tolist() == pytest.approx(expected, rel=1e-7)
    first = without_timing(train(prepared, "trained"))[0]
    # The weight acts on the margin inside the link; outside, it scales log 2 at the start.
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-3) or control == "outside"


def test_two_trainings_of_one_reference_share_no_state(tmp_path):
    """epsilon-DPO holds the reference beside the policy; training must not move it."""
    prepared = prepare(tmp_path, methods={"trained": {"method": "epsilon_dpo", "beta": 0.5}}, max_steps=3)
    before = load_file(prepared[2] / "model.safetensors")
    train(prepared, "trained")
    assert all(torch.equal(value, before[name]) for name, value in load_file(prepared[2] / "model.safetensors").items())


@pytest.mark.parametrize(
    ("method", "lora"),
    [
        ("mallows_phi", None),
        ("beta_dpo", {"rank": 4, "alpha": 8}),
        ("mallows_lb", None),
    ],
)
def test_killed_and_resumed_equals_uninterrupted_to_the_bit(tmp_path, method, lora):
    settings = {"epochs": 12, "checkpoint_every": 5, "warmup_ratio": 0.2, "lora": lora}
    settings["methods"] = {"dpo": {"beta": 0.1}, "trained": {"method": method, "beta": 0.1}}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    uninterrupted = train(prepare(whole, **settings), "trained")
    _, layout, _ = prepare(cut, **settings)
    run = layout.run("trained", 1)
    command = [sys.executable, "-m", "mallowspo.cli", "train", str(experiment_file(cut, **settings)), "--results",
               str(cut / "results"), "--method", "trained", "--seed", "1"]  # fmt: skip
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(run.glob("work/checkpoint-*/whole")) and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (run / "metrics.jsonl").exists(), "killed too late to test anything"
    assert not (run / "model").exists()
    # What a kill may leave: a checkpoint without its mark, and half a line.
    (run / "work" / "checkpoint-999").mkdir()
    with (run / "work" / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 9')
    subprocess.run(command, check=True, capture_output=True)
    summary = read_json(run / "summary.json")
    assert summary["resumed_from_step"] and summary["resumed_from_step"][0] % 5 == 0
    assert without_timing(run) == without_timing(uninterrupted)
    assert [row["step"] for row in without_timing(run)] == list(range(1, 37))
    left, right = (load_model(folder / "model").state_dict() for folder in (run, uninterrupted))
    assert all(torch.equal(left[name], right[name]) for name in right)
    assert not (run / "work").exists()


def test_a_second_job_at_the_same_training_is_refused(tmp_path, monkeypatch):
    prepared = prepare(tmp_path, pairs=4)
    lock = prepared[1].training_lock("dpo", 1)
    lock.parent.mkdir(parents=True)
    monkeypatch.setattr(training, "PATIENCE", 0.1)
    with FileLock(lock), pytest.raises(InputError, match="seed=1: another job is at this training"):
        train(prepared)
    assert not prepared[1].run("dpo", 1).exists()
    assert (train(prepared) / "model").exists()  # and it lets go of it when it ends
    with FileLock(lock, timeout=0):
        pass


def test_a_run_with_other_settings_does_not_resume(tmp_path):
    experiment, layout, model_folder = prepare(tmp_path)
    work = layout.run("dpo", 1) / "work"
    (work / "checkpoint-2").mkdir(parents=True)
    (work / "checkpoint-2" / "whole").write_text("")
    (work / "identity.json").write_text('{"digest": "of another run"}')
    folder = train((experiment, layout, model_folder))
    assert read_json(folder / "summary.json")["resumed_from_step"] == []


def test_metrics_after_the_checkpoint_are_dropped_once(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.append({"step": step})
    file.keep_up_to(2)
    file.append({"step": 3})
    assert [row["step"] for row in file.rows()] == [1, 2, 3]
    assert file.resumed_from == [2]


def test_a_missing_reference_row_is_an_error(tmp_path):
    prepared = prepare(tmp_path)
    path = prepared[1].reference("train")
    table = read_parquet(path)
    write_parquet(path, table.iloc[1:])
    with pytest.raises(InputError, match=f"no row for 1 of 12 pairs .first: {table['pair_id'][0]}."):
        train(prepared)


def test_a_reference_value_that_is_not_finite_is_an_error(tmp_path):
    prepared = prepare(tmp_path)
    path = prepared[1].reference("train")
    table = read_parquet(path)
    table.loc[3, "chosen_logp"] = math.nan
    write_parquet(path, table)
    with pytest.raises(InputError, match=f"not finite .first: {table['pair_id'][3]}"):
        train(prepared)


def test_another_models_reference_table_is_caught_before_the_first_step(tmp_path):
    prepared = prepare(tmp_path)
    path = prepared[1].reference("train")
    table = read_parquet(path)
    write_parquet(path, table.assign(chosen_logp=table["chosen_logp"] + 3))
    with pytest.raises(InputError, match="before the first step the margin is 3"):
        train(prepared)


@pytest.fixture
def optimizer_steps(monkeypatch):
    """Counts the optimizer's moves."""
    moved = []
    step = torch.optim.AdamW.step

    def counted(self, *args, **kwargs):
        moved.append(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    return moved


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_moves(tmp_path, monkeypatch, optimizer_steps):
    prepared = prepare(tmp_path)
    ids = set(read_parquet(prepared[1].pairs("train"))["pair_id"])
    link = objectives.LINKS["logistic"]

    def broken(s, weight):
        loss = link(s, weight)
        return torch.where(s.abs() > 0, torch.nan, loss) if optimizer_steps else loss

    monkeypatch.setitem(objectives.LINKS, "logistic", broken)
    with pytest.raises(InputError, match=r"step 2: the loss is not finite for pairs") as caught:
        train(prepared)
    assert len(optimizer_steps) == 1
    named = str(caught.value).split("pairs ")[1].split(";")[0].split(", ")
    assert named and set(named) <= ids
    assert not (prepared[1].run("dpo", 1) / "model").exists()


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer_moves(tmp_path, optimizer_steps):
    prepared = prepare(tmp_path, learning_rate=1e30, warmup_ratio=0.0, max_gradient_norm=1e9, schedule="constant")
    with pytest.raises(InputError, match=r"step 2: the (gradient|loss) is not finite"):
        train(prepared)
    assert len(optimizer_steps) == 1


def test_lora_trains_an_adapter_and_saves_a_merged_model(tmp_path):
    prepared = prepare(tmp_path, lora={"rank": 4, "alpha": 8})
    folder = train(prepared)
    summary = read_json(folder / "summary.json")
    assert summary["step0_max_abs_margin"] == pytest.approx(0, abs=1e-4)
    assert 0 < summary["trainable_parameters"] < summary["parameters"] / 3
    before, after = load_model(prepared[2]).state_dict(), load_model(folder / "model").state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("proj" in name for name in changed)
    assert load_tokenizer(folder / "model").eos_token == "<eos>"


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, attention_dropout=0.5),
        FalconConfig(hidden_size=16, num_attention_heads=2, attention_dropout=0.5, hidden_dropout=0.5),
    ],
    ids=["a number", "a layer"],
)
def test_a_policy_has_no_dropout(tmp_path, config):
    config.update({"vocab_size": 263, "num_hidden_layers": 1})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    policy, tokens = initial_policy(tmp_path, None, 1), torch.arange(20)[None]
    assert torch.equal(policy.train()(tokens).logits, policy.eval()(tokens).logits)


def test_without_its_adapters_a_policy_is_the_reference_table(tmp_path):
    experiment, layout, model_folder = prepare(tmp_path, lora={"rank": 4, "alpha": 8})
    policy = initial_policy(model_folder, experiment.training.lora, 1)
    with torch.no_grad():
        for name, values in policy.named_parameters():
            if "lora_B" in name:  # 0 at the start
                values.fill_(0.1)
    scorer, pairs = Scorer(policy, "float32"), open_tokens(layout.tokens("train"))
    with torch.no_grad():
        moved = scorer(pair_batch(list(pairs))).logp
        with policy.disable_adapter():
            logp = scorer(pair_batch(list(pairs))).logp
    table = read_parquet(layout.reference("train")).set_index("pair_id").loc[pairs.pair_ids]
    expected = torch.tensor([*table["chosen_logp"], *table["rejected_logp"]], dtype=torch.float32)
    assert torch.equal(logp, expected)
    assert (moved - expected).abs().mean() > 1


def test_bfloat16_products_start_near_the_reference(tmp_path):
    experiment, layout, model_folder = prepare(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        experiment.model.precision = "bfloat16"
    rounded = experiment.model_copy(update={"model": experiment.model.model_copy(update={"precision": "bfloat16"})})
    from mallowspo import reference_pass

    reference_pass.run(rounded.stage_view("reference"), layout, model_folder, "cpu")
    summary = read_json(train((rounded, layout, model_folder)) / "summary.json")
    assert summary["precision"] == "bfloat16"
    assert summary["step0_max_abs_margin"] < 0.5


def test_live_curves_reach_the_store(tmp_path):
    from mlflow import MlflowClient

    store = f"sqlite:///{tmp_path}/mlflow.db"
    prepare_store(store)
    folder = train(prepare(tmp_path), live_store=store)
    client = MlflowClient(tracking_uri=store)
    runs = client.search_runs([item.experiment_id for item in client.search_experiments()])
    assert len(runs) == 1
    history = client.get_metric_history(runs[0].info.run_id, "train/loss")
    assert {point.step: point.value for point in history} == {
        row["step"]: row["loss"] for row in read_jsonl(folder / "metrics.jsonl")
    }


def test_an_unreachable_store_stops_no_training_and_loses_no_metric(tmp_path):
    prepared = prepare(tmp_path)
    started = time.monotonic()
    folder = train(prepared, live_store="http://127.0.0.1:9")
    assert time.monotonic() - started < 60
    assert [row["step"] for row in read_jsonl(folder / "metrics.jsonl")] == [1, 2, 3]
