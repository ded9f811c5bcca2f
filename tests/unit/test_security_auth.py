"""A real MLflow server that asks for user and password: who may, what is said, and that the password stays secret."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from mallowspo import tracking
from mallowspo.errors import InputError
from mallowspo.files import read_json, read_jsonl, write_text
from mallowspo.tracking import server
from mallowspo.tracking.store import connect
from tests.made_up_results import write
from tests.made_up_run import prepare

KEY, ADMIN, USER = "flask-key-7f3a91", "admin-password-51c2", "user-password-88d4"
WRONG = "wrong-password-03b6"


@dataclass
class Server:
    """A server on loopback with a user `researcher` besides its admin."""

    uri: str
    folder: Path
    words: list[str]

    def log_in(self, monkeypatch, user, password):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)


def _up(uri):
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=1):
            return True
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    pytest.importorskip("flask_wtf", reason="pip install 'mallowspo[auth]'")
    from mlflow.server import get_app_client

    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    variables |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": KEY, "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN}
    words = [sys.executable, "-m", "mallowspo.cli", "server", "--auth", "--port", str(port), "--workers", "1"]
    uri = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("w") as log:
        started = subprocess.Popen(words, cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 180
            while not _up(uri):
                assert started.poll() is None and time.monotonic() < deadline, (folder / "server.log").read_text()
                time.sleep(0.2)
            command = Path(f"/proc/{started.pid}/cmdline")
            words = command.read_text().split("\0") if command.exists() else words
            with pytest.MonkeyPatch.context() as patched:
                Server(uri, folder, words).log_in(patched, "admin", ADMIN)
                get_app_client("basic-auth", tracking_uri=uri).create_user("researcher", USER)
            yield Server(uri, folder, words)
        finally:
            started.send_signal(signal.SIGTERM)
            started.wait(timeout=90)


@pytest.fixture
def results(tmp_path):
    made = write(tmp_path / "results", ("dpo", "mallows_theta"), (0,), lm_eval=False, prompts=4, steps=3)
    for file in (made.layout.report, made.layout.tables / "main.csv", made.layout.figures / "curves.svg"):
        write_text(file, "text")
    return made


def track(made, uri):
    tracking.run(made.experiment.stage_view("track"), made.layout, uri)
    return read_json(made.layout.tracked)


def files_with(folder, *secrets):
    """Files that hold one of the secrets."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


def test_a_user_tracks_and_a_stranger_does_not(served, results, monkeypatch, caplog):
    for user, password in (("researcher", WRONG), ("nobody", USER), ("", "")):
        served.log_in(monkeypatch, user, password)
        with pytest.raises(InputError) as caught:
            track(results, served.uri)
        message = str(caught.value)
        assert message.startswith(
            f"tracking store {served.uri}: the server refuses user and password; set MLFLOW_TRACK"
        )
        assert "is it running" not in message and "\n" not in message
        assert "nothing is lost" in message and "`mallowspo track made_up`" in message
        assert WRONG not in message and USER not in message
        assert not results.layout.tracked.exists()
    served.log_in(monkeypatch, "researcher", USER)
    assert set(track(results, served.uri)["children"]) == {"dpo/0", "mallows_theta/0"}
    assert not files_with(results.layout.root, USER, WRONG) and USER not in caplog.text


def test_another_users_experiment_is_told_of(served, results, monkeypatch):
    from mlflow.server import get_app_client

    served.log_in(monkeypatch, "admin", ADMIN)
    get_app_client("basic-auth", tracking_uri=served.uri).create_user("colleague", USER)
    track(results, served.uri)
    served.log_in(monkeypatch, "colleague", USER)
    with pytest.raises(InputError, match=r"does not let this user \(MLFLOW_TRACKING_USERNAME\) do that.*EDIT"):
        track(results, served.uri)


