"""The report's tables: numbers for CSV, and the same rounded and with intervals for Markdown, LaTeX and the page."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from mallowspo.layout import REFERENCE
from mallowspo.metric_names import SECOND_REWARD, bare, is_benchmark, is_outcome, is_part
from mallowspo.report.results import Results
from mallowspo.report.table import Table, rows_of
from mallowspo.report.words import ABSENT, count, fixed, interval, meaningful_decimals, metric_title, number, p_value
from mallowspo.stage_reads import STAGE_READS

#: Column headings of the main table where the metric's title is long.
SHORT_TITLES = {SECOND_REWARD: "Second judge", "win_rate": "Win rate", "accuracy": "Accuracy", "kl": "KL (nats)"}


def main_table(results: Results) -> Table:
    """One row a policy, the reference first: outcomes, benchmarks, KL, length."""
    found = {(row.method, row.metric): row for row in rows_of(results.estimates)}
    shown_metrics = [metric for metric in results.metrics() if bare(metric) not in ("margin", "complete")]
    numbers, shown = [], []
    for label in results.labels:
        reward = found[label, "reward"]
        texts = {
            SHORT_TITLES.get(metric, metric_title(metric)): (
                results.told(found[label, metric]) if (label, metric) in found else ABSENT
            )
            for metric in shown_metrics
        }
        numbers.append(
            {"method": label, "seeds": reward.seeds, "n_prompts": reward.n, **_numbers(found, results, label)}
        )
        shown.append({"Method": label, **texts, "Prompts": count(reward.n), "Seeds": str(reward.seeds)})
    return Table("main", pd.DataFrame(numbers), pd.DataFrame(shown), ("Method",))


def _numbers(found: dict[tuple[str, str], Any], results: Results, label: str) -> dict[str, float]:
    def value(metric: str, column: str = "estimate") -> float:
        return float(getattr(found[label, metric], column)) if (label, metric) in found else math.nan

    bounds = {"": "estimate", "_ci_low": "ci_low", "_ci_high": "ci_high"} if SECOND_REWARD in results.metrics() else {}
    second = {f"{SECOND_REWARD}{end}": value(SECOND_REWARD, column) for end, column in bounds.items()}
    return {
        "reward": value("reward"),
        "reward_ci_low": value("reward", "ci_low"),
        "reward_ci_high": value("reward", "ci_high"),
        **second,
        "kl": value("kl"),
        "win_rate": value("win_rate"),
        "win_rate_ci_low": value("win_rate", "ci_low"),
        "win_rate_ci_high": value("win_rate", "ci_high"),
        "mean_length": value("length"),
        **{metric: value(metric) for metric in results.metrics() if is_benchmark(metric)},
    }


def comparison_table(results: Results) -> Table:
    """Every difference, outcomes first, with its p-values, the detectable effect and the equivalence test."""
    order = {metric: position for position, metric in enumerate(results.metrics())}
    rank = results.comparison["metric"].map(order)
    numbers = results.comparison.assign(rank=rank).sort_values(["rank"], kind="stable").drop(columns="rank")
    shown = pd.DataFrame(
        {
            "Metric": metric_title(row.metric),
            "Method": row.method,
            "Against": row.baseline,
            "Difference": results.told(row, signed=True),
            "p": p_value(row.p),
            "Holm p": p_value(row.p_holm),
            "BH p": p_value(row.p_bh),
            "p, these runs": p_value(row.p_policies),
            "p, equal": p_value(row.p_equivalence),
            "Margin": fixed(row.equivalence_margin, results.decimals(row.metric)),
            "Detectable": fixed(row.detectable, results.decimals(row.metric)),
            "n": count(row.n),
            "Seeds": str(row.seeds),
        }
        for row in rows_of(numbers)
    )
    return Table("comparison", numbers, shown, ("Metric", "Method", "Against"))


def comparison_views(results: Results, table: Table) -> dict[str, Table]:
    """The comparison for the page: outcomes only, one table a baseline (the files hold the rest)."""
    views = {}
    for baseline in dict.fromkeys(table.numbers["baseline"]):
        keep = [row.baseline == baseline and is_outcome(str(row.metric)) for row in rows_of(table.numbers)]
        shown = table.shown[keep].drop(columns="Against")
        views[baseline] = Table(table.name, table.numbers[keep], shown, ("Metric", "Method"))
    return views


def parts_view(table: Table) -> Table:
    """The parts of benchmark groups for the page: what the groups' numbers sum up."""
    keep = [is_part(str(row.metric)) for row in rows_of(table.numbers)]
    shown = table.shown[keep].drop(columns=["Holm p", "BH p"])
    return Table(table.name, table.numbers[keep], shown, ("Metric", "Method", "Against"))


