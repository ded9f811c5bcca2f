"""The finding in plain sentences, from the comparison: what is clear, and what cannot be told at this size."""

import math
from dataclasses import dataclass
from typing import Any

from mallowspo.inference.resampling import TEST_NAME
from mallowspo.layout import REFERENCE
from mallowspo.metric_names import bare, is_benchmark, is_outcome
from mallowspo.report.results import Results
from mallowspo.report.table import rows_of
from mallowspo.report.words import fixed, interval, meaningful_decimals, metric_title, number, p_value, plural

#: An interval is told as narrow by luck where the detectable effect is more than so many times its half.
NARROW_BY_LUCK = 2.0
#: Longer lists of methods are told by their number.
MOST_NAMES = 6
#: Answers this many times as long (or short) as the reference's are pointed out: judges favour length.
NOTABLE_LENGTH_RATIO = 1.2


@dataclass(frozen=True)
class Finding:
    """What was asked, and for each method what the answer is."""

    title: str
    answers: list[tuple[str, str]]


def verdict(row: Any, alpha: float) -> str:
    """ "higher", "lower" or "cannot tell".

    Clear needs both a Holm p below alpha and an interval without zero. With several seeds both speak of the methods,
    with one seed of these trained policies only.
    """
    if row.p_holm < alpha and row.ci_low > 0:
        return "higher"
    if row.p_holm < alpha and row.ci_high < 0:
        return "lower"
    return "cannot tell"


def headline(results: Results) -> str:
    """The reward against the baseline, or against the reference where there is one method."""
    baseline = results.baseline if len(results.methods) > 1 else REFERENCE
    rows = _rows(results, baseline, "reward")
    verdicts = {row.method: verdict(row, _alpha(results)) for row in rows}
    parts = []
    for outcome in ("higher", "lower"):
        names = [method for method, found in verdicts.items() if found == outcome]
        if names:
            parts.append(f"{_listed(names)} {'is' if len(names) == 1 else 'are'} {outcome} than {baseline}")
    open_rows = [row for row in rows if verdicts[row.method] == "cannot tell"]
    if open_rows:
        untold = _untold([row.method for row in open_rows], len(rows))
        largest = fixed(max(row.detectable for row in open_rows), results.decimals("reward"))
        parts.append(
            f"this comparison cannot tell {untold} from {baseline}: at this size, "
            f"true differences below about {largest} would usually be missed"
        )
    return f"On reward, {'; '.join(parts)}. {_selected(results)}({_size(results)})"


def _untold(names: list[str], methods: int) -> str:
    if len(names) <= MOST_NAMES:
        return _listed(names)
    return f"any of the {methods} others" if len(names) == methods else f"the other {len(names)}"


def _selected(results: Results) -> str:
    """Each method at its best tuning run, where the experiment selects."""
    selected = results.selection
    contests = (
        rows_of(selected[(selected["metric"] == "reward") & selected["difference"].notna()]) if len(selected) else []
    )
    if not contests:
        return ""
    decimals, alpha = results.decimals("reward"), _alpha(results)
    told = [
        f"{row.group} {interval(row.difference, row.difference_low, row.difference_high, decimals, True)}"
        for row in contests
    ]
    clear = [row.group for row in contests if row.p_holm < alpha and not row.difference_low <= 0 <= row.difference_high]
    verdict_told = f"clear: {_listed(clear)}" if clear else "none is clear"
    return (
        f"Each at its best tuning run, selected by other prompts, minus {contests[0].baseline}: {', '.join(told)}; "
        f"{verdict_told} (smallest Holm p {p_value(min(row.p_holm for row in contests))}). "
    )


def findings(results: Results) -> list[Finding]:
    """One an outcome: against the baseline, then what training changed against the reference."""
    against_reference = [m for m in results.metrics() if m == "reward" or is_benchmark(m)]
    outcomes = [metric for metric in results.metrics() if is_outcome(metric)]
    asked = [(results.baseline, metric) for metric in outcomes] if len(results.methods) > 1 else []
    asked += [(REFERENCE, metric) for metric in (against_reference if asked else outcomes)]
    found = []
    for baseline, metric in asked:
        rows = _rows(results, baseline, metric)
        if rows:  # the reference has no win rate against published outputs
            title = f"{metric_title(metric)}, compared with {baseline} (n = {rows[0].n})"
            found.append(Finding(title, [(row.method, _told(results, row)) for row in rows]))
    return found


