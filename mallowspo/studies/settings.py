"""What every study's settings share. Frozen and checked like a comparison's; needs no torch."""

from types import SimpleNamespace
from typing import Any

from pydantic import Field

from mallowspo.files import digest
from mallowspo.settings import ComputeSettings, ModelSettings, Section


class Study(Section):
    """An experiment that is no comparison of trained language models; its kind says what it is."""

    kind: str
    title: str
    question: str = Field(default="", description="what the study is to answer; shown on its page")
    model: ModelSettings | None = Field(default=None, description="only for a study that scores texts")
    compute: ComputeSettings = ComputeSettings()

    @property
    def identity(self) -> str:
        """Digest of the resolved settings that a result depends on."""
        return digest(self.model_dump(exclude={"title", "question", "compute"}))

    def stage_digest(self, stage: str) -> str:
        """What a stage depends on: "study" all but `compute`; "model" its source, as in a comparison."""
        if stage == "model":
            model = self.stage_view("model").model
            return digest(["model", list(vars(model).values()), None])
        return digest(self.model_dump(exclude={"compute"}))

    def stage_view(self, stage: str) -> Any:
        """The settings that the stage "model" may read; a study without a model has no such stage."""
        if stage != "model" or self.model is None:
            raise ValueError(f"a study of kind {self.kind} has no stage '{stage}'")
        keys = ("source", "sha256", "trust_remote_code", "quantized")
        return SimpleNamespace(model=SimpleNamespace(**{key: getattr(self.model, key) for key in keys}))

    def warnings(self) -> list[str]:
        """What the terminal says before the study runs, such as a part of it that cannot be run here."""
        return []

    def input_files(self) -> list[str]:
        """Local files that the study reads; the workflow runs it again when one of them changes."""
        return []
