"""Settings of a reward model. Free of torch."""

from typing import Any, Literal

from pydantic import Field, field_validator

from mallowspo.files import digest, sha256_file
from mallowspo.settings import ModelSettings, PairsSettings, Section
from mallowspo.studies.settings import Study


class RewardTokens(Section):
    """How a prompt and an answer are read: as one text, which loses its beginning where it is too long."""

    template: Literal["plain", "chat"] = Field(
        default="chat",
        description="as in the comparison that it judges. plain: the answer continues the prompt; chat: the "
        "tokenizer's chat template, with the prompt as the user's turn",
    )
    max_tokens: int = Field(default=512, ge=2, description="of prompt and answer together")


class RewardTraining(Section):
    """The optimisation: AdamW, whose learning rate rises linearly, then falls linearly to 0."""

    epochs: int = Field(default=1, ge=1)
    learning_rate: float = Field(gt=0)
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    pairs_per_step: int = Field(ge=1, description="effective batch: pairs behind one optimizer step")
    tokens_per_batch: int = Field(
        default=1024,
        ge=1,
        description="tokens of both texts of each pair, padding included, in one forward and backward: the step's "
        "pairs are taken in parts that fit, a longer pair alone. For memory and speed",
    )
    checkpoint_every: int = Field(default=50, ge=1, description="optimizer steps between checkpoints")


class RewardModelStudy(Study):
    """A reward model, trained on the training pairs of a source and measured on its test pairs."""

    kind: Literal["reward_model"]
    model: ModelSettings
    tokens: RewardTokens = RewardTokens()
    pairs: PairsSettings = Field(description="as of a comparison; split.share keeps the two apart")
    training: RewardTraining
    seed: int = Field(default=0, description="of the score head's first weights and of the order of the pairs")
    confidence: float = Field(default=0.95, gt=0.5, lt=1)

    @field_validator("pairs")
    @classmethod
    def _pairs_are_there(cls, pairs: PairsSettings) -> PairsSettings:
        if pairs.on_policy:
            raise ValueError("a reward model is trained on pairs of hub: or path:, not on sampled ones")
        return pairs

    def input_files(self) -> list[str]:
        """The file of the pairs, where they come from one."""
        kind, _, place = self.pairs.source.partition(":")
        return [place] if kind == "path" else []

    def stage_digest(self, stage: str) -> str:
        """As every study's; "reward-model", the training, depends on no word of the page."""
        if stage != "reward-model":
            return super().stage_digest(stage)
        return digest(["reward-model", self._trained_by(), self.seed])

    @property
    def identity(self) -> str:
        """Digest of the settings, and of the file of the pairs."""
        return digest([super().identity, *map(sha256_file, self.input_files())])

    def _trained_by(self) -> dict[str, Any]:
        return self.model_dump(include={"model", "tokens", "pairs", "training"})
