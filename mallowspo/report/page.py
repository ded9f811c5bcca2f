"""Stage "report": tables, figures and one self-contained page, from the result files alone."""

from typing import Any

from mallowspo.files import write_text
from mallowspo.layout import REFERENCE, Layout
from mallowspo.report import (
    compared,
    data_figures,
    displacement_table,
    explore,
    factorial_table,
    groups,
    judge_table,
    kl_tables,
    measured_judge,
    pair_table,
    second_judge,
    selection_table,
    signals_table,
    summary,
    tables,
    variants,
)
from mallowspo.report.results import Results, read_results
from mallowspo.report.style import Look
from mallowspo.report.table import Table, write_table
from mallowspo.report.template import environment
from mallowspo.report.words import number, plural, shown_text

ANSWER_CHARACTERS = 1500


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
    look, runs = Look(results.methods), _runs(results)
    shown = _tables(results, layout)
    for table in shown.values():
        write_table(layout, table)
    template = environment().get_template("report.html.jinja")
    page = template.render(
        results=results,
        look=look,
        tables=shown,
        comparisons=tables.comparison_views(results, shown["comparison"]),
        parts=tables.parts_view(shown["comparison"]),
        pair_views=pair_table.pair_views(shown[pair_table.NAME]),
        health=tables.health_view(shown["data_health"]),
        groups=groups.groups(results, look),
        methods=compared.methods(results),
        setup=compared.setup(results),
        headline=summary.headline(results),
        findings=summary.findings(results),
        cautions=summary.cautions(results),
        samples=_samples(results),
        explorer=explore.explorer(results, look),
        dispersion_examples=data_figures.dispersion_examples(results),
        test_name=groups.tests(results),
        families=_families(results),
        slopes=summary.slopes(results),
        slope_table=tables.interaction_view(results, shown["interaction"]),
        displacement_words=(displacement_table.HOW_TO_READ, displacement_table.DEFINITIONS),
        equal_kl_words={
            name: kl_tables.equal_kl_words(results, along)
            for along, (name, *_) in kl_tables.CURVES.items()
            if name in shown
        },
        second_judge_words=second_judge.second_judge_words(results),
        selection_words=selection_table.selection_words(results),
        factorial_findings=factorial_table.factorial_findings(results),
        factorial_view=factorial_table.factorial_view,
        judged=shown.get(judge_table.NAME),
        judge_words=judge_table.judge_words(layout, runs),
        label_words=judge_table.label_words(layout, runs),
        measured=[measured_judge.judge_sentences(name, layout) for name in compared.judges(view.evaluation)],
        made_by=f"mallowspo report {layout.experiment}",
        size=groups.size(results),
    )
    write_text(layout.report, page)


def _tables(results: Results, layout: Layout) -> dict[str, Table]:
    """Every table of the page by its name; one that has nothing to say is left out."""
    always = {
        "main": tables.main_table(results),
        "displacement": displacement_table.displacement_table(results),
        "kl": kl_tables.kl_table(results),
        "comparison": tables.comparison_table(results),
        "interaction": tables.interaction_table(results),
        pair_table.NAME: pair_table.pair_table(results.pairs_by_group),
        "data_health": tables.health_table(results),
        "cost": tables.cost_table(results),
        "versions": tables.versions_table(results),
    }
    judged = judge_table.judge_table(layout, _runs(results))
    where_asked = [
        *kl_tables.equal_kl_tables(results).values(),
        *(variants.variants_table(results, of) for of in (variants.TEMPERATURE, variants.ALONG_TRAINING)),
        *selection_table.selection_tables(results),
        second_judge.second_judge_table(results),
        factorial_table.factorial_table(results),
        signals_table.signals_table(results),
        judged if len(judged.numbers) else None,
    ]
    return always | {table.name: table for table in where_asked if table}


def _runs(results: Results) -> list[tuple[str, int]]:
    return [(label, seed) for label in results.methods for seed in results.view.seeds]


def _families(results: Results) -> str:
    """Which tests were corrected for together."""
    sizes = results.comparison.groupby("family", sort=False)["family_size"].first()
    return ", ".join(f"{plural(int(size), 'test')} ({family})" for family, size in sizes.items())


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
