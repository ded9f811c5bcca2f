"""Rewards: functions of (prompts, answers) that give one number an answer; larger is better."""

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mallowspo.errors import InputError
from mallowspo.files import sha256_file
from mallowspo.judges.judge import NO_PREFERENCE, Judgement, Question
from mallowspo.judges.local_model import model_content
from mallowspo.judges.names import CLASSIFIER, REWARDS, check_reward_name, is_a_model, model_of

Reward = Callable[[Sequence[str], Sequence[str]], list[float]]


@cache
def _vader_analyser() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


def vader(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """VADER's compound sentiment of each answer, in [-1, 1] (Hutto and Gilbert 2014); the prompt is not read."""
    return [float(_vader_analyser().polarity_scores(answer)["compound"]) for answer in answers]


@cache
def _pattern_analyser() -> Any:
    from textblob.en import sentiment

    return sentiment


def pattern(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """The polarity of each answer by the lexicon of the library pattern (De Smedt and Daelemans 2012) as textblob ships
    it, in [-1, 1]; the prompt is not read. A mean over the words that the lexicon knows, where VADER's is a sum."""
    return [float(_pattern_analyser()(answer)[0]) for answer in answers]


def vowels(prompts: Sequence[str], answers: Sequence[str]) -> list[float]:
    """Share of vowels among an answer's characters, in [0, 1]: a reward that a made-up model can learn."""
    return [sum(character in "aeiou" for character in answer.lower()) / max(1, len(answer)) for answer in answers]


def load_reward(name: str) -> Reward:
    """The reward behind a judge's name (`reward:vader`, `reward:MODULE:FUNCTION`, `reward:path:FOLDER`)."""
    try:
        target = REWARDS.get(check_reward_name(name), name.removeprefix("reward:"))
    except ValueError as error:
        raise InputError(str(error)) from None
    if CLASSIFIER.match(name):
        from mallowspo.judges.classifier import load_classifier

        return load_classifier(name)
    module, _, function = target.partition(":")
    try:
        reward: Reward = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"judge '{name}' could not be loaded: {error}") from None
    return reward


def judge_answers(
    name: str, prompts: Sequence[str], answers: Sequence[str], reward: Reward | None = None, first: int = 0
) -> list[float]:
    """Rewards of all answers.

    Args:
        reward: what `name` stands for, where it is loaded already.
        first: number of the first answer's row, which errors count from.

    Raises:
        InputError: when the judge raises, or gives another number of values, or values that are not finite;
            the first such rows are named. No row is dropped.
    """
    reward = reward or load_reward(name)
    try:
        values = [float(value) for value in reward(prompts, answers)]
    except Exception as error:
        raise InputError(f"judge '{name}' failed: {type(error).__name__}: {error}") from error
    if len(values) != len(answers):
        raise InputError(f"judge '{name}' gave {len(values)} values for {len(answers)} answers")
    failed = [row for row, value in enumerate(values, start=first) if not math.isfinite(value)]
    if failed:
        raise InputError(
            f"judge '{name}' gave no finite value for {len(failed)} of {len(answers)} answers (rows {failed[:5]}): "
            f"first answer {answers[failed[0] - first][:60]!r}"
        )
    return values


def reward_content(name: str) -> dict[str, Any]:
    """What a reward depends on besides its name: digests of its files. No model is loaded; one of the hub has its
    revision in its name."""
    folder = model_of(name)
    if folder:
        return model_content(Path(folder))
    return {} if is_a_model(name) else {"code": sha256_file(_file_of(load_reward(name)))}


def _file_of(reward: Reward) -> Path:
    """Where a function, or the class of a callable object, is written."""
    return Path(inspect.getfile(reward if inspect.isroutine(reward) else type(reward)))


class RewardJudge:
    """Prefers the answer with the larger reward; equal rewards are a tie. It sees one answer at a time, so order
    cannot sway it.

    Args:
        name: of the reward.
        known: rewards that are at hand, of (instruction, answer); only others are computed.
    """

    deterministic = True
    batch = 1024
    concurrency = 1

    def __init__(self, name: str, known: dict[tuple[str, str], float] | None = None):
        self.name = name
        self.rewards = dict(known or {})
        self._reward = load_reward(name)
        # What a classifier depends on is its files; what a function depends on is at least the file it stands in.
        self.content: dict[str, Any] = getattr(self._reward, "content", None) or {
            "code": sha256_file(_file_of(self._reward))
        }

    def ask(self, questions: Sequence[Question]) -> list[Judgement]:
        shown = [
            (question.instruction, answer) for question in questions for answer in (question.first, question.second)
        ]
        missing = [key for key in dict.fromkeys(shown) if key not in self.rewards]
        if missing:
            instructions, answers = zip(*missing, strict=True)
            found = judge_answers(self.name, list(instructions), list(answers), self._reward)
            self.rewards.update(zip(missing, found, strict=True))
        return [self._compare(question) for question in questions]

    def cost(self, question: Question) -> tuple[int, int]:
        return 0, 0

    def _compare(self, question: Question) -> Judgement:
        first, second = (self.rewards[question.instruction, answer] for answer in (question.first, question.second))
        preference = NO_PREFERENCE if first == second else 1.0 if first > second else 2.0
        return Judgement(preference, raw=f"{first:.8g} against {second:.8g}")