def interaction_table(results: Results) -> Table:
    """Every slope of a difference on the prompt's dispersion, outcomes first."""
    order = {metric: position for position, metric in enumerate(results.metrics())}
    rank = results.interaction["metric"].map(order)
    numbers = results.interaction.assign(rank=rank).sort_values(["rank"], kind="stable").drop(columns="rank")
    shown = pd.DataFrame(
        {
            "Metric": metric_title(row.metric),
            "Method": row.method,
            "Against": row.baseline,
            "Slope": interval(row.slope, row.ci_low, row.ci_high, _slope_decimals(numbers, row.metric), True),
            "p": p_value(row.p),
            "Holm p": p_value(row.p_holm),
            "Rank r": fixed(row.rank_correlation, 2),
            "p of r, these runs": p_value(row.rank_p),
            "n": count(row.n),
            "Note": row.note,
        }
        for row in rows_of(numbers)
    )
    return Table("interaction", numbers, shown, ("Metric", "Method", "Against", "Note"))


def _slope_decimals(slopes: pd.DataFrame, metric: str) -> int:
    own = slopes[slopes["metric"] == metric]
    return meaningful_decimals(own["ci_high"] - own["ci_low"])


def interaction_view(results: Results, table: Table) -> Table:
    """The slopes for the page: outcomes against the baseline, or the reference where there is one method."""
    baseline = results.baseline if len(results.methods) > 1 else REFERENCE
    keep = [row.baseline == baseline and is_outcome(str(row.metric)) for row in rows_of(table.numbers)]
    shown = table.shown[keep].drop(columns="Against")
    if not shown["Note"].any():
        shown = shown.drop(columns="Note")
    return Table(table.name, table.numbers[keep], shown, ("Metric", "Method", "Note"))


def health_table(results: Results) -> Table:
    """What was checked in the data."""
    shown = pd.DataFrame(
        {
            "Check": str(row.check),
            "Split": str(row.split),
            "Count": count(row.count_),
            "Share": ABSENT if pd.isna(row.share) else f"{row.share:.2%}",
            "Note": "" if pd.isna(row.note) else str(row.note),
        }
        for row in rows_of(results.health.rename(columns={"count": "count_"}))
    )
    return Table("data_health", results.health, shown, ("Check", "Split", "Note"))


def health_view(table: Table) -> Table:
    """The data health for the page: both splits together (the files hold each)."""
    keep = (table.numbers["split"] == "all").to_numpy()
    return Table(table.name, table.numbers[keep], table.shown[keep].drop(columns="Split"), ("Check", "Note"))


def cost_table(results: Results) -> Table:
    """Wall time, processor time and memory of every stage and method, from Snakemake's benchmark files."""
    files = sorted((results.layout.root / "benchmarks").glob("*.tsv"))
    # What runs after the report, or is it, would differ each time that the report is made again.
    jobs = [_job(results, path) for path in files if path.stem not in ("report", "track")]
    columns = ["stage", "method", "jobs", "wall_seconds", "cpu_seconds", "peak_memory_mb"]
    if not jobs:
        return Table("cost", pd.DataFrame(columns=columns), pd.DataFrame(columns=columns), ("stage", "method"))
    orders = {"stage": list(STAGE_READS), "method": ["", *results.labels]}
    numbers = (
        pd.DataFrame(jobs)
        .sort_values(["stage", "method"], key=lambda column: column.map(_position_in(orders[str(column.name)])))
        .groupby(["stage", "method"], sort=False)
        .agg(
            jobs=("s", "size"),
            wall_seconds=("s", lambda column: column.sum(min_count=1)),
            cpu_seconds=("cpu_time", lambda column: column.sum(min_count=1)),
            peak_memory_mb=("max_rss", "max"),
        )
        .reset_index()
    )
    shown = pd.DataFrame(
        {
            "Stage": row.stage,
            "Method": row.method,
            "Jobs": count(row.jobs),
            "Wall (s)": number(row.wall_seconds),
            "CPU (s)": number(row.cpu_seconds),
            "Peak memory (MB)": count(row.peak_memory_mb),
        }
        for row in rows_of(numbers)
    )
    return Table("cost", numbers[columns], shown, ("Stage", "Method"))


def _position_in(order: list[str]) -> Callable[[str], int]:
    return lambda name: order.index(name) if name in order else len(order)


def versions_table(results: Results) -> Table:
    """Digests and versions; one that differs between runs shows all its values."""
    rows = [("settings digest", results.settings_digest)]
    rows += [(f"run digest {row.method} seed={row.seed}", str(row.digest)) for row in rows_of(results.runs)]
    values: dict[str, dict[str, None]] = {}
    for environment in results.runs["environment"]:
        for key, value in environment.items():
            values.setdefault(key, {})[value] = None
    rows += [(key, " | ".join(found)) for key, found in values.items()]
    table = pd.DataFrame(rows, columns=["what", "value"])
    return Table("versions", table, table.rename(columns={"what": "What", "value": "Value"}), ("What", "Value"))


def _job(results: Results, path: Path) -> dict[str, object]:
    """Times and memory of one job; stage and method from the file's name, such as train-dpo-0.tsv or pairs.tsv."""
    stage, *wildcards = path.stem.split("-")
    label = wildcards[0].partition("@")[0] if wildcards else ""
    method = label if label in results.labels else ""
    measured = pd.read_csv(path, sep="\t", na_values=["-", "NA"])
    times = {"s": measured["s"].mean(), "cpu_time": measured["cpu_time"].mean()}
    return {"stage": stage.replace("_", "-"), "method": method, **times, "max_rss": measured["max_rss"].max()}
