"""Stage "report": tables, figures and one self-contained page, from the result files alone."""

from dataclasses import dataclass
from typing import Any

from mallowspo.evaluation.frontier import curves
from mallowspo.files import write_text
from mallowspo.layout import REFERENCE, Layout
from mallowspo.methods import METHODS
from mallowspo.report import (
    data_figures,
    displacement_table,
    effect_figure,
    explore,
    factorial_table,
    judge_table,
    kl_tables,
    measured_judge,
    outcome_figures,
    pair_table,
    second_judge,
    selection_table,
    signals_table,
    summary,
    tables,
    training_figures,
    training_path,
    variants,
)
from mallowspo.report.results import Results, read_results
from mallowspo.report.style import Look, Panel
from mallowspo.report.table import write_table
from mallowspo.report.template import environment
from mallowspo.report.words import number, plural, shown_text

ANSWER_CHARACTERS = 1500


@dataclass(frozen=True)
class Group:
    """Panels under one caption."""

    panels: list[Panel]
    caption: str


def run(view: Any, layout: Layout, settings_text: str) -> None:
    """Write tables/*.{csv,md,tex}, figures/*.{svg,pdf,csv} and report.html.

    Args:
        view: .title, .question, .report, .methods, .seeds, .evaluation of the experiment.
        layout: of the experiment; its benchmarks folder may be missing.
        settings_text: the resolved settings as YAML.

    Raises:
        InputError: a result file is missing or broken.
    """
    results = read_results(view, layout, settings_text)
    look = Look(results.methods)
    comparison = tables.comparison_table(results)
    pairs = pair_table.pair_table(results.pairs_by_group)
    shown = {
        "main": tables.main_table(results),
        "displacement": displacement_table.displacement_table(results),
        "kl": kl_tables.kl_table(results),
        "comparison": comparison,
        "interaction": tables.interaction_table(results),
        pair_table.NAME: pairs,
        "data_health": tables.health_table(results),
        "cost": tables.cost_table(results),
        "versions": tables.versions_table(results),
    }
    equal_kl = kl_tables.equal_kl_tables(results)
    by_condition = [variants.variants_table(results, of) for of in (variants.TEMPERATURE, variants.ALONG_TRAINING)]
    selected = selection_table.selection_tables(results)
    designed = [*selected, second_judge.second_judge_table(results), factorial_table.factorial_table(results)]
    designed.append(signals_table.signals_table(results))
    shown |= {table.name: table for table in (*equal_kl.values(), *by_condition, *designed) if table}
    runs = [(label, seed) for label in results.methods for seed in view.seeds]
    judged = judge_table.judge_table(layout, runs)
    if len(judged.numbers):
        shown[judged.name] = judged
    for table in shown.values():
        write_table(layout, table)
    template = environment().get_template("report.html.jinja")
    page = template.render(
        results=results,
        look=look,
        tables=shown,
        comparisons=tables.comparison_views(results, comparison),
        parts=tables.parts_view(comparison),
        pair_views=pair_table.pair_views(pairs),
        health=tables.health_view(shown["data_health"]),
        groups=_groups(results, look),
        methods=_methods(results),
        setup=_setup(results),
        headline=summary.headline(results),
        findings=summary.findings(results),
        cautions=summary.cautions(results),
        samples=_samples(results),
        explorer=explore.explorer(results, look),
        dispersion_examples=data_figures.dispersion_examples(results),
        test_name=_tests(results),
        families=_families(results),
        slopes=summary.slopes(results),
        slope_table=tables.interaction_view(results, shown["interaction"]),
        displacement_words=(displacement_table.HOW_TO_READ, displacement_table.DEFINITIONS),
        equal_kl_words={table.name: kl_tables.equal_kl_words(results, along) for along, table in equal_kl.items()},
        second_judge_words=second_judge.second_judge_words(results),
        selection_words=selection_table.selection_words(results),
        factorial_findings=factorial_table.factorial_findings(results),
        factorial_view=factorial_table.factorial_view,
        judged=judged,
        judge_words=judge_table.judge_words(layout, runs),
        label_words=judge_table.label_words(layout, runs),
        measured=[measured_judge.judge_sentences(name, layout) for name in _judges(view.evaluation)],
        made_by=f"mallowspo report {layout.experiment}",
        size=_size(results),
    )
    write_text(layout.report, page)


