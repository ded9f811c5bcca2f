"""Slow, and needs a real Slurm: these tests run where the command names their folder (`make test-cluster`).

Two files of them run side by side (pytest-xdist); both send jobs to one pretend cluster, which the process that leads
them starts and stops.
"""

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import SHARED_STORE_PORT, Database, Server, pretend_cluster_runs, run_script, wait_until
from tests.slurm.prepared import prepare
from tests.slurm.table import PROPERTY, markdown, rows_of

BEGAN = pytest.StashKey[float]()
STARTED_HERE = pytest.StashKey[bool]()


def pytest_ignore_collect(config):
    return None if _asked_for(config) else True


def pytest_sessionstart(session):
    if not _leads(session.config):
        return
    session.config.stash[BEGAN] = time.monotonic()
    # Where somebody started it by hand, that person will stop it.
    session.config.stash[STARTED_HERE] = not _why_no_cluster() and not pretend_cluster_runs()
    if session.config.stash[STARTED_HERE]:
        run_script("slurm_loopback.sh", "stop")  # what a killed test left
        run_script("slurm_loopback.sh", "start")


def pytest_sessionfinish(session):
    if session.config.stash.get(STARTED_HERE, False):
        run_script("slurm_loopback.sh", "stop")


def pytest_terminal_summary(terminalreporter, config):
    rows = rows_of(terminalreporter.getreports("passed"))
    if rows:
        seconds = time.monotonic() - config.stash[BEGAN]
        for line in (*markdown(rows), "", f"{len(rows)} rows in {seconds:.0f} s"):
            terminalreporter.write_line(line)


def _asked_for(config):
    return any("tests/slurm" in argument for argument in config.args)


def _leads(config):
    """Not one of pytest-xdist's workers."""
    return _asked_for(config) and not hasattr(config, "workerinput")


def _why_no_cluster():
    if not shutil.which("slurmctld"):
        return "Slurm is not installed; on Debian, as root: tests/slurm/slurm_loopback.sh install"
    return "a pretend cluster is started by root only" if os.getuid() != 0 else None


@pytest.fixture(scope="session")
def slurm():
    """A Slurm with two pretend nodes, for all tests."""
    if why := _why_no_cluster():
        pytest.skip(why)
    assert pretend_cluster_runs()


@pytest.fixture
def tell(record_property):
    """Adds a row to the table of docs/cluster.md."""
    return lambda *row: record_property(PROPERTY, row)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, worker_id):
    """The experiment "faults", ready to train; made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    return prepare((base if worker_id == "master" else base.parent) / "prepared")


@pytest.fixture(scope="session")
def database():
    """A PostgreSQL of its own, with an empty database."""
    if not (shutil.which("pg_ctl") or list(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))):
        pytest.skip("PostgreSQL is not installed; on Debian, as root: tests/slurm/postgres_loopback.sh install")
    run_script("postgres_loopback.sh", "clear")
    run_script("postgres_loopback.sh", "start")
    yield Database()
    run_script("postgres_loopback.sh", "clear")


@pytest.fixture(scope="session")
def server(database, tmp_path_factory):
    """`mallowspo server` on that database."""
    server = Server(tmp_path_factory.mktemp("server"), database, SHARED_STORE_PORT)
    server.start()
    wait_until(server.answers, 120, "the MLflow server answers")
    yield server
    server.stop()
