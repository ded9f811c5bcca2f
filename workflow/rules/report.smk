# Differences, their tests, tables, figures, the page, and the MLflow store.


rule compare:
    input:
        scores=scores,
        dispersion=PATH.dispersion,
        pairs=all_test_pairs,
        reference=all_test_references,
        # Read where evaluation.signals is set: prompts of the training pairs too.
        training=[PATH.pairs("train"), PATH.reference("train")],
    output:
        by_group=PATH.accuracy_by_group,
        estimates=PATH.estimates,
        frontier=PATH.frontier,
        variants=PATH.variants,
        comparison=PATH.comparison,
        interaction=PATH.interaction,
        second_opinion=PATH.second_opinion,
        factorial=PATH.factorial,
        tuning=PATH.tuning,
        selection=PATH.selection,
        signals=PATH.signals,
    log:
        PATH.log("compare"),
    benchmark:
        PATH.benchmark("compare")
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        call=call,
        depends=stage("compare"),
    shell:
        "mallowspo compare {params.call:q} > {log:q} 2>&1"


rule report:
    input:
        scores=scores,
        runs=runs,
        estimates=PATH.estimates,
        frontier=PATH.frontier,
        variants=PATH.variants,
        comparison=PATH.comparison,
        interaction=PATH.interaction,
        second_opinion=PATH.second_opinion,
        factorial=PATH.factorial,
        tuning=PATH.tuning,
        selection=PATH.selection,
        signals=PATH.signals,
        by_group=PATH.accuracy_by_group,
        dispersion=PATH.dispersion,
        dispersion_summary=PATH.dispersion_summary,
        health=PATH.data_health,
        pairs=[PATH.pairs("train"), PATH.pairs("test")],
        prompts=PATH.prompts,
        reference=[PATH.reference("train"), PATH.reference("test")],
        answers=answers,
        judges=measured_judges,
        judge=judge_on_labels,
    output:
        page=report(PATH.report, caption="../report/page.rst", category="Report"),
        tables=report(
            directory(PATH.tables), patterns=["{name}.csv"], caption="../report/tables.rst", category="Tables"
        ),
        figures=report(
            directory(PATH.figures), patterns=["{name}.svg"], caption="../report/figures.rst", category="Figures"
        ),
        settings=PATH.settings,
    log:
        PATH.log("report"),
    benchmark:
        PATH.benchmark("report")
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        call=call,
        depends=stage("report"),
    shell:
        "mallowspo report {params.call:q} > {log:q} 2>&1"


rule track:
    input:
        runs=runs,
        scores=scores,
        second_opinion=PATH.second_opinion,
        factorial=PATH.factorial,
        selection=PATH.selection,
        signals=PATH.signals,
        page=PATH.report,
        tables=PATH.tables,
        figures=PATH.figures,
        settings=PATH.settings,
    output:
        record=PATH.tracked,
    log:
        PATH.log("track"),
    benchmark:
        PATH.benchmark("track")
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        call=call,
        depends=stage("track"),
        store=STORE,
        bare_store=hide_credentials(WORKFLOW.store),
    shell:
        "mallowspo track {params.call:q} {params.store:q} > {log:q} 2>&1"


# No experiment needs it: `snakemake method_figures` draws the figures of docs/method.md again.
rule method_figures:
    input:
        code=[
            "mallowspo/method_figures.py",
            "mallowspo/mallows/pairwise.py",
            "mallowspo/objectives/links.py",
            "mallowspo/dispersion/weighting.py",
        ],
    output:
        figures=expand(
            "docs/images/method_{figure}.svg", figure=["links", "jump_and_smoothings", "weight_against_entropy"]
        ),
    log:
        f"{RESULTS}/logs/method_figures.log",
    benchmark:
        f"{RESULTS}/benchmarks/method_figures.tsv"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
        gpu=0,
    shell:
        "mallowspo method-figures > {log:q} 2>&1"
