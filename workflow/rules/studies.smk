# Experiments that are no comparison: one job computes and draws, one puts the numbers into the MLflow store.

for name in STUDIES:
    for warning in EXPERIMENTS[name].warnings():
        print(f"mallowspo: {name}: {warning}", file=sys.stderr)


# The training of a reward model, apart from its page, which can be drawn again without it. Checkpoints lie in
# training/work, which is no output: a killed job goes on from there.
rule reward_model:
    input:
        model=model_folder,
        sources=lambda wildcards: EXPERIMENTS[wildcards.experiment].input_files(),
    output:
        model=directory(PATH.reward_model),
        train=PATH.pairs("train"),
        test=PATH.pairs("test"),
        metrics=PATH.reward_model_training / "metrics.jsonl",
        summary=PATH.reward_model_training / "summary.json",
    log:
        PATH.log("reward_model"),
    benchmark:
        PATH.benchmark("reward_model")
    wildcard_constraints:
        experiment=one_of(REWARD_MODELS),
    threads: threads_beside(1)
    resources:
        mem_mb=memory_of,
        runtime=minutes_of,
        gpu=gpus_of,
    params:
        call=call,
        depends=reward_model_depends,
    shell:
        "mallowspo reward-model {params.call:q} --threads {threads} > {log:q} 2>&1"


rule study:
    input:
        model=model_folder,
        trained=trained_reward_model,
        sources=lambda wildcards: EXPERIMENTS[wildcards.experiment].input_files(),
    output:
        page=report(PATH.report, caption="../report/study.rst", category="Report"),
        tables=report(
            directory(PATH.tables), patterns=["{name}.csv"], caption="../report/study_files.rst", category="Tables"
        ),
        figures=report(
            directory(PATH.figures), patterns=["{name}.svg"], caption="../report/study_files.rst", category="Figures"
        ),
        settings=PATH.settings,
        numbers=PATH.study,
    log:
        PATH.log("study"),
    benchmark:
        PATH.benchmark("study")
    wildcard_constraints:
        experiment=one_of(STUDIES),
    threads: threads_beside(1)
    resources:
        mem_mb=memory_of,
        runtime=minutes_of,
        gpu=gpus_of,
    params:
        call=call,
        depends=study_depends,
    shell:
        "mallowspo study {params.call:q} --threads {threads} > {log:q} 2>&1"


rule track_study:
    input:
        page=PATH.report,
        tables=PATH.tables,
        figures=PATH.figures,
        settings=PATH.settings,
        numbers=PATH.study,
    output:
        record=PATH.tracked,
    log:
        PATH.log("track"),
    benchmark:
        PATH.benchmark("track")
    wildcard_constraints:
        experiment=one_of(STUDIES),
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        call=call,
        depends=lambda wildcards: code_digest("track"),
        store=STORE,
        bare_store=hide_credentials(WORKFLOW.store),
    shell:
        "mallowspo track {params.call:q} {params.store:q} > {log:q} 2>&1"
