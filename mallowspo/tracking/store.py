"""The tracking store: how it is reached, prepared once, and what is said when it cannot be reached."""

import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from filelock import FileLock

from mallowspo.errors import InputError
from mallowspo.visible import one_line

#: Seconds that a store may take to answer at all.
REACHABLE_WITHIN = 5
#: MLflow's codes of a server that answers and refuses, and what mends it.
REFUSED = {
    "UNAUTHENTICATED": "the server refuses user and password; set MLFLOW_TRACKING_USERNAME and "
    "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) in the environment",
    "PERMISSION_DENIED": "the server does not let this user (MLFLOW_TRACKING_USERNAME) do that; whoever runs it can "
    "give the permission EDIT on the experiment",
}
#: Name of the advisory lock under which one process makes the schema of a PostgreSQL store; any constant will do.
SCHEMA_LOCK = 240514953


def hide_credentials(uri: str) -> str:
    """The URI without user, password and query: what logs, messages and files may show."""
    if uri.startswith("sqlite:"):
        return uri.partition("?")[0]
    return re.sub(r"://.*@", "://", uri).partition("?")[0]


def _hide_in(text: str, uri: str) -> str:
    """`text` (an exception's, say) without the credentials of `uri`."""
    text = text.replace(uri, hide_credentials(uri))
    secrets = {value for key, value in parse_qsl(urlsplit(uri).query) if "password" in key or "token" in key}
    for user_and_password in re.findall(r"://(.*)@", uri):
        text = text.replace(f"{user_and_password}@", "")
        user, _, password = user_and_password.partition(":")
        secrets |= {password, unquote(password), f'"{unquote(user)}"'}
    for secret in secrets - {""}:
        text = text.replace(secret, "***")
    return text


def sqlite_file(uri: str) -> Path | None:
    """The database file of a sqlite URI (`sqlite:///relative.db`, `sqlite:////absolute.db`); None for another store."""
    if not uri.startswith("sqlite:"):
        return None
    name = uri.partition("?")[0].removeprefix("sqlite:///")
    if not uri.startswith("sqlite:///") or name in ("", ":memory:"):
        raise InputError(f"tracking_uri '{uri}': names no file; write sqlite:///results/mlflow.db")
    return Path(name).resolve()


@contextmanager
def http_limits(timeout: int, retries: int) -> Iterator[None]:
    """Bounds on MLflow's requests (by default 120 s and 7 retries), and no links to runs on the standard output,
    which would show the credentials of the URI. MLflow reads all three from the environment only.
    """
    limits = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    before = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def connect(uri: str) -> Any:
    """An `MlflowClient` of this store. The URI is passed in full: nothing is read from or left in MLflow's globals."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    # MLflow logs a traceback for each database error that it also raises; what it raises is reported by us.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    file = sqlite_file(uri)
    absolute = uri if file is None else f"sqlite:///{file}"
    return MlflowClient(tracking_uri=absolute, registry_uri=absolute)


def _store_exceptions() -> tuple[type[Exception], ...]:
    """What a store raises. requests' exceptions and filelock's time-out are OSErrors."""
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    return OSError, sqlite3.Error, sqlalchemy.exc.SQLAlchemyError, MlflowException


def _refused(error: Exception) -> str | None:
    """What to do where a server answered and refused; None for any other error. Artifacts come by plain HTTP."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    code = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}.get(status or 0, getattr(error, "error_code", None))
    return REFUSED.get(str(code))


@contextmanager
def store_errors(uri: str, advice: str, of_reach: str = "") -> Iterator[None]:
    """Turn whatever a store raises into an `InputError` of one line, without the URI's credentials.

    Args:
        advice: what else the line says.
        of_reach: what it says, too, unless the store answered and refused.
    """
    # `from None`: the exceptions behind these carry the whole URI.
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"tracking store {hide_credentials(uri)}: no driver ({error}); pip install 'mallowspo[postgres]'"
        ) from None
    # Called only when something was raised: importing MLflow takes seconds.
    except _store_exceptions() as error:
        refused = _refused(error)
        reason = refused or _hide_in(one_line(str(getattr(error, "orig", error))), uri)[:300]
        said = [reason, "" if refused else of_reach, advice]
        raise InputError(f"tracking store {hide_credentials(uri)}: {'; '.join(filter(None, said))}") from None


def prepare_store(uri: str, timeout: float = 60.0) -> None:
    """Make the store ready for several writers at once: its schema exists, and it can be written.

    Eight processes that open an empty sqlite file at once each try to make its schema and leave a broken one
    behind. So one process makes it, under a lock, in a temporary file that is then renamed.

    Args:
        uri: sqlite:///FILE, postgresql://..., or http(s)://... of an MLflow server.
        timeout: seconds to wait for another process that prepares or writes the same sqlite file.

    Raises:
        InputError: the store is locked, unreachable, or of another kind.
    """
    of_reach = "is it running, and is tracking_uri (or MLFLOW_TRACKING_URI) right?"
    file = sqlite_file(uri)
    if file is not None:
        with store_errors(uri, "wait for whoever writes to it, or stop them"):
            _prepare_sqlite(file, timeout)
    elif re.match(r"postgresql(\+\w+)?://", uri):
        with store_errors(uri, "", of_reach):
            _prepare_postgresql(uri)
    elif re.match(r"https?://", uri):
        with store_errors(uri, "", of_reach), http_limits(REACHABLE_WITHIN, 0):
            connect(uri).search_experiments(max_results=1)
    else:
        raise InputError(
            f"tracking_uri '{hide_credentials(uri)}': write sqlite:///FILE, postgresql://... or http://..."
        )


def _prepare_sqlite(file: Path, timeout: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock", timeout=timeout):
        if not file.exists() or file.stat().st_size == 0:
            with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
                temporary = Path(folder) / file.name
                _make_schema(f"sqlite:///{temporary}")
                temporary.replace(file)
    with closing(sqlite3.connect(file, timeout=timeout, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")


def _prepare_postgresql(uri: str) -> None:
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri, connect_args={"connect_timeout": REACHABLE_WITHIN})
    with engine.connect() as connection:
        # Held until the connection closes: the others wait here, and then find the schema made.
        connection.execute(sqlalchemy.text(f"SELECT pg_advisory_lock({SCHEMA_LOCK})"))
        if not sqlalchemy.inspect(connection).has_table("alembic_version"):
            _make_schema(uri)
        connection.rollback()
        connection.execute(sqlalchemy.text(f"SELECT pg_advisory_unlock({SCHEMA_LOCK})"))
    engine.dispose()


def _make_schema(uri: str) -> None:
    """What `mlflow db upgrade URI` does to an empty database."""
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    for chatty in ("mlflow.store.db.utils", "alembic"):  # a line for each of a hundred migrations
        logging.getLogger(chatty).setLevel(logging.WARNING)
    engine = create_sqlalchemy_engine(uri)
    _initialize_tables(engine)
    engine.dispose()
