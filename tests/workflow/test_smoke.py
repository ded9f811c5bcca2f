"""The whole workflow on the made-up model: what it leaves, what it does not do twice, what a change sets off."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mallowspo.experiments import load_experiment
from tests.workflow.conftest import Checkout

METHODS = ["dpo", "mallows_theta", "mallows_phi"]


def experiment(smoke):
    return smoke.folder / "config/experiments/smoke.yaml"


@pytest.fixture
def changed(smoke):
    """Change the experiment's file for one test."""
    original = experiment(smoke).read_text()

    def change(edit):
        values = yaml.safe_load(original)
        edit(values)
        experiment(smoke).write_text(yaml.safe_dump(values, sort_keys=False))

    yield change
    experiment(smoke).write_text(original)


def test_main_table(smoke):
    table = pd.read_csv(smoke.folder / "results/smoke/tables/main.csv")
    assert list(table.columns) == [
        "method", "seeds", "n_prompts", "reward", "reward_ci_low", "reward_ci_high",
        "second_reward", "second_reward_ci_low", "second_reward_ci_high", "kl", "win_rate",
        "win_rate_ci_low", "win_rate_ci_high", "mean_length", "review_sentiment/acc",
    ]  # fmt: skip
    assert table["method"].tolist() == ["reference", *METHODS]
    assert set(table["n_prompts"]) == {6}
    assert bool((table["reward_ci_low"] <= table["reward"]).all())
    assert table.set_index("method")["kl"]["reference"] == 0


def test_the_tables_follow_from_the_answers(smoke):
    """Mean reward of the main table, worked out again from the sampled texts."""
    table = pd.read_csv(smoke.folder / "results/smoke/tables/main.csv").set_index("method")
    for method, seed in (("reference", 0), ("dpo", 1)):
        file = smoke.folder / f"results/smoke/samples/{method}/seed={seed}/answers.jsonl"
        outputs = [json.loads(line)["output"].lower() for line in file.read_text().splitlines()]
        rewards = [sum(character in "aeiou" for character in text) / max(1, len(text)) for text in outputs]
        assert table["reward"][method] == pytest.approx(sum(rewards) / len(rewards), abs=1e-9)


def test_comparison_holds_both_baselines(smoke):
    table = pd.read_parquet(smoke.folder / "results/smoke/comparison.parquet")
    rewards = table[table["metric"] == "reward"]
    pairs = set(zip(rewards["method"], rewards["baseline"], strict=True))
    assert pairs == {
        ("mallows_theta", "dpo"), ("mallows_phi", "dpo"),
        ("dpo", "reference"), ("mallows_theta", "reference"), ("mallows_phi", "reference"),
    }  # fmt: skip


def test_a_second_run_has_nothing_to_do(smoke):
    assert smoke.planned() == {}


def test_a_methods_beta_runs_that_method_and_what_hangs_on_it(smoke, changed):
    changed(lambda values: values["methods"]["mallows_phi"].update(beta=0.2))
    assert smoke.planned() == {
        "train": 1, "generate": 2, "score": 1, "score_answers": 1, "score_other_pairs": 1, "alpaca": 1, "lm_eval": 1,
        "second_score": 2, "compare": 1, "report": 1, "track": 1,
    }  # fmt: skip
    plan = smoke.snakemake("--dry-run").stdout
    assert set(re.findall(r"method=([\w@.=]+)", plan)) == {"mallows_phi", "mallows_phi@temperature=0.5"}


def test_a_longer_answer_samples_again_but_trains_nothing(smoke, changed):
    changed(lambda values: values["generation"].update(max_new_tokens=8))
    planned = smoke.planned()
    assert planned["generate"] == 8, "four policies at two temperatures"
    assert "train" not in planned and "lm_eval" not in planned and "reference" not in planned


def test_another_time_limit_runs_nothing(smoke, changed):
    changed(lambda values: values.update(compute={"minutes": 7, "threads": 2}))
    assert smoke.planned() == {}


