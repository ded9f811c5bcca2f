"""How the prompts of a source are shared out."""

from pydantic import Field, model_validator

from mallowspo.sections import Section


class ShareSettings(Section):
    """Some parts of a source's prompts; another experiment with other parts of as many shares no prompt with it."""

    of: int = Field(ge=2, description="in so many parts, by a draw that goes by the prompt and by no seed")
    parts: list[int] = Field(min_length=1, description="the parts that are taken, counted from 1")

    @model_validator(mode="after")
    def _parts_exist(self) -> "ShareSettings":
        if sorted(set(self.parts)) != self.parts or self.parts[0] < 1 or self.parts[-1] > self.of:
            raise ValueError(f"parts must rise from 1 to {self.of} at most, each once")
        return self


class TextsSettings(Section):
    """Texts in place of pairs, cut in two: the beginning is the prompt."""

    column: str = Field(default="text", description="that holds the text")
    least_words: int = Field(default=2, ge=1, description="of a beginning; how many it has is drawn by the text")
    most_words: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> "TextsSettings":
        if self.most_words < self.least_words:
            raise ValueError("most_words must be at least least_words")
        return self


class SplitSettings(Section):
    """Split by prompt: no prompt is in both parts."""

    share: ShareSettings | None = Field(
        default=None, description="take a share of the prompts only, such as {of: 3, parts: [1, 2]}; default: all"
    )
    column: str | None = Field(default=None, description="column that says train or test; else test_fraction decides")
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    seed: int = 0
