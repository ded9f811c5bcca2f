"""What the study found, in sentences that follow from the numbers; and its tables."""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pandas as pd

from mallowspo.dispersion_study.association import RankCorrelation, needed, power
from mallowspo.dispersion_study.people import CHOICE, Votes
from mallowspo.dispersion_study.rankings import CHOICE as FIRST_CHOICE
from mallowspo.dispersion_study.rankings import LIKELIHOOD, RANKING
from mallowspo.dispersion_study.tokens import BIGRAM_BY_PROMPT, DIFFER, EQUAL, SAMPLED_SUM
from mallowspo.report.table import Table
from mallowspo.report.words import count, fixed, p_value, plural

Row = Mapping[Any, Any]
#: The estimator of the official code, and our default: the one that the answer is given for.
DEFAULT = "entropy"
#: A rank correlation below it shares less than a tenth of the variance: too little to call one a measure of the other.
USEFUL = 0.3


def rho(value: float, low: float, high: float) -> str:
    """−0.05 [−0.10, 0.00]."""
    return f"{_two(value)} [{_two(low)}, {_two(high)}]"


def _two(value: float) -> str:
    # No minus before a zero.
    return fixed(round(value, 2) + 0.0, 2)


def _rho(result: RankCorrelation) -> str:
    return rho(result.rho, result.low, result.high)


def slug(name: str) -> str:
    """A name as the tracking store and file systems take it."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_").lower()


# (a) rankings


def ranking_findings(summary: pd.DataFrame, exact: pd.DataFrame) -> list[str]:
    """How well each form recovers -log phi, at the largest cell and at the fewest annotators."""
    items, most, fewest = summary["items"].max(), summary["annotators"].max(), summary["annotators"].min()
    best = {row["estimator"]: row for row in _cell(summary, items, most)}
    few = {row["estimator"]: row for row in _cell(summary, items, fewest)}
    law = exact[(exact["items"] == items) & (exact["estimator"] == FIRST_CHOICE)].iloc[0]
    first, likelihood = best[FIRST_CHOICE], best[LIKELIHOOD]
    return [
        f"Known rankings ({items} items, {most} annotators, n = {int(first['n'])} prompts): the entropy form orders "
        f"prompts by dispersion (ρ = {_told(first, 'rho')}), but is no straight line: calibrated, its slope on −log φ "
        f"is {_told(first, 'slope')} where 1 is right ({fixed(law['slope'], 2)} for the law itself, without chance). "
        f"Maximum likelihood: slope {_told(likelihood, 'slope')}, bias {_told(likelihood, 'bias')}, "
        f"ρ = {_told(likelihood, 'rho')}.",
        f"With {fewest} annotators the entropies look too small, people too much of one mind: the uncalibrated bias of "
        f"−log φ is {_told(few[FIRST_CHOICE], 'bias')} for the first choice, {_told(few[RANKING], 'bias')} for the "
        f"whole ranking, {_told(few[LIKELIHOOD], 'bias')} for maximum likelihood.",
    ]


def _cell(summary: pd.DataFrame, items: int, annotators: int) -> list[Row]:
    part = summary[(summary["items"] == items) & (summary["annotators"] == annotators)]
    return list(part.to_dict("records"))


def _told(row: Row, name: str) -> str:
    if pd.isna(row.get(f"{name}_low", math.nan)):
        return _two(row[name])
    return rho(row[name], row[f"{name}_low"], row[f"{name}_high"])


def ranking_table(summary: pd.DataFrame, exact: pd.DataFrame) -> Table:
    """Every cell; the law itself as infinitely many annotators."""
    numbers = pd.concat([summary, exact], ignore_index=True)
    order = {name: place for place, name in enumerate((LIKELIHOOD, FIRST_CHOICE, RANKING))}
    numbers = numbers.sort_values(
        ["items", "annotators", "estimator"],
        key=lambda column: column.map(order) if column.name == "estimator" else column,
    )
    shown = pd.DataFrame(
        {
            "Estimator": row["estimator"],
            "Items": str(row["items"]),
            "Annotators": "∞" if math.isinf(row["annotators"]) else count(row["annotators"]),
            "Slope, calibrated": _told(row, "slope"),
            "Bias, uncalibrated": _told(row, "bias"),
            "Error, calibrated": _told(row, "error"),
            "Spearman's ρ": _told(row, "rho"),
            "Constant": fixed(row["constant"], 2),
            "Capped": count(row.get("capped", math.nan)),
            "n": count(row["n"]),
        }
        for row in numbers.to_dict("records")
        # Two items have one entropy: of the first choice and of the ranking.
        if not (row["items"] == 2 and row["estimator"] == RANKING)
    )
    return Table("rankings", numbers, shown, ("Estimator",))


# (b) tokens


def token_findings(summary: pd.DataFrame) -> list[str]:
    """What the default measures, and where the bigram and the length-averaged forms go wrong."""
    differ, equal = (
        summary[summary["condition"] == name].set_index("estimator").to_dict("index") for name in (DIFFER, EQUAL)
    )
    n = int(differ[DEFAULT]["n"])
    return [
        f"Known token laws (n = {n} prompts): estimator entropy follows the true entropy a token, "
        f"ρ = {_told(differ[DEFAULT], 'rho_rate')}. Where answers differ in length it does not follow the entropy of "
        f"the whole answer, ρ = {_told(differ[DEFAULT], 'rho_sequence')} (equal lengths: "
        f"{_told(equal[DEFAULT], 'rho_sequence')}): dividing by the length removes what a longer answer leaves open.",
        f"The bigram loses the prompt: ρ with the true entropy a token is {_told(differ['bigram'], 'rho_rate')}, "
        f"though with the law of its own prompt it would be {_told(differ[BIGRAM_BY_PROMPT], 'rho_rate')}.",
        f"The official convention counts the template's header as answer, which dilutes short answers more: "
        f"ρ with the true entropy a token {_told(differ[_OFFICIAL], 'rho_rate')}.",
        "The sum over one pair's tokens instead of the mean brings the length back, with its chance: "
        f"ρ with the whole answer's entropy {_told(differ[_SUM], 'rho_sequence')}, and "
        f"{int(differ[_SUM]['above_one'])} of {n} indices above 1, where the weight is 0; over "
        f"sampled answers {_told(differ[SAMPLED_SUM], 'rho_sequence')}.",
    ]


_SUM, _OFFICIAL = "paper_sum, normaliser: vocabulary", "entropy, convention: official"


def token_table(summary: pd.DataFrame) -> Table:
    """Every condition and estimator."""
    shown = pd.DataFrame(
        {
            "Estimator": row["estimator"],
            "Condition": row["condition"],
            "ρ, entropy a token": _told(row, "rho_rate"),
            "ρ, whole answer": _told(row, "rho_sequence"),
            "Bias of the index": _told(row, "bias"),
            "Above 1": count(row["above_one"]),
            "n": count(row["n"]),
        }
        for row in summary.to_dict("records")
    )
    return Table("tokens", summary, shown, ("Estimator", "Condition"))


# (c) people


def headline(people: list[tuple[Votes, dict[str, RankCorrelation]]], tokens: pd.DataFrame, alpha: float) -> str:
    """The answer to the study's question."""
    row = tokens[(tokens["condition"] == DIFFER) & (tokens["estimator"] == DEFAULT)].iloc[0].to_dict()
    known = f"Of the model's own uncertainty a token, yes (ρ = {_told(row, 'rho_rate')} where it is known)."
    if not people:
        return f"{known} Of people's disagreement: not tested, no file of votes was there."
    parts = []
    for votes, found in people:
        result = found[DEFAULT]
        words = {
            "found": "yes" if result.rho >= USEFUL else "hardly",
            "trace": f"no more than a trace, gone when corrected for {len(found)} tests,",
            "none": "no relation was found",
            "against": "no, it runs the other way",
        }[verdict(result, alpha)]
        parts.append(f"{words} in {votes.name} ({_tested(result)}, n = {result.n:,} pairs)")
    return f"{known} Of people's disagreement: {'; '.join(parts)}."