def _families(results: Results) -> str:
    """Which tests were corrected for together."""
    sizes = results.comparison.groupby("family", sort=False)["family_size"].first()
    return ", ".join(f"{plural(int(size), 'test')} ({family})" for family, size in sizes.items())


def _tests(results: Results) -> str:
    return "; ".join(dict.fromkeys(results.comparison["test"]))


def _size(results: Results) -> str:
    return f"n = {plural(results.n_prompts, 'test prompt')}, {plural(len(results.view.seeds), 'seed')} a method"


def _groups(results: Results, look: Look) -> dict[str, Group]:
    bars = f"Bars: {results.confidence} intervals; they cover {results.covers}."
    band = (
        f"Grey: differences too small to be found with 80 % power at this n. p-values in the table: {_tests(results)}; "
        "Holm's correction over all outcomes of all methods against the same baseline."
    )
    size = f"{_size(results)}."
    seeds = plural(len(results.view.seeds), "seed")
    steps = training_figures.steps_averaged(results)
    thinned = f" Each point is the mean of {steps} steps." if steps > 1 else ""
    pairs = len(results.displacement) // len(results.methods)
    groups = {
        f"forest_{baseline}": Group(
            outcome_figures.forest(results, look, baseline), f"{size} Benchmarks: n in the table. {bars} {band}"
        )
        for baseline in dict.fromkeys(results.comparison["baseline"])
    }
    joined = " Dotted: labels that differ in beta alone." if curves(results.view.methods) else ""
    groups["frontier"] = Group(
        outcome_figures.frontier(results, look),
        f"{size} Large: a method's mean, small: its runs. {bars} KL: mean over sampled answers of log π − log π_ref."
        f"{joined} No test.",
    )
    groups["win_rate"] = Group(
        outcome_figures.win_rates(results, look), f"{size} {bars} Dashed: even. Tests are in the table of differences."
    )
    groups["second_judge"] = Group(
        second_judge.second_judge_figure(results, look),
        f"{size} {bars} Dotted: equal gains. Tests are in the table.",
    )
    groups["temperatures"] = Group(
        variants.variants_figure(results, look, variants.TEMPERATURE),
        f"{size} {bars} Same draws at each temperature. No test.",
    )
    groups["along_training"] = Group(
        training_path.training_figure(results, look),
        f"{size} Large: the end of the training, small: on the way. Dotted: from the reference to the first policy "
        f"that was kept; nothing was measured there. {bars} No test.",
    )
    groups["learning"] = Group(
        training_figures.learning_curves(results, look),
        f"Training batches: n = {plural(int(results.curves['step'].max()), 'step')}, {seeds} a method. "
        "Thick: mean over seeds, thin: one seed."
        f"{thinned} No interval, no test.",
    )
    groups["displacement"] = Group(
        training_figures.displacement(results, look),
        f"n = {plural(pairs, 'held-out pair')} a method, each the mean over {seeds}; at most "
        f" {training_figures.SCATTER_POINTS} are drawn, the CSV has all. Cross: median. Dotted: both moved alike. "
        "No interval, no test.",
    )
    groups["dispersion"] = Group(
        data_figures.dispersion_histograms(results),
        f"n = {plural(len(results.dispersion), 'pair')}, training and test. Dashed: percentiles. No interval, no test. "
        + " ".join(data_figures.dispersion_words(results.dispersion_summary)),
    )
    groups["signals"] = Group(
        signals_table.signals_figure(results, look),
        f"n = {', '.join(map(str, dict.fromkeys(results.signals['n'])))} prompts (see the table); at most "
        f"{signals_table.DRAWN} are drawn, the CSV has all. Intervals and tests are in the table.",
    )
    groups["effect"] = Group(
        effect_figure.effect_by_dispersion(results, look),
        f"n = {plural(len(effect_figure.prompt_dispersion(results)), 'test prompt')} with test pairs, in fifths; "
        f"{seeds} a method. {bars} Test: r is Pearson's correlation of difference and dispersion over prompts, p from "
        "permuting the prompts; not corrected for several methods.",
    )
    return groups


