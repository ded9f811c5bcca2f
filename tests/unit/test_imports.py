"""Imports point one way: the mathematics knows nothing of files and settings, statistics and reports no torch."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "mallowspo"
MATHEMATICS = ("mallows", "objectives", "dispersion", "inference")
PURE = [*(str(f.relative_to(PACKAGE)) for name in MATHEMATICS for f in (PACKAGE / name).glob("*.py"))]
PURE_MAY_USE = ("methods", *MATHEMATICS)


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("name", sorted(PURE))
def test_mathematics_is_pure(name):
    used = {module for module in imports(PACKAGE / name) if module.startswith("mallowspo")}
    assert {module.split(".")[1] for module in used} <= set(PURE_MAY_USE)


@pytest.mark.parametrize(
    "file", [*(PACKAGE / "inference").glob("*.py"), *sorted((PACKAGE / "report").glob("*.py"))], ids=str
)
def test_statistics_and_report_need_no_torch(file):
    assert not [module for module in imports(file) if module.split(".")[0] in {"torch", "transformers"}]


def test_no_file_is_a_hall():
    long = {
        str(file.relative_to(PACKAGE)): n
        for file in PACKAGE.rglob("*.py")
        if (n := len(file.read_text().splitlines())) > 500
    }
    assert not long
