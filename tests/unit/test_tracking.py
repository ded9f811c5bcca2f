"""Tracking against real MLflow stores."""

import json
import logging
import math
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pandas as pd
import pytest

from mallowspo import tracking
from mallowspo.errors import InputError
from mallowspo.files import read_json, read_jsonl, write_json, write_jsonl, write_text
from mallowspo.layout import Layout
from mallowspo.settings import Experiment
from mallowspo.tracking.contents import metric_name
from mallowspo.tracking.links import links, view_state
from mallowspo.tracking.store import _hide_in, connect, hide_credentials
from tests.made_up_results import TASK, write

METHODS, SEEDS, STEPS = ("dpo", "mallows_theta"), (0, 1), 12


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """A store with its schema, made by four processes at once; making it takes seconds, so the tests copy it."""
    file = tmp_path_factory.mktemp("store") / "new" / "mlflow.db"
    code = f"from mallowspo.tracking import prepare_store; prepare_store('sqlite:///{file}')"
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0, 0]
    return file


@dataclass
class Results:
    layout: Layout
    experiment: Experiment
    uri: str

    def track(self, **options):
        tracking.run(self.experiment.stage_view("track"), self.layout, self.uri, **options)
        return read_json(self.layout.tracked)

    @property
    def client(self):
        return connect(self.uri)

    def runs(self):
        experiment = self.client.get_experiment_by_name("mallowspo/made_up")
        return list(self.client.search_runs([experiment.experiment_id]))


@pytest.fixture
def results(tmp_path, empty_store):
    made = write(tmp_path / "results", METHODS, SEEDS, prompts=4, steps=STEPS)
    shutil.copy(empty_store, tmp_path / "results" / "mlflow.db")
    write_text(made.layout.report, "<p>A report</p>")
    write_text(made.layout.tables / "main.csv", "method\n")
    write_text(made.layout.figures / "curves.svg", "<svg/>")
    return Results(made.layout, made.experiment, f"sqlite:///{tmp_path}/results/mlflow.db")


def rows_in(uri):
    """Rows of the metrics table: every step of every curve of every run."""
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        return connection.execute("SELECT count(*) FROM metrics").fetchone()[0]


def curve(client, run_id, key):
    return {metric.step: metric.value for metric in client.get_metric_history(run_id, key)}


def test_store_holds_what_the_files_say(results, monkeypatch, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    tracked = results.track()
    assert list(elsewhere.iterdir()) == []
    assert len(results.runs()) == 1 + len(METHODS) * len(SEEDS)
    assert set(tracked["children"]) == {f"{method}/{seed}" for method in METHODS for seed in SEEDS}
    client = results.client
    for method in METHODS:
        for seed in SEEDS:
            run_id = tracked["children"][f"{method}/{seed}"]
            files = read_jsonl(results.layout.run(method, seed) / "metrics.jsonl")
            for column in ("loss", "margin", "effective_beta_max"):
                expected = {row["step"]: row[column] for row in files}
                assert curve(client, run_id, f"train/{column}") == expected
            run = client.get_run(run_id)
            assert run.data.tags["mlflow.parentRunId"] == tracked["parent_run_id"]
            assert run.data.params["beta"] == str(results.experiment.methods[method].beta)
            assert run.data.params["seed"] == str(seed)
            assert run.info.status == "FINISHED"


def test_evaluation_is_the_mean_over_prompts(results):
    run_id = results.track()["children"]["mallows_theta/1"]
    stored = results.client.get_run(run_id).data.metrics
    folder = results.layout.scores("mallows_theta", 1)
    scores, wins = pd.read_parquet(folder / "score.parquet"), pd.read_parquet(folder / "alpaca.parquet")
    for metric, name in (("reward", "eval/reward"), ("kl", "eval/kl"), ("tokens", "eval/length")):
        by_prompt = scores[scores["metric"] == metric].groupby("prompt_id")["value"].mean()
        assert stored[name] == pytest.approx(by_prompt.mean(), rel=1e-12)
    assert stored["eval/win_rate"] == pytest.approx(wins["value"].mean(), rel=1e-12)
    assert stored["eval/win_rate against dpo"] == pytest.approx(1 - wins["value"].mean(), rel=1e-12)
    pairs = pd.read_parquet(folder / "pairs.parquet")
    assert stored["eval/accuracy"] == pytest.approx(pairs["correct"].mean(), rel=1e-12)
    lm_eval = read_json(folder / "lm_eval.json")["results"][TASK]["acc"]["value"]
    assert stored[f"lm_eval/{TASK}/acc"] == lm_eval


def test_artifacts_and_data_set(results):
    tracked = results.track()
    client, child = results.client, tracked["children"]["dpo/0"]
    assert {a.path for a in client.list_artifacts(child)} == {
        *("settings.yaml", "summary.json", "environment.json", "judge.json"),
    }
    parent = {a.path for a in client.list_artifacts(tracked["parent_run_id"])}
    assert parent == {"settings.yaml", "report.html", "figures", "tables"}
    stored = Path(results.layout.results) / "mlartifacts" / child / "artifacts" / "settings.yaml"
    assert stored.read_text() == (results.layout.run("dpo", 0) / "settings.yaml").read_text()
    (data,) = client.get_run(child).inputs.dataset_inputs
    assert data.dataset.name == "path:pairs.jsonl"
    assert json.loads(data.dataset.profile)["num_rows"] == 8
    assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]


