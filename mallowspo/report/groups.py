"""The figures of a report, under one caption a group."""

from dataclasses import dataclass

from mallowspo.evaluation.frontier import curves
from mallowspo.report import (
    data_figures,
    effect_figure,
    outcome_figures,
    second_judge,
    signals_table,
    training_figures,
    training_path,
    variants,
)
from mallowspo.report.results import Results
from mallowspo.report.style import Look, Panel
from mallowspo.report.words import plural


@dataclass(frozen=True)
class Group:
    """Panels under one caption."""

    panels: list[Panel]
    caption: str


def groups(results: Results, look: Look) -> dict[str, Group]:
    """Draw every figure of the report.

    Returns:
        Groups by name, as report.html.jinja places them; one without panels is left out there.
    """
    return {
        **_differences(results, look),
        **_outcomes(results, look),
        **_training(results, look),
        **_data(results, look),
    }


def size(results: Results) -> str:
    """n = 80 test prompts, 3 seeds a method."""
    return f"n = {plural(results.n_prompts, 'test prompt')}, {_seeds(results)} a method"


def tests(results: Results) -> str:
    """Names of the tests behind the p-values, each once."""
    return "; ".join(dict.fromkeys(results.comparison["test"]))


def _seeds(results: Results) -> str:
    return plural(len(results.view.seeds), "seed")


def _bars(results: Results) -> str:
    return f"Bars: {results.confidence} intervals; they cover {results.covers}."


def _differences(results: Results, look: Look) -> dict[str, Group]:
    caption = (
        f"{size(results)}. Benchmarks: n in the table. {_bars(results)} "
        f"Grey: differences too small to be found with 80 % power at this n. p-values in the table: {tests(results)}; "
        "Holm's correction over all outcomes of all methods against the same baseline."
    )
    return {
        f"forest_{baseline}": Group(outcome_figures.forest(results, look, baseline), caption)
        for baseline in dict.fromkeys(results.comparison["baseline"])
    }


def _outcomes(results: Results, look: Look) -> dict[str, Group]:
    measured = f"{size(results)}. {_bars(results)}"
    joined = " Dotted: labels that differ in beta alone." if curves(results.view.methods) else ""
    return {
        "frontier": Group(
            outcome_figures.frontier(results, look),
            f"{size(results)}. Large: a method's mean, small: its runs. {_bars(results)} "
            f"KL: mean over sampled answers of log π − log π_ref.{joined} No test.",
        ),
        "win_rate": Group(
            outcome_figures.win_rates(results, look),
            f"{measured} Dashed: even. Tests are in the table of differences.",
        ),
        "second_judge": Group(
            second_judge.second_judge_figure(results, look),
            f"{measured} Dotted: equal gains. Tests are in the table.",
        ),
        "temperatures": Group(
            variants.variants_figure(results, look, variants.TEMPERATURE),
            f"{measured} Same draws at each temperature. No test.",
        ),
        "along_training": Group(
            training_path.training_figure(results, look),
            f"{size(results)}. Large: the end of the training, small: on the way. Dotted: from the reference "
            f"to the first policy that was kept; nothing was measured there. {_bars(results)} No test.",
        ),
    }


def _training(results: Results, look: Look) -> dict[str, Group]:
    steps = training_figures.steps_averaged(results)
    thinned = f" Each point is the mean of {steps} steps." if steps > 1 else ""
    pairs = len(results.displacement) // len(results.methods)
    return {
        "learning": Group(
            training_figures.learning_curves(results, look),
            f"Training batches: n = {plural(int(results.curves['step'].max()), 'step')}, {_seeds(results)} a method. "
            f"Thick: mean over seeds, thin: one seed.{thinned} No interval, no test.",
        ),
        "displacement": Group(
            training_figures.displacement(results, look),
            f"n = {plural(pairs, 'held-out pair')} a method, each the mean over {_seeds(results)}; at most "
            f"{training_figures.SCATTER_POINTS} are drawn, the CSV has all. Cross: median. Dotted: both moved alike. "
            "No interval, no test.",
        ),
    }


def _data(results: Results, look: Look) -> dict[str, Group]:
    prompts = len(effect_figure.prompt_dispersion(results))
    return {
        "dispersion": Group(
            data_figures.dispersion_histograms(results),
            f"n = {plural(len(results.dispersion), 'pair')}, training and test. Dashed: percentiles. No interval, no "
            f"test. {' '.join(data_figures.dispersion_words(results.dispersion_summary))}",
        ),
        "signals": Group(
            signals_table.signals_figure(results, look),
            f"n = {', '.join(map(str, dict.fromkeys(results.signals['n'])))} prompts (see the table); at most "
            f"{signals_table.DRAWN} are drawn, the CSV has all. Intervals and tests are in the table.",
        ),
        "effect": Group(
            effect_figure.effect_by_dispersion(results, look),
            f"n = {plural(prompts, 'test prompt')} with test pairs, in fifths; {_seeds(results)} a method. "
            f"{_bars(results)} Test: r is Pearson's correlation of difference and dispersion over prompts, p from "
            "permuting the prompts; not corrected for several methods.",
        ),
    }