def test_another_number_of_shards_runs_nothing(smoke, changed):
    changed(lambda values: values.update(reference={"shards": 3}, compute={"shards": 3}))
    assert smoke.planned() == {}


def test_answers_that_jobs_share_are_the_same(smoke, tmp_path):
    copy = Checkout(tmp_path / "copy", smoke)
    values = yaml.safe_load(experiment(copy).read_text()) | {"compute": {"shards": 2}}
    experiment(copy).write_text(yaml.safe_dump(values, sort_keys=False))
    answers = Path("results/smoke/samples/reference/seed=0/answers.jsonl")
    shutil.rmtree(copy.folder / answers.parent)
    plan = copy.snakemake("--dry-run", str(answers)).stdout
    jobs = set(re.findall(r"^(generate\w*) +(\d)$", plan, re.MULTILINE))
    assert jobs == {("generate", "1"), ("generate_shard", "2")}
    done = copy.snakemake(str(answers))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (copy.folder / answers).read_bytes() == (smoke.folder / answers).read_bytes()
    assert "generate_shard" not in copy.planned(), "what is there keeps the shares that it was made of"


def test_scores_that_jobs_share_are_the_same(smoke, tmp_path):
    copy = Checkout(tmp_path / "copy", smoke)
    values = yaml.safe_load(experiment(copy).read_text()) | {"compute": {"shards": 2}}
    experiment(copy).write_text(yaml.safe_dump(values, sort_keys=False))
    policy = "scores/dpo/seed=1"
    wanted = [f"results/smoke/{policy}/score.parquet", f"results/smoke/other_pairs/endings/{policy}/pairs.parquet"]
    for file in wanted:
        shutil.rmtree((copy.folder / file).parent)
    plan = copy.snakemake("--dry-run", *wanted).stdout
    jobs = dict(re.findall(r"^(score\w*) +(\d)$", plan, re.MULTILINE))
    assert jobs == {"score": "1", "score_shard": "2", "score_other_pairs": "1", "score_other_pairs_shard": "2"}
    done = copy.snakemake(*wanted)
    assert done.returncode == 0, done.stderr[-3000:]
    for file in [*wanted, f"results/smoke/{policy}/pairs.parquet"]:
        pd.testing.assert_frame_equal(pd.read_parquet(copy.folder / file), pd.read_parquet(smoke.folder / file))


def test_one_more_seed_adds_its_runs_only(smoke, changed):
    changed(lambda values: values.update(seeds=[1, 2]))
    planned = smoke.planned()
    assert (planned["train"], planned["generate"], planned["score"], planned["score_other_pairs"]) == (3, 6, 3, 3)
    assert "other_pairs" not in planned
    assert "reference" not in planned and "model" not in planned


def test_one_more_temperature_or_set_of_pairs_adds_its_own_jobs_only(smoke, changed):
    after = {"compare": 1, "report": 1, "track": 1}
    changed(lambda values: values["evaluation"].update(temperatures=[0.5, 0.25]))
    assert smoke.planned() == {"generate": 4, "score_answers": 4, "second_score": 4, **after}
    more = {"again": {"source": "path:config/pairs/plain_endings.jsonl", "seed": 1, "max_pairs": 4}}
    changed(lambda values: values["evaluation"]["other_pairs"].update(more))
    assert smoke.planned() == {"other_pairs": 1, "score_other_pairs": 3, **after}


