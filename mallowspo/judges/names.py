"""Names of judges, checked without loading any.

A reward scores one answer; a judge says which of two answers to an instruction is better. Every reward is a judge
(the larger reward is better); the other kinds see both answers.
"""

import difflib
import re

#: Rewards that ship with the package: name in settings -> "module:function".
REWARDS = {
    "reward:vader": "mallowspo.judges.reward:vader",
    "reward:pattern": "mallowspo.judges.reward:pattern",
    "reward:vowels": "mallowspo.judges.reward:vowels",
}

_MODEL = r"(path:[^#]+|hub:[^@#\s]+@[^#\s]+)"
#: A sequence-classification model, and which of its numbers is the reward (a model of one number needs none named).
CLASSIFIER = re.compile(rf"^reward:{_MODEL}(#(?P<number>logit|probability)=(?P<label>\S+))?\Z")
FUNCTION = re.compile(r"^reward:[\w.]+:\w+\Z")
#: Judges of two answers.
PAIRWISE = re.compile(rf"^(logprob:{_MODEL}|openai:\S+|pairwise-table:.+)\Z")

KINDS = (
    "reward:NAME, reward:MODULE:FUNCTION, reward:path:FOLDER, reward:hub:ID@REVISION, logprob:path:FOLDER, "
    "logprob:hub:ID@REVISION, openai:MODEL, openai:ALPACAEVAL_ANNOTATOR, pairwise-table:FILE"
)


def check_reward_name(name: str) -> str:
    """The name of something that scores one answer.

    Raises:
        ValueError: with the nearest known name.
    """
    if name in REWARDS or CLASSIFIER.match(name) or (FUNCTION.match(name) and not _names_a_model(name)):
        return name
    if PAIRWISE.match(name):
        raise ValueError(
            f"'{name}' compares two answers and gives no reward for one; name it under evaluation.alpaca.judge"
        )
    raise ValueError(_unknown(name, "your own is reward:MODULE:FUNCTION"))


def check_judge_name(name: str) -> str:
    """The name of something that compares two answers: a reward, or a judge that sees both.

    Raises:
        ValueError: with the nearest known name.
    """
    if PAIRWISE.match(name):
        return name
    if not name.startswith("reward:"):
        raise ValueError(_unknown(name, f"kinds: {KINDS}"))
    return check_reward_name(name)


def model_of(name: str | None) -> str | None:
    """The folder that a judge's name gives as path:FOLDER, if it gives one."""
    found = re.fullmatch(r"(?:reward|logprob):path:([^#]+)(?:#.+)?", name or "")
    return found.group(1) if found else None


def is_a_model(name: str) -> bool:
    """Whether a reward is a model's, which takes memory and time."""
    return CLASSIFIER.match(name) is not None


def _names_a_model(name: str) -> bool:
    return name.split(":")[1] in ("path", "hub")


def _unknown(name: str, ways: str) -> str:
    match = difflib.get_close_matches(name, REWARDS, n=1, cutoff=0.5)
    hint = f"did you mean '{match[0]}'?" if match else f"known: {', '.join(REWARDS)};"
    return f"unknown judge '{name}'; {hint} {ways}"
