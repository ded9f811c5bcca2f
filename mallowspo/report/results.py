"""Everything that the report shows, read from the result files alone."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mallowspo.compare_values import Values, read_values
from mallowspo.errors import InputError
from mallowspo.files import read_json, read_jsonl, read_parquet
from mallowspo.inference import holm
from mallowspo.layout import REFERENCE, Layout
from mallowspo.metric_names import OUTCOMES, bare, is_benchmark, is_part
from mallowspo.report.words import interval, meaningful_decimals
from mallowspo.settings import Experiment

HEALTH_COLUMNS = ("check", "split", "count", "share", "note")


@dataclass(frozen=True)
class Results:
    """One experiment's results.

    Attributes:
        settings: the resolved settings, as values; `view` holds the part that the report may read, typed.
        values: metric -> label -> table (prompts, seeds), see `mallowspo.compare_values.read_values`.
        estimates, comparison, interaction, frontier, variants, pairs_by_group, second_opinion, factorial, tuning,
            selection, signals: as stage "compare" wrote them.
        curves: metrics of every optimizer step, with method and seed.
        dispersion: a row a pair, with split, prompt, chosen and rejected; dispersion_summary: dispersion.json.
        displacement: a row a method and held-out pair: change of both log-probabilities (nats) from the reference.
        runs: a row a run, its summary.json and the flattened environment.json.
        health: a row a check of the data.
        prompts, test_pairs: test prompts with their texts; pair_id and prompt_id of the held-out pairs.
        answers: prompt_id -> label -> first answer of the first seed, with its reward.
    """

    view: Any
    layout: Layout
    settings_text: str
    settings: dict[str, Any]
    values: Values
    estimates: pd.DataFrame
    comparison: pd.DataFrame
    interaction: pd.DataFrame
    frontier: pd.DataFrame
    variants: pd.DataFrame
    pairs_by_group: pd.DataFrame
    second_opinion: pd.DataFrame
    factorial: pd.DataFrame
    tuning: pd.DataFrame
    selection: pd.DataFrame
    signals: pd.DataFrame
    curves: pd.DataFrame
    dispersion: pd.DataFrame
    dispersion_summary: dict[str, Any]
    displacement: pd.DataFrame
    runs: pd.DataFrame
    health: pd.DataFrame
    prompts: pd.DataFrame
    test_pairs: pd.DataFrame
    answers: dict[str, dict[str, dict[str, Any]]]

    @property
    def methods(self) -> list[str]:
        return list(self.view.methods)

    @property
    def labels(self) -> list[str]:
        """The reference and all methods."""
        return [REFERENCE, *self.methods]

    @property
    def baseline(self) -> str:
        return str(self.view.evaluation.comparison.baseline)

    @property
    def confidence(self) -> str:
        """Such as "95 %"."""
        return f"{100 * self.view.evaluation.comparison.confidence:g} %"

    @property
    def covers(self) -> str:
        """What the intervals of the methods speak of."""
        return "new prompts and new seeds" if len(self.view.seeds) > 1 else "new prompts, not another seed"

    @property
    def n_prompts(self) -> int:
        return len(self.values["reward"][REFERENCE])

    @property
    def settings_digest(self) -> str:
        return str(Experiment.model_validate(self.settings).identity)

    def decimals(self, metric: str) -> int:
        """Decimals for all means, differences and intervals of a metric."""
        return self._decimals.get(metric, meaningful_decimals([]))

    @cached_property
    def _decimals(self) -> dict[str, int]:
        widths: dict[str, list[float]] = {}
        for table in (self.estimates, self.comparison):
            for metric, width in zip(table["metric"], table["ci_high"] - table["ci_low"], strict=True):
                widths.setdefault(metric, []).append(width)
        return {metric: meaningful_decimals(own) for metric, own in widths.items()}

    @cached_property
    def p_of_these_runs(self) -> dict[tuple[str, str, str], float]:
        """(family, method, metric) -> Holm's p of the sign flips: do these trained policies differ?"""
        table = self.comparison
        adjusted = table.groupby("family")["p_policies"].transform(holm)
        return dict(zip(zip(table["family"], table["method"], table["metric"], strict=True), adjusted, strict=True))

    def told(self, row: Any, signed: bool = False) -> str:
        """A row of estimates or comparison as text: its mean or difference, and interval."""
        value = row.difference if hasattr(row, "difference") else row.estimate
        return interval(value, row.ci_low, row.ci_high, self.decimals(row.metric), signed)

    def metrics(self) -> list[str]:
        """Metrics in reading order: outcomes first, then benchmarks, then the descriptions; no parts of benchmarks."""
        order = [*OUTCOMES, "benchmark", "kl", "length", "margin", "complete"]
        found = {m: "benchmark" if is_benchmark(m) else bare(m) for m in sorted(set(self.estimates["metric"]))}
        return [m for kind in order for m, own in found.items() if own == kind and not is_part(m)]


