"""Slow, and needs a real Slurm: these tests run where the command names their folder (`make test-cluster`)."""

import os
import shutil
from pathlib import Path

import pytest

from tests.slurm.cluster import SHARED_STORE_PORT, Database, Server, pretend_cluster_runs, run_script, wait_until
from tests.slurm.prepared import Prepared
from tests.slurm.table import FAULTS, NOTES, markdown


def pytest_ignore_collect(config):
    return None if any("tests/slurm" in argument for argument in config.args) else True


def pytest_terminal_summary(terminalreporter):
    for line in (*NOTES, "", *markdown(FAULTS)) if FAULTS or NOTES else ():
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def slurm():
    """A Slurm with two pretend nodes, for all tests."""
    if not shutil.which("slurmctld"):
        pytest.skip("Slurm is not installed; on Debian, as root: tests/slurm/slurm_loopback.sh install")
    if os.getuid() != 0:
        pytest.skip("a pretend cluster is started by root only")
    if pretend_cluster_runs():  # somebody started it by hand, and will stop it
        yield
        return
    run_script("slurm_loopback.sh", "stop")  # what a killed test left
    run_script("slurm_loopback.sh", "start")
    yield
    run_script("slurm_loopback.sh", "stop")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The experiment "faults", ready to train."""
    return Prepared(tmp_path_factory.mktemp("prepared") / "faults")


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
    wait_until(server.answers, 90, "the MLflow server answers")
    yield server
    server.stop()
