"""config/config.yaml: which experiments to run, and where results and the tracking store are."""

import os
import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from mallowspo.settings import Section


class Workflow(Section):
    """config/config.yaml: which experiments, and where things go."""

    experiments: list[str] = Field(default=["demo"], min_length=1)
    results: str = "results"
    tracking_uri: str | None = Field(
        default=None,
        description="MLflow store; default: the environment's MLFLOW_TRACKING_URI, else sqlite in the results folder",
    )

    live_curves: bool = Field(default=False, description="training jobs also send their curves while they train")

    @field_validator("tracking_uri")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value and re.search(r"://[^/@]*:[^/@]*@", value):
            raise ValueError(
                "a password does not belong in settings; set MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, in the environment"
            )
        return value

    @field_validator("experiments", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @property
    def store(self) -> str:
        """The MLflow tracking URI in force."""
        default = f"sqlite:///{Path(self.results).resolve()}/mlflow.db"
        return self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default
