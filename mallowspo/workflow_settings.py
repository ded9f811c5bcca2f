"""config/config.yaml: which experiments to run, and where results and the tracking store are."""

import os
import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from mallowspo.sections import Section, secret_in_settings


def _holds_secret(uri: str) -> bool:
    """Whether a store's URI holds a password or token; whoever is named before a web server is one, too."""
    if uri.startswith("sqlite:"):
        return False
    user, at, _ = uri.partition("://")[2].rpartition("@")
    named = bool(at) and (":" in user or uri.startswith("http"))
    return named or re.search(r"[?&][^=&]*(passw|token|secret)[^=&]*=", uri, re.IGNORECASE) is not None


class Workflow(Section):
    """config/config.yaml: which experiments, and where things go."""

    experiments: list[str] = Field(default=["demo"], min_length=1)
    results: str = "results"
    tracking_uri: str | None = Field(
        default=None,
        description="MLflow store; default: the environment's MLFLOW_TRACKING_URI, else sqlite in the results folder",
    )

    scale: str = Field(default="cpu", description="of config/paper.yaml: whose experiments the target `paper` runs")
    live_curves: bool = Field(default=False, description="training jobs also send their curves while they train")

    @field_validator("tracking_uri")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value and _holds_secret(value):
            raise secret_in_settings(
                "a password does not belong in settings; set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, in the environment"
            )
        return value

    @field_validator("results")
    @classmethod
    def _a_folder(cls, value: str) -> str:
        if not value.isprintable() or not value or value.startswith("-") or set("{}") & set(value):
            raise ValueError("must be a folder without { } or control characters, and not begin with -")
        return value

    @field_validator("experiments", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @field_validator("experiments")
    @classmethod
    def _names_differ(cls, value: list[str]) -> list[str]:
        """Results go by the name of the file, whatever its folder."""
        stems = [Path(name).stem if name.endswith((".yaml", ".yml")) else name for name in dict.fromkeys(value)]
        twice = [stem for stem in stems if stems.count(stem) > 1]
        if twice:
            raise ValueError(f"two files are called '{twice[0]}' and would share a folder of results; rename one")
        return value

    @property
    def store(self) -> str:
        """The MLflow tracking URI in force."""
        default = f"sqlite:///{Path(self.results).resolve()}/mlflow.db"
        return self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default
