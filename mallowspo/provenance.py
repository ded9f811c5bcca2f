"""What made a result: the code of a stage, the versions, the machine."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent

#: The module whose code, with all that it imports of this package, makes a stage's results.
STAGE_MODULES = {
    "model": "mallowspo.models",
    "sample": "mallowspo.pairs.on_policy",
    "pairs": "mallowspo.pairs.build",
    "tokens": "mallowspo.pairs.prepared",
    "reference": "mallowspo.reference_pass",
    "dispersion": "mallowspo.weights",
    "other-pairs": "mallowspo.evaluation.other_pairs",
    "train": "mallowspo.training",
    "generate": "mallowspo.evaluation.answers",
    "score": "mallowspo.evaluation.score",
    "second-score": "mallowspo.evaluation.second_judge",
    "signals": "mallowspo.evaluation.pair_betas",
    "alpaca": "mallowspo.evaluation.alpaca",
    "judge": "mallowspo.judges.labels",
    "lm-eval": "mallowspo.evaluation.lm_eval",
    "compare": "mallowspo.compare",
    "report": "mallowspo.report.page",
    "track": "mallowspo.tracking",
    "reward-model": "mallowspo.reward_model.training",
    "paper": "mallowspo.paper.page",
}
#: Not part of any stage's code: what these give a stage reaches it by value, through its settings and paths.
_BY_VALUE = {
    *(f"mallowspo.{name}" for name in ("settings", "workflow_settings", "experiments", "layout")),
    *(f"mallowspo.{name}" for name in ("sections", "stage_reads", "errors", "files", "provenance")),
    "mallowspo.evaluation.settings",
    "mallowspo.evaluation.design_settings",
    "mallowspo.pairs.settings",
    "mallowspo.studies.settings",
    "mallowspo.studies.kinds",
}
#: What pages are made of besides code.
_SHARED_TEMPLATES = ("report/parts.html.jinja", "report/page.css")
_STUDY_TEMPLATES = ("studies/study.html.jinja", *_SHARED_TEMPLATES)
_STAGE_TEMPLATES = {
    "report": (
        *("report/report.html.jinja", "report/explore.html.jinja", "report/explore.css", "report/explore.js"),
        *_SHARED_TEMPLATES,
    ),
    "paper": ("paper/paper.html.jinja", *_SHARED_TEMPLATES),
}
#: Tracking copies results and makes none: no stage but its own is run again for an edit there.
_TRACKING = "mallowspo.tracking"

_PACKAGES = [
    "mallowspo",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "snakemake",
    "alpaca_eval",
    "lm_eval",
    "mlflow",
    "numpy",
    "pandas",
    "scipy",
    "statsmodels",
    "scikit-learn",
    "vaderSentiment",
    "textblob",
]


@cache
def code_digest(stage: str) -> str:
    """Digest of the code behind a stage: its module and all that it imports of this package.

    Comments, docstrings and layout do not count, so a cosmetic edit runs nothing again.
    """
    parts = _code([STAGE_MODULES[stage]], tracking=stage == "track")
    return _digest([*parts, *_texts(_STAGE_TEMPLATES.get(stage, ()))])


@cache
def study_code_digest(module: str) -> str:
    """The same for the study that `module` runs, with the page that all studies share."""
    parts = _code([module, "mallowspo.studies.page"], tracking=False)
    return _digest([*parts, *_texts(_STUDY_TEMPLATES)])


def _texts(names: Iterable[str]) -> list[str]:
    return [(PACKAGE / name).read_text(encoding="utf-8") for name in names]


def _code(modules: list[str], tracking: bool) -> list[str]:
    """The bare code of `modules` and of all that they import of this package."""
    seen: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module in seen or module in _BY_VALUE:
            continue
        if module.startswith(_TRACKING) and not tracking:
            continue
        seen.add(module)
        waiting += _imported_modules(_source_file(module))
    return [f"{module}:{_bare_code(_source_file(module))}" for module in sorted(seen)]


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _source_file(module: str) -> Path:
    path = PACKAGE.parent / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _imported_modules(file: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("mallowspo.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mallowspo"):
            # `from mallowspo.report import figures` names a module, `from mallowspo.files import digest` a function.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if _source_file(name).exists()]
            found += [node.module or ""]
    return [module for module in found if module != "mallowspo" and _source_file(module).exists()]


@cache
def _bare_code(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.dump(tree)


def environment(device: str) -> dict[str, Any]:
    """Python, platform, processor, GPU, git commit and package versions, for environment.json."""
    import torch

    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "threads": torch.get_num_threads(),
        "device": device,
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "git_commit": _git_commit(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The checkout's commit, with -dirty where files differ from it; None outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=PACKAGE,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
