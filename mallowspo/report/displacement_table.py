"""Did training move probability away from the chosen responses, and do the answers degenerate? One row a policy."""

import math

import pandas as pd

from mallowspo.evaluation.degeneration import REFUSAL_PHRASES
from mallowspo.report.results import Results
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import ABSENT, count, fixed, meaningful_decimals

#: metric of estimates.parquet -> heading. The first five are of held-out pairs, the others of answers.
HEADINGS = {
    "chosen_change": "Chosen (nats)",
    "rejected_change": "Rejected (nats)",
    "chosen_change_per_token": "Chosen, a token",
    "rejected_change_per_token": "Rejected, a token",
    "chosen_fell": "Chosen fell",
    "length": "Length (tokens)",
    "distinct_1": "Distinct-1",
    "distinct_2": "Distinct-2",
    "repetition": "Repeated 4-grams",
    "truncated": "Cut off",
    "refusal": "Refusals",
}

HOW_TO_READ = (
    "Both log-probabilities often fall, because the loss sees only their difference; it is a bad sign where answers "
    "also get much longer or shorter than the reference's, repeat themselves, are cut off or refuse."
)
DEFINITIONS = (
    "Chosen, rejected: mean change of log-probability against the reference on held-out pairs, of the whole response "
    "and per token. Chosen fell: share of prompts whose chosen responses became less probable. Distinct-1, distinct-2: "
    "share of an answer's token 1- and 2-grams that differ; repeated 4-grams: share that was there before in the "
    "answer. Cut off: share of answers that did not end by themselves. Refusals: share of answers that begin with one "
    f"of {len(REFUSAL_PHRASES)} phrases such as \N{LEFT DOUBLE QUOTATION MARK}{REFUSAL_PHRASES[0]}"
    "\N{RIGHT DOUBLE QUOTATION MARK}."
)


def displacement_table(results: Results) -> Table:
    """One row a policy, the reference first. The CSV has each metric with _low and _high, n_pairs and n_prompts.

    n_pairs counts prompts with held-out pairs, n_prompts test prompts: prompts are the unit of every interval.
    """
    found = {(row.method, row.metric): row for row in rows_of(_estimates(results.estimates))}
    decimals = {
        metric: meaningful_decimals(row.ci_high - row.ci_low for (_, name), row in found.items() if name == metric)
        for metric in HEADINGS
    }
    numbers, shown = [], []
    for label in results.labels:
        values: dict[str, float | str] = {"method": label}
        texts = {"Method": label}
        for metric, heading in HEADINGS.items():
            row = found.get((label, metric))
            bounds = (row.estimate, row.ci_low, row.ci_high) if row else (math.nan,) * 3
            values |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), bounds, strict=True))
            texts[heading] = _told(bounds, decimals[metric])
        pairs, prompts = found.get((label, "chosen_change")), found[label, "length"]
        numbers.append({**values, "n_pairs": pairs.n if pairs else 0, "n_prompts": prompts.n, "seeds": prompts.seeds})
        shown.append({**texts, "n (pairs)": count(pairs.n) if pairs else ABSENT, "n (answers)": count(prompts.n)})
    return Table("displacement", pd.DataFrame(numbers), pd.DataFrame(shown), ("Method",))


def _told(bounds: tuple[float, ...], decimals: int) -> str:
    """As `words.interval`, but with the column's decimals where nothing varies: a share of 0 is a result."""
    value, low, high = (fixed(bound, decimals) for bound in bounds)
    return value if low in (high, ABSENT) else f"{value} [{low}, {high}]"


def _estimates(estimates: pd.DataFrame) -> pd.DataFrame:
    """With completeness turned into its opposite."""
    complete = estimates[estimates["metric"] == "complete"]
    cut_off = complete.assign(
        metric="truncated",
        estimate=1 - complete["estimate"],
        ci_low=1 - complete["ci_high"],
        ci_high=1 - complete["ci_low"],
    )
    return pd.concat([estimates, cut_off], ignore_index=True)