def _tested(result: RankCorrelation) -> str:
    return f"ρ = {_rho(result)}, p {_equals(result.p)}, Holm p {_equals(result.p_holm)}"


def _equals(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"


def verdict(result: RankCorrelation, alpha: float) -> Literal["found", "trace", "none", "against"]:
    """trace: the interval leaves out 0, but the test corrected for all estimates does not reject."""
    if result.p_holm < alpha:
        return "found" if result.rho > 0 else "against"
    return "trace" if result.low > 0 or result.high < 0 else "none"


def implication(votes: Votes, found: dict[str, RankCorrelation], alpha: float) -> str:
    """What the default estimator's correlation says of the claim that entropy measures people's disagreement."""
    result = found[DEFAULT]
    most = max(abs(result.low), abs(result.high))
    kind = verdict(result, alpha)
    seen = {
        "found": "the model's entropy and the voters' go together",
        "trace": "only a trace of a relation between the model's entropy and the voters', not told from chance once "
        "corrected for the number of tests",
        "none": "no relation between the model's entropy and the voters' was found",
        "against": "the model's entropy and the voters' go opposite ways",
    }[kind]
    bound = (
        f"In {votes.name}, {seen}: {_tested(result)}. The interval allows at most a correlation of {_two(most)} in "
        f"size, {most**2:.1%} of the variance of the ranks."
    )
    if kind == "found" and result.rho >= USEFUL:
        return (
            f"{bound} For this model and these pairs the claim that low entropy means agreeing people holds in part: "
            "the weight of MallowsPO leans on something that goes with their agreement."
        )
    if most >= USEFUL:
        return (
            f"{bound} These pairs are too few to say more: neither is the claim that low entropy means agreeing people "
            "supported, nor is it refuted."
        )
    return (
        f"{bound} Whatever its sign, that is no measure of disagreement: for this model and these pairs the claim that "
        "low entropy means agreeing people is not supported, and the weight of MallowsPO cannot be read as how far "
        "people agree. What the weight gains in a training must come from something else until shown otherwise; the "
        "controls of a comparison (shuffled, inverted, length-matched weights) are there to tell. It does not follow "
        "that dispersion is of no use, only that this estimate of it is not people's."
    )


def people_sentences(votes: Votes, found: dict[str, RankCorrelation], effect: float, confidence: float) -> list[str]:
    """Power; the estimators that stand out; what holding the length fixed changes."""
    alpha, n = 1 - confidence, len(votes.table)
    first = alpha / len(found)
    result = found[DEFAULT]
    best = max(found, key=lambda name: abs(found[name].rho) if math.isfinite(found[name].rho) else 0.0)
    small = [name for name, other in found.items() if other.p_holm < alpha]
    return [
        f"Power: with {plural(n, 'pair')} a true correlation of {effect:g} is found {power(effect, n, alpha):.0%} of "
        f"the time by one test at {alpha:.2g}, {power(effect, n, first):.0%} at the first step of Holm's correction "
        f"over {plural(len(found), 'estimate')}; 80 % needs {needed(effect, alpha):,} and {needed(effect, first):,} "
        "pairs." + _ceiling(votes.reliability),
        f"After Holm's correction {_listed(small)} of {len(found)} estimates {'has' if len(small) == 1 else 'have'} "
        f"p below {alpha:.2g}{_names(small, found)}. Largest in size: {best}, "
        f"ρ = {_rho(found[best])}.",
        f"With the answers' length held fixed (partial rank correlation), estimator {DEFAULT} has "
        f"{rho(result.partial, result.partial_low, result.partial_high)}.",
        f"For comparison, asking the model the voters' own question (the entropy of its choice between the two "
        f"answers, from both log-probabilities) gives ρ = {_rho(found[CHOICE])}.",
    ]


def _ceiling(reliability: float) -> str:
    if math.isnan(reliability):
        return ""
    repeat = f" The votes themselves would repeat with ρ = {fixed(reliability, 2)} (split halves)"
    return f"{repeat}, so their noise hides little." if reliability > 0.8 else f"{repeat}: their noise hides much."


def _listed(names: list[str]) -> str:
    return str(len(names)) if names else "none"


def _names(names: list[str], found: dict[str, RankCorrelation]) -> str:
    def told(name: str) -> str:
        return f"{name}: ρ = {_two(found[name].rho)}, given length {_two(found[name].partial)}"

    return f" ({'; '.join(map(told, names))})" if names else ""


def people_table(votes: Votes, found: dict[str, RankCorrelation]) -> Table:
    """Every estimator against the voters."""
    numbers = pd.DataFrame([{"estimator": label, **vars(result)} for label, result in found.items()])
    shown = pd.DataFrame(
        {
            "Estimator": label,
            "Spearman's ρ": _rho(result),
            "p": p_value(result.p),
            "Holm p": p_value(result.p_holm),
            "Given length": rho(result.partial, result.partial_low, result.partial_high),
            "n": count(result.n),
        }
        for label, result in found.items()
    )
    return Table(f"people_{votes.name}", numbers, shown, ("Estimator",))


def numbers(
    rankings: pd.DataFrame, tokens: pd.DataFrame, people: list[tuple[Votes, dict[str, RankCorrelation]]]
) -> dict[str, float]:
    """Everything that two runs of the study may be compared by; what is not finite is left out."""
    found: dict[str, float] = {}
    for row in rankings.to_dict("records"):
        place = f"rankings/{row['items']}_items_{row['annotators']}_annotators/{slug(row['estimator'])}"
        found |= {f"{place}/{name}": float(row[name]) for name in ("slope", "bias", "rho")}
    for row in tokens.to_dict("records"):
        place = f"tokens/{slug(row['condition'])}/{slug(row['estimator'])}"
        found |= {f"{place}/{name}": float(row[name]) for name in ("rho_rate", "rho_sequence", "bias")}
    for votes, results in people:
        for label, result in results.items():
            place = f"people/{votes.name}/{slug(label)}"
            found |= {f"{place}/{name}": float(value) for name, value in vars(result).items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}
