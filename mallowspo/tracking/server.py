"""`mallowspo server`: the MLflow server that every job and every user logs to, and a browser looks at.

MLflow reads what is secret from the environment, and so does this: nothing secret is an argument (arguments are shown
by `ps`), and nothing secret is printed.
"""

import importlib.util
import os
import re
import socket
import sys
from pathlib import Path

from mallowspo.errors import InputError
from mallowspo.files import write_text
from mallowspo.tracking.store import hide_credentials, prepare_store, sqlite_file

LOOPBACK = ("localhost", "127.0.0.1")


def run(store: str, artifacts: Path, host: str, port: int, workers: int, auth: bool) -> None:
    """Make the store ready, then become the server: the process id stays, and SIGTERM ends it with its workers.

    Args:
        store: database of the runs: sqlite:///FILE, or postgresql://USER@HOST/DATABASE with the password in the
            environment's PGPASSWORD or in ~/.pgpass.
        artifacts: folder of the files of the runs; jobs send them to the server, so only the server has to see it.
        host: address to listen on; 0.0.0.0 for every one.
        port: TCP port.
        workers: processes of the server.
        auth: ask for user and password, by MLflow's own means; users are kept beside `artifacts`.

    Raises:
        InputError: the store is itself a server, or cannot be reached; or a secret that MLflow needs is missing.
    """
    variables = environment(store, host, port)
    if auth:
        variables["MLFLOW_AUTH_CONFIG_PATH"] = str(authentication(artifacts.parent))
    prepare_store(store)
    open_to_all = "" if auth or host in LOOPBACK else "; whoever reaches it can read and delete runs (see --auth)"
    print(f"MLflow on http://{host}:{port}, its store {hide_credentials(store)}{open_to_all}", flush=True)
    os.execve(sys.executable, command(artifacts, host, port, workers, auth), variables)


def command(artifacts: Path, host: str, port: int, workers: int, auth: bool) -> list[str]:
    """MLflow's own command. The store is not in it: its URI may hold a password."""
    words = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", str(workers)]
    words += ["--artifacts-destination", str(artifacts.resolve())]
    return [*words, "--app-name", "basic-auth"] if auth else words


def environment(store: str, host: str, port: int) -> dict[str, str]:
    """This process's environment with what the server needs; what the user has set is kept.

    Raises:
        InputError: the store is the address of a server.
    """
    if re.match(r"https?://", store):
        raise InputError(
            f"{hide_credentials(store)}: where jobs reach a server, not where a server keeps its runs; set "
            "MLFLOW_BACKEND_STORE_URI, such as postgresql://USER@HOST/DATABASE (its password in PGPASSWORD)"
        )
    file = sqlite_file(store)
    chosen = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{file}" if file else store,
        # Else the server leaves processes behind when it ends.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    defaults = {"MLFLOW_DISABLE_TELEMETRY": "true"}
    if host not in LOOPBACK:
        # By default MLflow refuses whoever calls it by another name than localhost or a private address.
        names = [*LOOPBACK, socket.gethostname(), socket.getfqdn()]
        defaults["MLFLOW_SERVER_ALLOWED_HOSTS"] = ",".join(f"{name}:{port}" for name in names)
    return {**defaults, **os.environ, **chosen}


def authentication(folder: Path) -> Path:
    """MLflow's configuration of users: MLFLOW_AUTH_CONFIG_PATH, else one in `folder`, with the users beside it.

    Raises:
        InputError: a secret is missing in the environment, or a package.
    """
    chosen = os.environ.get("MLFLOW_AUTH_CONFIG_PATH")
    users = folder.resolve() / "mlflow_users.db"
    secrets = ["MLFLOW_FLASK_SERVER_SECRET_KEY"]
    # Without it MLflow cannot make the first user, who makes the others.
    secrets += [] if chosen or users.exists() else ["MLFLOW_AUTH_ADMIN_PASSWORD"]
    for name in secrets:
        if not os.environ.get(name):
            raise InputError(f"--auth: {name} is not set in the environment; docs/tracking.md says what belongs there")
    if importlib.util.find_spec("flask_wtf") is None:
        raise InputError("--auth: MLflow needs the package Flask-WTF for it; pip install 'mallowspo[auth]'")
    if chosen:
        return Path(chosen)
    file = folder.resolve() / "mlflow_auth.ini"
    database = str(users).replace("%", "%%")
    lines = ["[mlflow]", "default_permission = READ", f"database_uri = sqlite:///{database}", "admin_username = admin"]
    # Else the password is hashed anew for every request of a job, a tenth of a second each.
    lines += ["auth_cache_ttl_seconds = 60"]
    write_text(file, "\n".join(lines) + "\n")
    return file