def test_labels_of_people_measure_the_judge_and_judge_nothing_again(smoke, changed):
    rows = [{"input": "Say a vowel", "output_1": "aeiou", "output_2": "xyz", "label": 1}]
    (smoke.folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed(lambda values: values["evaluation"].update(judge_labels="labels.jsonl"))
    assert smoke.planned() == {"judge": 1, "report": 1, "track": 1}


def test_policies_kept_along_the_training_are_trained_again_and_add_their_answers(smoke, changed):
    changed(lambda values: values["training"].update(keep=[0.5]))
    assert smoke.planned() == {
        "train": 3, "generate": 9, "score": 3, "score_answers": 6, "score_other_pairs": 3, "alpaca": 3, "lm_eval": 3,
        "second_score": 9, "compare": 1, "report": 1, "track": 1,
    }  # fmt: skip
    plan = smoke.snakemake("--dry-run").stdout
    named = set(re.findall(r"method=([\w@.=]+)", plan))
    assert named == {f"{method}{end}" for method in METHODS for end in ("", "@temperature=0.5", "@training=0.5")}


def test_other_pairs_and_temperatures_reach_the_tables(smoke):
    tables = smoke.folder / "results/smoke/tables"
    pairs = pd.read_csv(tables / "held_out_pairs.csv").query("by == 'all'").set_index(["pair_set", "method"])
    assert set(pairs.loc["endings"].index) == set(METHODS) and set(pairs.loc["endings", "pairs"]) == {12}
    compared = pd.read_parquet(smoke.folder / "results/smoke/comparison.parquet")
    assert {"accuracy on endings", "win_rate against dpo"} <= set(compared["metric"])
    by_temperature = pd.read_csv(tables / "temperatures.csv").set_index(["method", "temperature"])
    assert set(by_temperature.index) == {(m, t) for m in ("reference", *METHODS) for t in (1.0, 0.5)}
    main = pd.read_csv(tables / "main.csv").set_index("method")["reward"]
    for method in METHODS:
        assert by_temperature.loc[(method, 1.0), "reward"] == pytest.approx(main[method])


def test_an_experiment_begins_from_what_another_one_trained(smoke):
    values = {**yaml.safe_load(experiment(smoke).read_text()), "seeds": [1, 2]}
    source = "policy:smoke/mallows_theta/seed=1"
    further = experiment(smoke).with_name("further.yaml")
    further.write_text(yaml.safe_dump({**values, "model": {"source": source}}, sort_keys=False))
    try:
        planned = smoke.planned("further")
        assert planned["model"] == 1
        assert planned["train"] == 2 * len(METHODS)  # its own; what it begins from is there
        key = load_experiment(str(further)).model.key
        done = smoke.snakemake(f"results/models/{key}", experiments="further")
        assert done.returncode == 0, done.stderr[-2000:]
    finally:
        further.unlink()
    trained = smoke.folder / "results/smoke/runs/mallows_theta/seed=1/model/model.safetensors"
    begins = smoke.folder / f"results/models/{key}/model.safetensors"
    assert begins.read_bytes() == trained.read_bytes()


def test_an_experiment_has_what_it_begins_from_trained_first(smoke):
    """And nothing of that experiment beyond its training."""
    values = yaml.safe_load(experiment(smoke).read_text())
    tuned, further = (experiment(smoke).with_name(f"{name}.yaml") for name in ("tuned", "further"))
    tuned.write_text(
        yaml.safe_dump({**values, "methods": {"sft": {"beta": 0.1}}}, sort_keys=False).replace("dpo", "sft")
    )
    further.write_text(yaml.safe_dump({**values, "model": {"source": "policy:tuned/sft/seed=1"}}, sort_keys=False))
    try:
        planned = smoke.planned("further")
    finally:
        tuned.unlink()
        further.unlink()
    assert (planned["model"], planned["train"], planned["compare"]) == (1, 1 + len(METHODS), 1)


def test_two_experiments_share_a_model_and_nothing_else(smoke):
    other = smoke.folder / "config/experiments/other.yaml"
    other.write_text(experiment(smoke).read_text())
    try:
        planned = smoke.planned("smoke,other")
    finally:
        other.unlink()
    assert "model" not in planned
    assert planned["train"] == 3


def test_tracking_store_holds_one_parent_and_a_child_for_each_run(smoke):
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{smoke.folder}/results/mlflow.db")
    record = json.loads((smoke.folder / "results/smoke/tracked.json").read_text())
    experiments = [item.experiment_id for item in client.search_experiments() if "smoke" in item.name]
    assert len(experiments) == 1
    runs = client.search_runs(experiments)
    assert len(runs) == 1 + len(METHODS)
    child = client.get_run(record["children"]["dpo/1"])
    metrics = smoke.folder / "results/smoke/runs/dpo/seed=1/metrics.jsonl"
    rows = [json.loads(line) for line in metrics.open()]
    history = client.get_metric_history(child.info.run_id, "train/loss")
    assert {point.step: point.value for point in history} == {row["step"]: row["loss"] for row in rows}
    reward = pd.read_csv(smoke.folder / "results/smoke/tables/main.csv").set_index("method")["reward"]["dpo"]
    assert child.data.metrics["eval/reward"] == pytest.approx(reward)


def test_the_page_needs_nothing_from_elsewhere(smoke):
    page = (smoke.folder / "results/smoke/report.html").read_text()
    assert page.count("<svg") >= 5
    assert not re.findall(r'(?:src|href)="https?://[^"]+\.(?:js|css|png|svg|woff2?)"', page)


JOBS = {
    *("sample-train", "sample-test", "pairs", "reference", "dispersion", "train-dpo-1", "generate-reference-0"),
    *("other_pairs-endings", "score_pairs-dpo-1-endings", "generate-dpo@temperature=0.5-1"),
    *("score-dpo-1", "alpaca-dpo-1", "lm_eval-reference-0", "compare", "report", "track"),
}


def test_every_job_left_its_benchmark_and_log(smoke):
    for kind, suffix in (("benchmarks", "tsv"), ("logs", "log")):
        names = {file.stem for file in (smoke.folder / "results/smoke" / kind).glob(f"*.{suffix}")}
        assert names >= JOBS


def test_the_slurm_profile_plans_the_same(smoke):
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="extra `slurm` is not installed")
    done = smoke.snakemake("--dry-run", "--profile", "slurm")
    assert done.returncode == 0, done.stderr
    assert "Nothing to be done" in done.stdout + done.stderr