def test_called_again_nothing_is_doubled(results):
    first = results.track()
    rows = rows_in(results.uri)
    second = results.track()
    assert second == first
    assert rows_in(results.uri) == rows
    assert len(results.runs()) == 5
    # 16 curves of 12 steps, 14 evaluation values, and the seconds and tokens of the training
    assert first["metrics"]["dpo/0"] == {"curves": 16 * STEPS, "evaluation": 16, "not_finite": 0}
    # ... and the win rate against the baseline, of the other method's two runs
    assert rows == 4 * (16 * STEPS + 16) + 2


def test_partly_filled_store_is_completed(results):
    digest = read_json(results.layout.run("dpo", 0) / "summary.json")["digest"]
    rows = read_jsonl(results.layout.run("dpo", 0) / "metrics.jsonl")
    live = tracking.track_live(results.layout, "dpo", 0, digest, results.uri, interval=0.05)
    for row in rows[:5]:
        live.update(row)
    live.close(timeout=30)
    (begun,) = results.runs()
    assert curve(results.client, begun.info.run_id, "train/loss") == {row["step"]: row["loss"] for row in rows[:5]}
    tracked = results.track()
    assert tracked["children"]["dpo/0"] == begun.info.run_id
    history = results.client.get_metric_history(begun.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(row["step"], row["loss"]) for row in rows]


def test_resumed_live_training_doubles_no_step(results):
    rows = read_jsonl(results.layout.run("dpo", 0) / "metrics.jsonl")
    for part in (rows[:6], rows[3:9]):  # killed after step 6, resumed from the checkpoint of step 3
        live = tracking.track_live(results.layout, "dpo", 0, "d", results.uri, interval=0.05)
        for row in part:
            live.update(row)
        live.close(timeout=30)
    (run,) = results.runs()
    history = results.client.get_metric_history(run.info.run_id, "train/margin")
    assert sorted(metric.step for metric in history) == list(range(1, 10))


def test_values_that_are_not_finite_are_counted(results):
    path = results.layout.run("dpo", 0) / "metrics.jsonl"
    text = path.read_text().splitlines()
    row = json.loads(text[0]) | {"loss": math.nan, "margin": math.inf, "epoch": None}
    path.write_text("\n".join([json.dumps(row), *text[1:]]) + "\n")
    tracked = results.track()
    run = results.client.get_run(tracked["children"]["dpo/0"])
    assert run.data.tags["mallowspo.not_finite"] == "3"
    assert tracked["metrics"]["dpo/0"]["not_finite"] == 3
    assert min(curve(results.client, run.info.run_id, "train/loss")) == 2


def test_superseded_run_is_kept_and_tagged(results):
    before = results.track()
    summary = results.layout.run("dpo", 0) / "summary.json"
    old = read_json(summary)
    write_json(summary, old | {"digest": "another"})
    after = results.track()
    assert after["children"]["dpo/0"] != before["children"]["dpo/0"]
    tags = {run.info.run_id: run.data.tags.get("mallowspo.superseded") for run in results.runs()}
    assert tags.pop(before["children"]["dpo/0"]) == "true"
    assert set(tags.values()) == {"false"}
    write_json(summary, old)
    assert results.track()["children"] == before["children"]
    tags = {run.info.run_id: run.data.tags.get("mallowspo.superseded") for run in results.runs()}
    assert tags[before["children"]["dpo/0"]] == "false"
    assert tags[after["children"]["dpo/0"]] == "true"


def test_two_users_with_one_store_leave_each_others_runs_alone(results, tmp_path):
    mine = results.track()
    other = Results(Layout(str(tmp_path / "other"), "made_up"), results.experiment, results.uri)
    shutil.copytree(results.layout.root, other.layout.root)
    summary = other.layout.run("dpo", 0) / "summary.json"
    write_json(summary, read_json(summary) | {"digest": "another"})
    theirs = other.track()
    assert theirs["children"]["dpo/0"] != mine["children"]["dpo/0"]
    # What is equal is one run for both.
    assert theirs["children"]["dpo/1"] == mine["children"]["dpo/1"]
    assert results.track() == mine
    assert {run.data.tags["mallowspo.superseded"] for run in results.runs()} == {"false"}


