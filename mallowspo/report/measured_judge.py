"""How good the judge of a comparison is, where it is a reward model that an experiment of this package trained."""

import math

from mallowspo.files import read_json, read_parquet
from mallowspo.judges.names import model_of
from mallowspo.layout import Layout
from mallowspo.report.words import interval, plural


def how_good(judge: str | None) -> str:
    """Its accuracy on held-out pairs in a few words; empty where its experiment left none beside it."""
    place = _experiment_of(judge)
    if place is None:
        return ""
    numbers = read_json(place.study)["numbers"]
    right, low, high = (100 * numbers.get(f"accuracy{bound}", math.nan) for bound in ("", "_low", "_high"))
    pairs = plural(int(numbers["pairs"]), "held-out pair")
    level = f"{numbers['confidence']:.0%} interval"
    return f"prefers the chosen answer on {interval(right, low, high, 1)} % of {pairs} ({level})"


def judge_sentences(judge: str | None, layout: Layout) -> str:
    """The same as sentences, with how many of the comparison's prompts it was trained on."""
    place = _experiment_of(judge)
    if place is None:
        return ""
    judged = set(read_parquet(layout.prompts)["prompt_id"])
    for split in ("train", "test"):
        judged |= set(read_parquet(layout.pairs(split))["prompt_id"])
    seen = len(judged & set(read_parquet(place.pairs("train"))["prompt_id"]))
    apart = f"{seen:,}, so keep them apart (pairs.split.share)" if seen else "none"
    return f"The judge {judge} {how_good(judge)}. Of this comparison's prompts it was trained on {apart}."


def _experiment_of(judge: str | None) -> Layout | None:
    """Of the reward model, where its page is there."""
    folder = model_of(judge)
    place = Layout.of_reward_model(folder) if folder else None
    if place is None or not place.study.exists() or not place.pairs("train").exists():
        return None
    return place if read_json(place.study)["kind"] == "reward_model" else None