def _judges(evaluation: Any) -> list[str]:
    """Of rewards, the second of them too, and of win rates; each once."""
    names = (evaluation.judge, evaluation.second_judge, evaluation.alpaca.judge)
    return list(dict.fromkeys(name for name in names if name))


def _judge(name: str) -> str:
    how_good = measured_judge.how_good(name)
    return f"{name}, which {how_good}" if how_good else name


def _methods(results: Results) -> list[dict[str, str]]:
    rows = []
    for label, settings in results.view.methods.items():
        method = METHODS[settings.method]
        options = ", ".join(f"{name} = {_told(value)}" for name, value in settings.options.items())
        rows.append(
            {
                "label": label,
                "method": settings.method,
                "beta": f"{settings.beta:g}",
                "options": options or "–",
                "weight": _weight(method.weight, settings.control),
                "margin": f"{_MARGINS[method.margin]}, {settings.options.get('length', 'sum')} over tokens",
                "formula": method.formula,
                "source": method.source,
            }
        )
    return rows


#: What a row's margin is called on the page.
_MARGINS = {
    "log_ratio": "log-ratio",
    "log_probability": "log-probability",
    "mixed": "log-ratio, share of the reference",
    "log_odds": "log-odds",
}


def _weight(weight: str, control: str) -> str:
    if control == "none":
        return weight
    return f"{weight}, outside the link" if control == "outside" else f"{weight}, {control.replace('_', '-')} (control)"


def _told(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _setup(results: Results) -> dict[str, str]:
    """The settings that matter most for reading the numbers."""
    settings = results.settings
    training, generation, evaluation = settings["training"], settings["generation"], settings["evaluation"]
    length = plural(training["max_steps"], "step") if training["max_steps"] else plural(training["epochs"], "epoch")
    tuned = f"LoRA of rank {training['lora']['rank']}" if training["lora"] else "all parameters"
    precisions = " and ".join(sorted(set(results.runs["precision"])))
    tasks = ", ".join(evaluation["lm_eval"]["tasks"]) if evaluation["lm_eval"] else "none"
    return {
        "Initial policy and reference": f"{settings['model']['source']} (matrix products in {precisions})",
        "Pairs": settings["pairs"]["source"],
        "Training": f"{length}, {tuned}, {training['optimizer']} at {training['learning_rate']:g} "
        f"({training['schedule']}), {plural(training['pairs_per_step'], 'pair')} a step",
        "Answers": f"{generation['answers']} a test prompt, temperature {generation['temperature']:g}"
        f"{''.join(f' (and {value:g})' for value in evaluation['temperatures'])}, "
        f"top-p {generation['top_p']:g}, at most {plural(generation['max_new_tokens'], 'token')}",
        "Judge": _judge(evaluation["judge"]),
        **({"Second judge": _judge(second)} if (second := evaluation["second_judge"]) else {}),
        "Benchmarks": tasks,
        "Size": f"{plural(results.n_prompts, 'test prompt')}; seeds {', '.join(map(str, results.view.seeds))}",
    }


def _samples(results: Results) -> list[dict[str, Any]]:
    """Prompts with the first answer of every policy, the reference first."""
    prompts = dict(zip(results.prompts["prompt_id"], results.prompts["prompt"], strict=True))
    return [
        {
            "prompt": shown_text(prompts[prompt_id], ANSWER_CHARACTERS),
            "answers": [
                {
                    "label": label,
                    "seed": 0 if label == REFERENCE else results.view.seeds[0],
                    "reward": number(answer["reward"]),
                    "text": shown_text(answer["output"], ANSWER_CHARACTERS),
                }
                for label, answer in answers.items()
            ],
        }
        for prompt_id, answers in results.answers.items()
    ]