def test_a_second_snakemake_is_kept_out(smoke):
    command = ["snakemake", "--cores", "all", "--config", "experiments=smoke", "--forcerun", "compare"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    first = subprocess.Popen(
        command, cwd=smoke.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    locks = smoke.folder / ".snakemake/locks"
    deadline = time.monotonic() + 60
    while not list(locks.glob("*.lock")) and time.monotonic() < deadline:
        time.sleep(0.01)
    # --rerun-incomplete: else it may stop at the files of the first one's running job, before it meets the lock.
    second = smoke.snakemake("--forcerun", "compare", "--rerun-incomplete")
    assert first.wait() == 0
    assert second.returncode != 0
    assert "Directory cannot be locked" in second.stderr + second.stdout
    assert smoke.planned() == {}


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda text: text.replace("learning_rate:", "learnin_rate:"), "did you mean 'learning_rate'?"),
        (lambda text: text.replace("mallows_phi:", "mallows_psi:"), "unknown method 'mallows_psi'"),
        (lambda text: text + "\n  : [", "not YAML"),
    ],
)
def test_bad_settings_stop_the_workflow_before_any_job(tmp_path, edit, says):
    checkout = Checkout(tmp_path)
    file = experiment(checkout)
    file.write_text(edit(file.read_text()))
    done = checkout.snakemake()
    assert done.returncode != 0
    assert says in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("mallowspo:")]
    assert len(lines) == 1 and "smoke.yaml" in lines[0]
    assert not (tmp_path / "results").exists()


def test_an_unknown_experiment_stops_the_workflow(tmp_path):
    done = Checkout(tmp_path).snakemake(experiments="smok")
    assert done.returncode != 0
    assert "no such experiment 'smok'; did you mean 'smoke'?" in done.stderr
