"""Kind "bandit": train, compare, draw, and say what was found."""

from pathlib import Path

import numpy as np
import pandas as pd

from mallowspo.bandits import figures, tables
from mallowspo.bandits.compare import collapse, collapse_table, controls_table, methods_table
from mallowspo.bandits.findings import cautions, findings, numbers
from mallowspo.bandits.runs import Runs, run_all
from mallowspo.bandits.settings import BanditStudy
from mallowspo.files import write_parquet
from mallowspo.layout import Layout
from mallowspo.report.words import plural
from mallowspo.studies.result import Section, StudyResult


def run(settings: BanditStudy, layout: Layout, model_folder: Path | None) -> StudyResult:
    """The whole study; also writes tables/runs.parquet, the outcomes of every seed and beta."""
    runs = run_all(settings)
    write_parquet(layout.tables / "runs.parquet", runs.values)
    controls = {stage: controls_table(runs, settings, stage) for stage in ("end", "early")}
    methods = methods_table(runs, settings, "mallows")
    bradley_terry = methods_table(runs, settings, "bradley_terry")
    ratios = {count: collapse(runs, "mallows", count) for count in settings.comparisons}
    sections = [
        _setting(settings, runs, layout),
        _cause(settings, controls["end"], layout),
        *_frontiers(settings, runs, layout),
        _collapse(settings, runs, layout),
        _early(settings, controls["early"]),
        _methods(settings, runs, methods, ratios, layout),
        _bradley_terry(settings, bradley_terry, runs),
    ]
    return StudyResult(
        findings(settings, runs, controls, methods, bradley_terry, ratios),
        cautions(settings, methods),
        sections,
        numbers(settings, runs, controls, methods, ratios),
    )


def _setting(settings: BanditStudy, runs: Runs, layout: Layout) -> Section:
    contexts = plural(len(settings.phis), "context")
    return Section(
        "Setting",
        [
            f"A context is to a policy here what a prompt is to a language model. Each of {contexts} has a central "
            "ranking of the arms and a dispersion phi; a comparison shows two arms drawn by lot, and the preferred "
            "one is drawn by Kendall's exact pairwise probability. Rewards, KL and preferences are sums over arms: "
            "no sampling noise.",
            "Weights are -log phi of the context over its mean, so 1 on average. Oracle: of the true phi. Estimated: "
            "the posterior mean of -log phi given the context's own comparisons, every central ranking and every phi "
            "alike before them.",
        ],
        [figures.estimates(runs, settings, layout)],
        f"Mean over {settings.seeds} seeds, bars: 5 to 95 % of them. Dotted: estimate and truth alike. No test.",
        tables.settings_table(settings),
    )


def _cause(settings: BanditStudy, controls: pd.DataFrame, layout: Layout) -> Section:
    panels = [
        figures.controls(controls, layout, outcome, count, "end")
        for outcome in ("reward", "win_rate")
        for count in settings.comparisons
    ]
    return Section(
        "Is dispersion the cause?",
        [
            "MallowsPO-theta against DPO with the same mean effective beta, and against itself with the same weights "
            "given to other comparisons (shuffled), dealt to other contexts, inverted (the largest to the least "
            "weighted), or moved outside the link. Dispersion is called the cause where theta is clearly above all of "
            "the first four: a control that changes nothing but which context has which weight must lose.",
            "At the same KL: each seed's frontier over beta, interpolated and averaged over the KLs of "
            f"{_listed(settings.kl_targets)} nats that both reach in every seed. Nothing is extrapolated.",
        ],
        panels,
        _tested(settings, len(controls)),
        tables.controls_view("controls", controls),
    )


def _frontiers(settings: BanditStudy, runs: Runs, layout: Layout) -> list[Section]:
    caption = (
        f"n = {settings.seeds} seeds; one point a beta ({_listed(settings.betas)}, from right to left). Bars: "
        "t-intervals over seeds. Dashed: controls. No test here."
    )
    reward, accuracy = (
        [
            figures.frontier(runs, settings, layout, outcome, count)
            for outcome in outcomes
            for count in settings.comparisons
        ]
        for outcomes in (("reward", "win_rate"), ("accuracy",))
    )
    return [
        Section("Reward against KL", [], reward, caption),
        Section(
            "Accuracy against KL",
            ["The trade-off of accuracy and regularisation: does the policy order the arms like the central ranking?"],
            accuracy,
            caption,
        ),
    ]


def _collapse(settings: BanditStudy, runs: Runs, layout: Layout) -> Section:
    table = collapse_table(runs, settings)
    return Section(
        "Reward collapse",
        [
            "The learned reward of an arm is beta log(policy / reference). Collapse: its spread over the arms is the "
            "same however much people agree. Without collapse it falls as phi grows, context by context.",
        ],
        [figures.collapse(runs, settings, layout, count) for count in settings.comparisons],
        f"n = {settings.seeds} seeds; bands: t-intervals over seeds. Table: the spread of learned rewards in the most "
        "dispersed context over that in the least dispersed (1 is collapse), and the rank correlation of spread and "
        f"agreement over all contexts (1 is none). {_tested(settings, len(table))}",
        tables.collapse_view(table),
    )


def _early(settings: BanditStudy, controls: pd.DataFrame) -> Section:
    return Section(
        "Stopped early",
        [
            f"The same after {settings.training.early_steps} of {settings.training.steps} steps. Language models are "
            "tuned for an epoch or two, far from the optimum: there a weight acts as the size of a gradient, while "
            "at the optimum it acts as a beta of the context.",
        ],
        [],
        _tested(settings, len(controls)),
        tables.controls_view("controls_early", controls),
    )


def _methods(
    settings: BanditStudy,
    runs: Runs,
    methods: pd.DataFrame,
    ratios: dict[int, dict[str, np.ndarray]],
    layout: Layout,
) -> Section:
    return Section(
        "All methods",
        [
            "Every row of the table of methods, oracle weights where it takes any. Responses have one token, so sums "
            "and means over tokens are one, and some rows become others, as the table says.",
        ],
        [figures.methods(methods, layout, count) for count in settings.comparisons],
        _tested(settings, len(methods)),
        tables.methods_view("methods", methods, settings, ratios, tables.same_policies(runs, "mallows")),
    )


def _bradley_terry(settings: BanditStudy, methods: pd.DataFrame, runs: Runs) -> Section:
    ratios = {count: collapse(runs, "bradley_terry", count) for count in settings.comparisons}
    return Section(
        "Bradley-Terry",
        [
            "The same draws under the law that DPO assumes. A place of the ranking is worth "
            f"-{settings.exponent} log phi, so that neighbours are as clearly apart as under Mallows.",
        ],
        [],
        _tested(settings, len(methods)),
        tables.methods_view("bradley_terry", methods, settings, ratios, tables.same_policies(runs, "bradley_terry")),
    )


def _tested(settings: BanditStudy, rows: int) -> str:
    return (
        f"n = {settings.seeds} seeds. {settings.confidence:.0%} intervals from {settings.resamples:,} resamples of "
        f"seeds; p: paired sign-flip test over seeds, two-sided, Holm's correction over the {rows} rows of its table."
    )


def _listed(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