def cautions(results: Results) -> list[str]:
    """What a reader should know before quoting a number."""
    return [
        *_left_out(results),
        *_seed_caution(results),
        *_power_caution(results),
        *_luck_caution(results),
        *_length_caution(results),
        *_displacement_caution(results),
    ]


def _told(results: Results, row: Any) -> str:
    numbers = results.told(row, signed=True)
    found = verdict(row, _alpha(results))
    if found == "cannot tell":
        detectable = fixed(row.detectable, results.decimals(row.metric))
        told = f"cannot be told apart{_these_runs(results, row)}: {numbers} (detectable {detectable})"
        return told + _equal(results, row)
    return f"{found}: {numbers} (Holm p {_p(row.p_holm)})"


def _these_runs(results: Results, row: Any) -> str:
    """What is clear of the trained policies, where too few seeds leave the methods open."""
    p = results.p_of_these_runs[row.family, row.method, row.metric]
    if row.seeds == 1 or p >= _alpha(results):
        return ""
    side = "higher" if row.difference > 0 else "lower"
    return f" with {plural(row.seeds, 'seed')}, though these runs are {side} on new prompts (Holm p {_p(p)})"


def _equal(results: Results, row: Any) -> str:
    """The finding that there is no difference that matters, or what it would take to see one."""
    decimals = max(results.decimals(row.metric), 2)
    if row.p_equivalence < _alpha(results):
        return f"; equal within ±{fixed(row.equivalence_margin, decimals)} (p {_p(row.p_equivalence)})"
    if bare(row.metric) != "win_rate":
        return ""
    told = f"; to find two points with {plural(row.seeds, 'seed')}: {_amount(row.n_needed_two_points, 'prompt')}"
    if row.seeds > 1:
        told += f", on {plural(row.n, 'prompt')}: {_amount(row.seeds_needed_two_points, 'seed')}"
    return told


def _amount(needed: float, noun: str) -> str:
    return f"about {plural(int(needed), noun)}" if math.isfinite(needed) else f"no number of {noun}s is enough"


def slopes(results: Results) -> list[Finding]:
    """Does the gain depend on the prompt's dispersion? One finding an outcome, against the baseline."""
    baseline = results.baseline if len(results.methods) > 1 else REFERENCE
    table = results.interaction[results.interaction["baseline"] == baseline]
    found = []
    for metric in results.metrics():
        rows = rows_of(table[table["metric"] == metric]) if is_outcome(metric) else []
        if rows:
            title = f"{metric_title(metric)} minus {baseline}'s, by dispersion (n = {rows[0].n})"
            found.append(Finding(title, [(row.method, _told_slope(row, _alpha(results))) for row in rows]))
    return found


def _told_slope(row: Any, alpha: float) -> str:
    if math.isnan(row.slope):
        return str(row.note)
    decimals = meaningful_decimals([row.ci_high - row.ci_low])
    numbers = f"{interval(row.slope, row.ci_low, row.ci_high, decimals, True)} a standard deviation"
    found = verdict(row, alpha)
    if found == "cannot tell":
        return f"no dependence on dispersion can be told: {numbers} (Holm p {_p(row.p_holm)})"
    side = "larger" if found == "higher" else "smaller"
    return f"{side} on more dispersed prompts: {numbers} (Holm p {_p(row.p_holm)})"


def _p(value: float) -> str:
    text = p_value(value)
    return text if text.startswith("<") else f"= {text}"


def _left_out(results: Results) -> list[str]:
    """Sets of pairs that the experiment names and that were not there."""
    absent = results.view.evaluation.left_out
    if not absent:
        return []
    named = ", ".join(f"{name} ({source})" for name, source in absent.items())
    return [f"Left out, for its file was not there: {plural(len(absent), 'set')} of pairs, {named}."]