def test_other_values_under_the_same_digest_get_a_run_of_their_own(results):
    before = results.track()["children"]["dpo/0"]
    path = results.layout.run("dpo", 0) / "metrics.jsonl"
    rows = read_jsonl(path)
    write_jsonl(path, [row | {"loss": row["loss"] + 1} for row in rows])
    after = results.track()["children"]["dpo/0"]
    assert after != before
    assert curve(results.client, after, "train/loss") == {row["step"]: row["loss"] + 1 for row in rows}
    assert results.client.get_run(before).data.tags["mallowspo.superseded"] == "true"


def test_another_speed_is_no_other_training(results):
    before = results.track()["children"]["dpo/0"]
    path = results.layout.run("dpo", 0) / "metrics.jsonl"
    write_jsonl(path, [row | {"tokens_per_second": 1.0} for row in read_jsonl(path)])
    assert results.track()["children"]["dpo/0"] == before


def test_new_evaluation_is_added_to_the_same_run(results):
    before = results.track()["children"]["dpo/0"]
    path = results.layout.scores("dpo", 0) / "score.parquet"
    scores = pd.read_parquet(path)
    scores["value"] = 7.0
    scores.to_parquet(path)
    assert results.track()["children"]["dpo/0"] == before
    assert results.client.get_run(before).data.metrics["eval/reward"] == 7.0


def test_missing_result_is_named(results):
    (results.layout.run("dpo", 1) / "summary.json").unlink()
    with pytest.raises(InputError, match=r"runs/dpo/seed=1/summary\.json: no such file; run the stage train"):
        results.track()
    assert not results.layout.tracked.exists()


