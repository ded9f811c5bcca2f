"""What is measured on the test prompts and pairs, and how it is compared."""

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mallowspo.evaluation.design_settings import FactorialSettings, SelectionSettings
from mallowspo.judges.names import check_judge_name, check_reward_name
from mallowspo.judges.settings import JudgeSettings
from mallowspo.sections import LABEL, Section


class LocalTaskData(Section):
    """Files in place of the data set of one of lm-eval's own tasks; JSON or JSONL, plain or .gz, its columns."""

    test: str = Field(description="the items")
    fewshot: str | None = Field(
        default=None, description="the examples; default: the other items, the one that is asked left out"
    )


class LmEvalSettings(Section):
    """Tasks of lm-evaluation-harness."""

    tasks: list[str] = Field(
        min_length=1, description="of lm-eval or of include_path; openllm and leaderboard are lm-eval's own groups"
    )
    include_path: str | None = Field(default=None, description="folder of task files; a built-in task needs none")
    data: dict[str, LocalTaskData] = Field(
        default={}, description="built-in task -> its data in files, where the hub is out of reach"
    )
    limit: int | None = Field(default=None, ge=1)
    num_fewshot: int | None = Field(default=None, ge=0)
    chat_template: bool = False
    batch_size: int = Field(default=16, ge=1)


class ComparisonSettings(Section):
    """How differences are tested."""

    baseline: str = "dpo"
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=9999, ge=99)
    seed: int = 0
    share_margin: float = Field(default=0.02, gt=0, description="smaller differences of a share count as none")
    standard_margin: float = Field(
        default=0.1, gt=0, description="the same of anything else, in the baseline's standard deviations over prompts"
    )


class OtherPairsSettings(Section):
    """A set of pairs on which no policy was trained: may come from elsewhere than the held-out ones."""

    source: str = Field(pattern=r"^(hub:[^@\s]+@[^\s]+|path:.+)$", description="hub:ID@REVISION or path:FILE")
    hub_split: str = "test"
    hub_data_dir: str | None = Field(default=None, description="folder inside the hub data set; default: all of it")
    max_pairs: int | None = Field(default=1000, ge=1, description="keep that many pairs, by seeded draw; null: all")
    seed: int = 0
    max_unusable_share: float = Field(default=0.05, ge=0, le=1, description="stop when more rows cannot be used")
    where_absent: Literal["stop", "skip"] = Field(
        default="stop",
        description="of a file that is not there and cannot be fetched; skip: leave the set out, and say so",
    )

    @model_validator(mode="after")
    def _a_file_may_be_absent(self) -> "OtherPairsSettings":
        if self.where_absent == "skip" and not self.source.startswith("path:"):
            raise ValueError("where_absent: skip is for path: sources; whether the hub answers is not known beforehand")
        return self


class AlpacaSettings(Section):
    """Win rates, by AlpacaEval's own code."""

    judge: str | None = Field(default=None, description="says which of two answers is better; default: the reward")
    settings: JudgeSettings = JudgeSettings()
    against: list[str] = Field(
        default=["baseline"],
        description="besides the reference policy: baseline (the comparison's), path:FILE or hub:ID@REVISION!FILE with "
        "a published model's outputs to the same instructions",
    )
    difficulty: str | None = Field(
        default=None, description="AlpacaEval's df_gamed.csv, for the official length-controlled win rate"
    )

    @field_validator("judge")
    @classmethod
    def _judge(cls, value: str | None) -> str | None:
        return value and check_judge_name(value)

    @field_validator("against")
    @classmethod
    def _against(cls, value: list[str]) -> list[str]:
        for name in value:
            if not re.fullmatch(r"baseline|path:.+|hub:[^@\s]+@[^!\s]+!.+", name):
                raise ValueError(f"'{name}' is none of baseline, path:FILE, hub:ID@REVISION!FILE")
        return value


class EvaluationSettings(Section):
    """What is measured on the test prompts and pairs."""

    judge: str = Field(description="the reward: scores every answer; also AlpacaEval's judge unless alpaca.judge is")
    second_judge: str | None = Field(
        default=None,
        description="another reward, that no pair was chosen by: scores the same answers, so that a gain that only the "
        "first judge sees shows",
    )
    alpaca: AlpacaSettings = AlpacaSettings()
    judge_labels: str | None = Field(
        default=None,
        description="pairs with human labels (JSON, JSONL or .gz of input, output_1, output_2, label 1 or 2), on which "
        "the judge of the win rates is measured",
    )
    kl_answers: int = Field(default=1, ge=1, description="answers to each prompt behind the KL estimate")
    temperatures: list[float] = Field(
        default=[], description="sample and reward answers at these too, besides generation.temperature"
    )
    left_out: dict[str, str] = Field(
        default={},
        description="sets of other_pairs whose file is absent, with their sources: filled in when settings are read",
    )
    other_pairs: dict[str, OtherPairsSettings] = Field(
        default={}, description="further sets of pairs by name: implicit accuracy, margin and calibration on each"
    )
    signals: bool = Field(
        default=False,
        description="the beta of each held-out pair under methods that have one (lb_dpo, epsilon_dpo, beta_dpo at "
        "level instance), and its rank correlation with the dispersion weight",
    )
    lm_eval: LmEvalSettings | None = None
    comparison: ComparisonSettings = ComparisonSettings()
    factorial: FactorialSettings | None = None
    selection: SelectionSettings | None = None

    @field_validator("judge")
    @classmethod
    def _judge(cls, value: str) -> str:
        return check_reward_name(value)

    @field_validator("second_judge")
    @classmethod
    def _second_judge(cls, value: str | None) -> str | None:
        return value and check_reward_name(value)

    @model_validator(mode="after")
    def _judges_fit(self) -> "EvaluationSettings":
        if self.second_judge == self.judge:
            raise ValueError(f"second_judge is the first judge ({self.judge}); name another, or remove it")
        if self.selection and self.selection.outcome == "second_reward" and self.second_judge is None:
            raise ValueError("selection.outcome second_reward needs a second_judge; name one, or another outcome")
        return self

    @field_validator("temperatures")
    @classmethod
    def _temperatures(cls, values: list[float]) -> list[float]:
        if min(values, default=0) < 0 or len(set(values)) != len(values):
            raise ValueError("must be 0 or more, and each may appear once")
        return values

    @field_validator("other_pairs")
    @classmethod
    def _other_pairs(cls, sets: dict[str, OtherPairsSettings]) -> dict[str, OtherPairsSettings]:
        for name in sets:
            if not re.fullmatch(LABEL, name) or name in ("train", "test"):
                raise ValueError(f"name '{name}' must be lower-case letters, digits and _, and not train or test")
        return sets

    def warnings(self) -> list[str]:
        """What the terminal says before the workflow runs: parts that cannot be run here."""
        return [
            f"evaluation.other_pairs.{name} is left out: {source} is not there and cannot be fetched"
            for name, source in self.left_out.items()
        ]
