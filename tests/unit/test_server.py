"""`mallowspo server`: what it starts, with which environment, and that it serves and ends."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from mallowspo.errors import InputError
from mallowspo.tracking import server
from mallowspo.tracking.store import connect


def test_the_store_is_in_the_environment_and_in_no_argument(monkeypatch):
    monkeypatch.delenv("MLFLOW_SERVER_ALLOWED_HOSTS", raising=False)
    store = "postgresql://mlflow:secret@db.example.org/mlflow"
    variables = server.environment(store, "127.0.0.1", 5000)
    assert variables["MLFLOW_BACKEND_STORE_URI"] == store
    assert variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "MLFLOW_SERVER_ALLOWED_HOSTS" not in variables
    words = server.command(Path("artifacts"), "127.0.0.1", 5000, 2, auth=False)
    assert "secret" not in " ".join(words)
    assert words[words.index("--artifacts-destination") + 1] == str(Path("artifacts").resolve())
    assert "--app-name" not in words


def test_other_machines_may_call_it_by_its_name(monkeypatch):
    monkeypatch.delenv("MLFLOW_SERVER_ALLOWED_HOSTS", raising=False)
    allowed = server.environment("sqlite:///mlflow.db", "0.0.0.0", 5001)["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert f"{socket.gethostname()}:5001" in allowed
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "mlflow.example.org")
    kept = server.environment("sqlite:///mlflow.db", "0.0.0.0", 5001)["MLFLOW_SERVER_ALLOWED_HOSTS"]
    assert kept == "mlflow.example.org"


def test_a_server_is_no_store():
    with pytest.raises(InputError, match="http://host: where jobs reach a server.*MLFLOW_BACKEND_STORE_URI") as caught:
        server.environment("http://somebody:secret@host", "127.0.0.1", 5000)
    assert "secret" not in str(caught.value)


def test_authentication_without_its_secrets_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_FLASK_SERVER_SECRET_KEY", raising=False)
    with pytest.raises(InputError, match="--auth: MLFLOW_FLASK_SERVER_SECRET_KEY is not set"):
        server.run(f"sqlite:///{tmp_path}/mlflow.db", tmp_path, "127.0.0.1", 5000, 1, auth=True)
    assert not (tmp_path / "mlflow.db").exists()


def healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def test_it_serves_and_ends(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    words = [sys.executable, "-m", "mallowspo.cli", "server", "--port", str(port), "--workers", "1"]
    started = subprocess.Popen(words, cwd=tmp_path, env=variables, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 180
        while not healthy(port):
            assert started.poll() is None and time.monotonic() < deadline, "the server did not come up"
            time.sleep(0.2)
        client = connect(f"http://127.0.0.1:{port}")
        run = client.create_run(client.create_experiment("works")).info.run_id
        client.log_text(run, "kept", "note.txt")
    finally:
        started.send_signal(signal.SIGTERM)
        said, _ = started.communicate(timeout=90)
    assert f"MLflow on http://127.0.0.1:{port}, its store sqlite:///{tmp_path}/results/mlflow.db" in said
    assert [file.read_text() for file in tmp_path.glob("results/mlartifacts/*/*/artifacts/note.txt")] == ["kept"]
    assert not healthy(port)