def test_a_wrong_password_stops_no_training_and_is_told_once(served, tmp_path, monkeypatch, caplog):
    from mallowspo import training

    experiment, layout, model_folder = prepare(tmp_path)
    served.log_in(monkeypatch, "researcher", WRONG)
    view, method = experiment.stage_view("train"), experiment.methods["dpo"]
    with caplog.at_level(logging.WARNING, "mallowspo.tracking"):
        training.run(view, method, "dpo", 1, layout, model_folder, "cpu", 2000, served.uri)
    rows = read_jsonl(layout.run("dpo", 1) / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    causes = [record.message for record in caplog.records if "refuses user and password" in record.message]
    assert len(causes) == 1 and "the training goes on" in causes[0]
    assert WRONG not in caplog.text and not files_with(tmp_path, WRONG, ADMIN)


def test_what_a_wrong_password_kept_back_arrives_later(served, results, monkeypatch, caplog):
    digest = read_json(results.layout.run("dpo", 0) / "summary.json")["digest"]
    served.log_in(monkeypatch, "researcher", WRONG)
    live = tracking.track_live(results.layout, "dpo", 0, digest, served.uri, interval=0.05)
    for row in read_jsonl(results.layout.run("dpo", 0) / "metrics.jsonl"):
        live.update(row)
    live.close(timeout=10)
    assert "3 rows were not sent; `mallowspo track made_up` brings them" in caplog.text
    served.log_in(monkeypatch, "admin", ADMIN)
    tracked = track(results, served.uri)
    history = connect(served.uri).get_metric_history(tracked["children"]["dpo/0"], "train/loss")
    assert sorted(point.step for point in history) == [1, 2, 3]


def test_the_password_is_in_nothing_that_is_kept_or_said(served, results, tmp_path):
    """The command line with the password inside the address, the worst case: it may come from the environment."""
    address = served.uri.replace("://", f"://admin:{ADMIN}@")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    write_text(tmp_path / "made_up.yaml", results.settings_text)
    words = [sys.executable, "-m", "mallowspo.cli", "track", "made_up.yaml", "--results", "results"]
    variables["MLFLOW_TRACKING_URI"] = address
    done = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ADMIN not in done.stdout + done.stderr
    assert read_json(results.layout.tracked)["store"] == served.uri
    assert not files_with(tmp_path, ADMIN, KEY, USER)
    # Of the server's own files, too: users' passwords are kept as hashes.
    assert {path.name for path in served.folder.rglob("*.db")} == {"mlflow.db", "mlflow_users.db"}
    assert not files_with(served.folder, ADMIN, KEY, USER)
    assert not [word for word in served.words if word in (ADMIN, KEY)]


def test_the_results_page_of_the_store_is_closed_to_strangers(served):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{served.uri}/api/2.0/mlflow/experiments/search?max_results=1", timeout=10)
    assert caught.value.code == 401


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "MLFLOW_FLASK_SERVER_SECRET_KEY is not set"),
        ({"MLFLOW_FLASK_SERVER_SECRET_KEY": KEY}, "MLFLOW_AUTH_ADMIN_PASSWORD is not set"),
    ],
)
def test_a_secret_that_is_missing_is_named(tmp_path, monkeypatch, variables, message):
    for name in ("MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_AUTH_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"--auth: {message}"):
        server.authentication(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", KEY)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", ADMIN)
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'mallowspo\[auth\]'"):
        server.authentication(tmp_path)


def test_the_users_lie_beside_the_runs_unless_told_otherwise(tmp_path, monkeypatch):
    import configparser

    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", KEY)
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", ADMIN)
    monkeypatch.delenv("MLFLOW_AUTH_CONFIG_PATH", raising=False)
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: object())
    folder = tmp_path / "100% mine"
    file = server.authentication(folder)
    read = configparser.ConfigParser()
    read.read(file)
    assert read["mlflow"]["database_uri"] == f"sqlite:///{folder}/mlflow_users.db"
    assert read["mlflow"]["default_permission"] == "READ"
    assert ADMIN not in file.read_text() and KEY not in file.read_text()
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(tmp_path / "own.ini"))
    assert server.authentication(folder) == tmp_path / "own.ini"
