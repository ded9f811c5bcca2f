"""How far each policy went from the reference, by each estimator, and methods compared at equal KL."""

import math
from typing import Any

import pandas as pd

from mallowspo.evaluation.frontier import BETA, EQUAL_KL, HYPERVOLUME, HYPERVOLUME_GAIN, TRAINING
from mallowspo.evaluation.kl import K1, K3, K3_BY_TOKEN
from mallowspo.report.results import Results
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import ABSENT, count, fixed, interval, meaningful_decimals, number

#: What each measure of frontier.parquet is called on the page.
TITLES = {EQUAL_KL: "Reward at equal KL", HYPERVOLUME: "Hypervolume", HYPERVOLUME_GAIN: "Gain in hypervolume"}
#: What a curve is made of -> name of its table; what a point is; what it is made of; the points beside a point.
CURVES = {
    BETA: ("equal_kl", "label", "the labels that differ in beta alone", "betas"),
    TRAINING: ("equal_kl_along_training", "policy", "the policies along a method's training, the last included",
               "shares"),
}  # fmt: skip
#: Estimators of the KL, and their columns on the page.
HEADINGS = {K1: "KL, k1 (nats)", K3: "k3 of answers", K3_BY_TOKEN: "k3 of tokens"}


def kl_table(results: Results) -> Table:
    """One row a method: beta, and the KL by each estimator with its interval and standard error."""
    found = {(row.method, row.metric): row for row in rows_of(results.estimates)}
    numbers, shown = [], []
    for label in results.methods:
        beta = results.view.methods[label].beta
        values, texts = {"method": label, "beta": beta}, {"Method": label, "Beta": f"{beta:g}"}
        for name, title in HEADINGS.items():
            row = found[label, name]
            values |= {name: row.estimate, f"{name}_standard_error": row.standard_error}
            values |= {f"{name}_ci_low": row.ci_low, f"{name}_ci_high": row.ci_high}
            texts |= {title: f"{results.told(row)} ± {fixed(row.standard_error, results.decimals(name))}"}
        numbers.append({**values, "n_prompts": row.n, "seeds": row.seeds})
        shown.append({**texts, "n": count(row.n), "Seeds": str(row.seeds)})
    return Table("kl", pd.DataFrame(numbers), pd.DataFrame(shown), ("Method",))


def equal_kl_tables(results: Results) -> dict[str, Table]:
    """Methods compared at equal KL, by what a curve is made of; none where no method has a curve."""
    found = {}
    for along, (name, *_) in CURVES.items():
        rows = results.frontier[results.frontier["along"] == along]
        if len(rows):
            shown = pd.DataFrame([_shown(rows, row) for row in rows_of(rows)])
            found[along] = Table(name, rows, shown, ("Measure", "Method", "Against", "Note"))
    return found


def equal_kl_words(results: Results, along: str) -> str:
    """How to read a table."""
    _, point, made_of, neighbours = CURVES[along]
    rows = results.frontier[results.frontier["along"] == along]
    largest = rows.loc[rows["measure"] == HYPERVOLUME, "kl"].max()
    return (
        f"A curve is made of {made_of}. Reward at equal KL: the {point}'s reward minus that of the baseline's curve at "
        f"the {point}'s own KL, on the line between the two neighbouring {neighbours}; none beyond the curve's ends. "
        "Hypervolume: area under the best reward reached by each KL, above the reference's, from KL 0 to "
        f"{number(float(largest))} nats, the largest mean KL of any curve. In brackets: {results.confidence} "
        "interval by a bootstrap over prompts and seeds, too narrow with two unlike seeds; no test, and no correction "
        f"for several rows. Outside: share of resamples in which the {point} left the curve's ends."
    )


def _shown(table: pd.DataFrame, row: Any) -> dict[str, str]:
    own = table[table["measure"] == row.measure]
    decimals = meaningful_decimals(own["ci_high"] - own["ci_low"])
    signed = row.measure != HYPERVOLUME
    missing = math.isnan(row.estimate)
    bounds = (row.estimate, row.ci_low, row.ci_high)
    return {
        "Measure": TITLES[row.measure],
        "Method": row.method,
        "Against": row.against or ABSENT,
        "KL (nats)": number(row.kl),
        "Result": ABSENT if missing else interval(*bounds, decimals, signed),
        "Outside": ABSENT if math.isnan(row.outside) else f"{row.outside:.0%}",
        "n": count(row.n),
        "Seeds": str(row.seeds),
        "Note": row.note,
    }