def read_results(view: Any, layout: Layout, settings_text: str) -> Results:
    """Read all files.

    Raises:
        InputError: a file is missing or broken, or estimates.parquet is of other methods than the settings.
    """
    runs = [(label, seed) for label in view.methods for seed in view.seeds]
    estimates = read_parquet(layout.estimates)
    missing = sorted(set(view.methods) - set(estimates["method"]))
    if missing:
        raise InputError(f"{layout.estimates}: no method '{missing[0]}'; run stage compare again")
    prompts = read_parquet(layout.prompts)
    return Results(
        view=view,
        layout=layout,
        settings_text=settings_text,
        settings=yaml.safe_load(settings_text),
        values=read_values(view, layout),
        estimates=estimates,
        comparison=read_parquet(layout.comparison),
        interaction=read_parquet(layout.interaction),
        frontier=read_parquet(layout.frontier),
        variants=read_parquet(layout.variants),
        pairs_by_group=read_parquet(layout.accuracy_by_group),
        second_opinion=read_parquet(layout.second_opinion),
        factorial=read_parquet(layout.factorial),
        tuning=read_parquet(layout.tuning),
        selection=read_parquet(layout.selection),
        signals=read_parquet(layout.signals),
        curves=_curves(layout, runs),
        dispersion=_dispersion(layout),
        dispersion_summary=read_json(layout.dispersion_summary),
        displacement=_displacement(layout, runs),
        runs=pd.DataFrame([_run(layout, label, seed) for label, seed in runs]),
        health=_health(layout.data_health),
        prompts=prompts,
        test_pairs=read_parquet(layout.pairs("test"))[["pair_id", "prompt_id"]],
        # In the order of their ids: those are digests, so nobody chose them.
        answers=first_answers(
            layout, [REFERENCE, *view.methods], view.seeds[0], sorted(prompts["prompt_id"])[: view.report.examples]
        ),
    )


def _curves(layout: Layout, runs: list[tuple[str, int]]) -> pd.DataFrame:
    parts = []
    for label, seed in runs:
        path = layout.run(label, seed) / "metrics.jsonl"
        rows = pd.DataFrame(read_jsonl(path))
        if rows.empty:
            raise InputError(f"{path}: holds no step; train the run again")
        parts.append(rows.assign(method=label, seed=seed))
    return pd.concat(parts, ignore_index=True)


def _dispersion(layout: Layout) -> pd.DataFrame:
    texts = pd.concat([read_parquet(layout.pairs(split)) for split in ("train", "test")])
    columns = ["pair_id", "prompt", "chosen", "rejected"]
    return read_parquet(layout.dispersion).merge(texts[columns], on="pair_id", how="left", validate="one_to_one")


def _displacement(layout: Layout, runs: list[tuple[str, int]]) -> pd.DataFrame:
    reference = read_parquet(layout.reference("test")).set_index("pair_id")
    parts = []
    for label, seed in runs:
        path = layout.scores(label, seed) / "pairs.parquet"
        policy = read_parquet(path).set_index("pair_id")
        lost = policy.index.difference(reference.index)
        if len(lost):
            raise InputError(f"{path}: pair {lost[0]} is not in {layout.reference('test')}; run stage reference again")
        sides = {
            f"{side}_change": policy[f"{side}_logp"] - reference.loc[policy.index, f"{side}_logp"]
            for side in ("chosen", "rejected")
        }
        parts.append(pd.DataFrame(sides).reset_index().assign(method=label))
    together = pd.concat(parts)
    return together.groupby(["method", "pair_id"], sort=False).mean().reset_index()


def _run(layout: Layout, label: str, seed: int) -> dict[str, Any]:
    folder = layout.run(label, seed)
    return {
        "method": label,
        "seed": seed,
        **read_json(folder / "summary.json"),
        "environment": flatten(read_json(folder / "environment.json")),
    }


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested keys joined by spaces, values as text; what is empty is left out."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key} ")
        elif value not in (None, "", []):
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _health(path: Path) -> pd.DataFrame:
    checks = read_json(path)
    try:
        return pd.DataFrame([{key: check[key] for key in HEALTH_COLUMNS} for check in checks])
    except (TypeError, KeyError) as error:
        raise InputError(
            f"{path}: expected a list of {', '.join(HEALTH_COLUMNS)} ({error}); run stage pairs again"
        ) from None


def first_answers(
    layout: Layout, labels: list[str], seed: int, prompt_ids: Collection[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """prompt_id -> label -> the first answer of the run with this seed (the reference has one run), with its reward."""
    found: dict[str, dict[str, dict[str, Any]]] = {prompt_id: {} for prompt_id in prompt_ids}
    for label in labels:
        run = (label, 0 if label == REFERENCE else seed)
        score = read_parquet(layout.scores(*run) / "score.parquet")
        first = score[(score["metric"] == "reward") & (score["answer_index"] == 0)]
        rewards = dict(zip(first["prompt_id"], first["value"], strict=True))
        for row in read_jsonl(layout.samples(*run)):
            if row["answer_index"] == 0 and row["prompt_id"] in found:
                found[row["prompt_id"]][label] = {**row, "reward": rewards[row["prompt_id"]]}
    return found