def _seed_caution(results: Results) -> list[str]:
    seeds = len(results.view.seeds)
    if seeds == 1:
        return ["One seed: the intervals say nothing about what another seed would give."]
    if seeds < 4:
        return [
            f"{plural(seeds, 'seed')}: the intervals speak of new seeds too, with the spread between seeds pooled over "
            "all methods. What a seed does to all methods alike is known from these few runs only, so an interval "
            "against the reference may be wide, and more seeds, not more prompts, would narrow it."
        ]
    return []


def _power_caution(results: Results) -> list[str]:
    """Too few prompts or resamples for any sign-flip p to become small: 2 of 2^n sign patterns, or of resamples + 1."""
    tested = results.comparison[results.comparison["test"] == TEST_NAME]
    outcomes = tested[tested["metric"].map(is_outcome).astype(bool)]
    resamples = results.view.evaluation.comparison.resamples
    prompts = plural(results.n_prompts, "prompt")
    told = []
    for baseline, family in outcomes.groupby("baseline", sort=False):
        floor = min(1.0, 2 * len(family) / min(2.0 ** int(family["n"].min()), resamples + 1))
        if floor >= _alpha(results):
            told.append(
                f"Compared with {baseline!s} no Holm p can fall below {number(floor)} with {prompts} and "
                f"{resamples:,} resamples: raise them, or nothing can be called clear."
            )
    return told


def _luck_caution(results: Results) -> list[str]:
    """Both go by the same variances, the interval as they turned out, the detectable effect as they are expected."""
    table = results.comparison[results.comparison["metric"].map(is_outcome).astype(bool)]
    halves = (table["ci_high"] - table["ci_low"]) / 2
    narrow = table[(halves > 0) & (table["detectable"] > NARROW_BY_LUCK * halves)]
    if narrow.empty:
        return []
    asked = narrow.groupby(["metric", "baseline"], sort=False)["method"]
    told = [f"{metric_title(str(metric))}, {_listed(list(own))} and {baseline}" for (metric, baseline), own in asked]
    return [
        f"Intervals that are narrow by luck ({'; '.join(told)}): the detectable effect is more than "
        f"{NARROW_BY_LUCK:g} times their half, because these runs happened to differ less than sampling their answers "
        "alone makes runs differ on average; in another experiment of this size such an interval would usually be "
        "wider, and the detectable effect goes by that."
    ]


def _length_caution(results: Results) -> list[str]:
    lengths = results.estimates[results.estimates["metric"] == "length"].set_index("method")["estimate"]
    ratios = (lengths / lengths[REFERENCE]).drop(REFERENCE)
    notable = ratios[(ratios > NOTABLE_LENGTH_RATIO) | (ratios < 1 / NOTABLE_LENGTH_RATIO)]
    told = [f"{method} {number(ratio)} times" for method, ratio in notable.items()]
    return [f"Answers changed length against the reference's: {', '.join(told)}. Judges favour length."] if told else []


def _displacement_caution(results: Results) -> list[str]:
    fell = (results.displacement["chosen_change"] < 0).groupby(results.displacement["method"], sort=False).mean()
    often = {str(method): float(share) for method, share in fell.items() if share > 0.5}
    if not often:
        return []
    told = {method: f"{method} on {often[method]:.0%}" for method in sorted(often, key=often.__getitem__)}
    if len(told) > MOST_NAMES:
        least, *_, most = told.values()
        words = f"{len(told)} policies, from {least} to {most}"
    else:
        words = ", ".join(told[method] for method in often)
    return [f"The chosen response itself became less probable than under the reference: {words} of held-out pairs."]


def _rows(results: Results, baseline: str, metric: str) -> list[Any]:
    table = results.comparison
    return rows_of(table[(table["baseline"] == baseline) & (table["metric"] == metric)])


def _alpha(results: Results) -> float:
    return float(1 - results.view.evaluation.comparison.confidence)


def _size(results: Results) -> str:
    return f"{plural(results.n_prompts, 'test prompt')}, {plural(len(results.view.seeds), 'seed')} a method"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
