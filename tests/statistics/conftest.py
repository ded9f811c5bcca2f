"""Slow: these tests run where the command names their folder (`make test-statistics`), and not in `make test`."""

from tests.statistics.rows import ROWS, markdown


def pytest_ignore_collect(config):
    return None if any("statistics" in argument for argument in config.args) else True


def pytest_terminal_summary(terminalreporter):
    if ROWS:
        terminalreporter.write_line("\n" + markdown())