def test_locked_store_is_one_line_with_the_repair(results):
    with closing(sqlite3.connect(results.uri.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError) as caught:
            results.track(timeout=0.2)
    message = str(caught.value)
    assert message.startswith(f"tracking store {results.uri}: database is locked")
    assert "nothing is lost" in message
    assert "`mallowspo track made_up`" in message
    assert "\n" not in message
    assert not results.layout.tracked.exists()
    assert len(results.track()["children"]) == 4


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_unreachable_server_is_an_input_error_without_its_password(results, caplog):
    results.uri = f"http://somebody:se%40cret@127.0.0.1:{closed_port()}"
    begin = time.monotonic()
    with pytest.raises(InputError) as caught:
        results.track()
    assert time.monotonic() - begin < 10
    assert str(caught.value).startswith("tracking store http://127.0.0.1:")
    for text in (str(caught.value), caplog.text):
        assert "somebody" not in text
        assert "cret" not in text
    assert not results.layout.tracked.exists()


@pytest.mark.parametrize("uri", ["mlruns", "sqlite://", "file:///tmp/x", "ftp://host"])
def test_other_stores_are_refused(uri):
    with pytest.raises(InputError, match="write sqlite:///"):
        tracking.prepare_store(uri)


def test_file_that_is_no_store(tmp_path):
    write_text(tmp_path / "mlflow.db", "not a database at all " * 100)
    with pytest.raises(InputError, match="file is not a database"):
        tracking.prepare_store(f"sqlite:///{tmp_path}/mlflow.db")


def test_four_processes_prepare_an_empty_store(empty_store, tmp_path):
    assert sorted(path.name for path in empty_store.parent.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
    client = connect(f"sqlite:///{shutil.copy(empty_store, tmp_path)}")
    experiment = client.create_experiment("works")
    assert client.get_experiment(experiment).name == "works"


def test_unreachable_server_neither_stops_nor_slows_a_training(results, caplog):
    with socket.socket() as hanging:  # takes connections and never answers
        hanging.bind(("127.0.0.1", 0))
        hanging.listen()
        uri = f"http://somebody:secret@127.0.0.1:{hanging.getsockname()[1]}"
        begin = time.monotonic()
        live = tracking.track_live(results.layout, "dpo", 0, "digest", uri, interval=0.01)
        for step in range(1000):
            live.update({"step": step, "loss": 1.0})
        assert time.monotonic() - begin < 0.5
        begin = time.monotonic()
        with caplog.at_level(logging.WARNING, "mallowspo.tracking"):
            live.close(timeout=0.5)
        assert time.monotonic() - begin < 1.5
    live._thread.join(10)  # the socket is closed now
    assert "1000 rows were not sent" in caplog.text
    assert "secret" not in caplog.text


def test_live_tracking_warns_once_and_goes_on_when_the_store_is_back(results, caplog):
    with caplog.at_level(logging.WARNING, "mallowspo.tracking"):
        missing = Path(results.uri.removeprefix("sqlite:///"))
        away = missing.rename(missing.with_suffix(".away"))
        missing.mkdir()  # what cannot be opened as a database
        live = tracking.track_live(results.layout, "dpo", 0, "digest", results.uri, interval=0.02)
        live.update({"step": 1, "loss": 0.5})
        deadline = time.monotonic() + 20
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)  # several more attempts
        missing.rmdir()
        away.rename(missing)
        live.close(timeout=30)
    assert [record.message.startswith("live curves: tracking store") for record in caplog.records] == [True]
    (run,) = results.runs()
    assert run.data.metrics == {"train/loss": 0.5}


def test_credentials_are_hidden():
    uri = "postgresql://user:p%40ss@host:5432/db?sslpassword=other"
    assert hide_credentials(uri) == "postgresql://host:5432/db"
    assert hide_credentials("sqlite:////a@b/mlflow.db?timeout=5") == "sqlite:////a@b/mlflow.db"
    text = _hide_in(f'cannot reach {uri} as "user" with p@ss, p%40ss or other', uri)
    assert text == "cannot reach postgresql://host:5432/db as *** with ***, *** or ***"


def test_metric_names_fit_mlflow():
    assert (
        metric_name("lm_eval", "gsm8k", "exact_match,flexible-extract") == "lm_eval/gsm8k/exact_match/flexible-extract"
    )
    assert metric_name("lm_eval", "a task (5)", "acc,none") == "lm_eval/a task _5_/acc/none"


def test_links_name_runs_that_are_there_and_the_view_names_their_columns(results):
    with pytest.raises(InputError, match=r"tracked\.json: no such file; run mallowspo track made_up first"):
        links(results.layout)
    tracked = results.track()
    found = {what: urlsplit(url) for what, url in links(results.layout).items()}
    assert all((url.scheme, url.netloc, url.path) == ("http", "127.0.0.1:5000", "/") for url in found.values())
    route, _, query = found["compare"].fragment.partition("?")
    asked = {name: json.loads(values[0]) for name, values in parse_qs(query, strict_parsing=True).items()}
    assert route == "/compare-runs" and asked["experiments"] == [tracked["experiment_id"]]
    client = results.client
    labels = [client.get_run(run_id).data.params for run_id in asked["runs"]]
    assert [(run["method"], int(run["seed"])) for run in labels] == [(m, s) for m in METHODS for s in SEEDS]
    # The table's view is a tag of the experiment; its columns are what the runs have, its filter finds them all.
    assert found["table"].fragment == f"/experiments/{tracked['experiment_id']}/runs?viewStateShareKey=mallowspo"
    view = json.loads(client.get_experiment(tracked["experiment_id"]).tags["mlflow.sharedViewState.mallowspo"])
    runs = [client.get_run(run_id).data for run_id in asked["runs"]]
    for column in view["selectedColumns"]:  # the baseline has no win rate against itself
        kind, name = re.fullmatch(r"(params|metrics)\.`(.+)`", column).groups()
        assert any(name in getattr(run, kind) for run in runs)
    assert view["selectedColumns"][:4] == ["params.`method`", "params.`seed`", "params.`beta`", "metrics.`eval/reward`"]
    assert f"metrics.`lm_eval/{TASK}/acc`" in view["selectedColumns"]
    order = [f"{view['orderByKey']} DESC"]
    sorted_runs = client.search_runs([tracked["experiment_id"]], view["searchFilter"], order_by=order)
    assert {run.info.run_id for run in sorted_runs} == set(asked["runs"])
    rewards = [run.data.metrics["eval/reward"] for run in sorted_runs]
    assert rewards == sorted(rewards, reverse=True)


def test_links_go_to_the_server_that_is_the_store(tmp_path):
    layout = Layout(str(tmp_path), "x")
    record = {"store": "https://mlflow.example.org/", "experiment_id": "7", "children": {"dpo/0": "a1"}}
    write_json(layout.tracked, record)
    assert links(layout)["table"].startswith("https://mlflow.example.org/#/experiments/7/runs?")
    assert links(layout, "http://other:1")["compare"].startswith("http://other:1/#/compare-runs?runs=%5B%22a1%22%5D&")
    write_json(layout.tracked, {"store": "sqlite:///x.db", "experiment_id": "7", "run_id": "b2"})
    assert links(layout) == {"run": "http://127.0.0.1:5000/#/experiments/7/runs/b2"}


def test_a_view_of_many_metrics_fits_into_a_tag():
    many = [f"lm_eval/{'long_name_' * 20}{number}/acc" for number in range(300)] + ["eval/reward", "eval/kl"]
    text = view_state(many)
    assert len(text) <= 5000
    assert json.loads(text)["selectedColumns"][3:5] == ["metrics.`eval/reward`", "metrics.`eval/kl`"]
