# From a model and a source of pairs to checked, split pairs.


# Where the internet is: on a cluster, the machine that Snakemake runs on.
localrules:
    fetch_data,


# Public data that an experiment reads from data/ and that is not there yet (config/data.yaml).
rule fetch_data:
    output:
        file=DATA / "{data_file}",
    log:
        f"{RESULTS}/logs/fetch_data-{{data_file}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_data-{{data_file}}.tsv"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=60,
        gpu=0,
    params:
        sha256=lambda wildcards: DATA_FILES[wildcards.data_file].sha256,
    shell:
        "mallowspo fetch-data {wildcards.data_file:q} > {log:q} 2>&1"


rule model:
    input:
        starting_policy,
    output:
        folder=directory(layout("").model("{model_key}")),
    log:
        f"{RESULTS}/models/{{model_key}}.log",
    benchmark:
        f"{RESULTS}/models/{{model_key}}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
        gpu=0,
        # Any experiment with this model will do; as a param, another one's name would fetch the model again.
        settings_file=lambda wildcards: FILES[MODELS[wildcards.model_key]],
    params:
        depends=model_depends,
        results=lambda wildcards: RESULTS,
    shell:
        "mallowspo model --results {params.results:q} {resources.settings_file:q} > {log:q} 2>&1"


rule sample:
    input:
        model=model_folder,
        judge=model_of_the_sampled_pairs,
        prompts=prompt_source,
    output:
        answers=PATH.answers("{split}"),
    log:
        PATH.log("sample-{split}"),
    benchmark:
        PATH.benchmark("sample-{split}")
    threads: threads_beside(2)
    resources:
        mem_mb=memory_of,
        runtime=minutes_of,
        gpu=gpus_of,
    params:
        call=call,
        depends=stage("sample"),
    shell:
        "mallowspo sample {params.call:q} --split {wildcards.split} --threads {threads} > {log:q} 2>&1"


rule pairs:
    input:
        model=model_folder,
        sources=pair_sources,
    output:
        train=PATH.pairs("train"),
        test=PATH.pairs("test"),
        prompts=PATH.prompts,
        # unusable.jsonl lies beside: not declared, for Snakemake deletes what a failed job declares, and it says why.
        health=PATH.data_health,
    log:
        PATH.log("pairs"),
    benchmark:
        PATH.benchmark("pairs")
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        call=call,
        depends=stage("pairs"),
    shell:
        "mallowspo pairs {params.call:q} > {log:q} 2>&1"


# Once for the reference pass, every training and the scores of held-out pairs.
rule tokens:
    input:
        model=model_folder,
        pairs=[PATH.pairs("train"), PATH.pairs("test")],
    output:
        train=directory(PATH.tokens("train")),
        test=directory(PATH.tokens("test")),
        summary=PATH.tokens_summary,
    log:
        PATH.log("tokens"),
    benchmark:
        PATH.benchmark("tokens")
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
        gpu=0,
    params:
        call=call,
        depends=stage("tokens"),
    shell:
        "mallowspo tokens {params.call:q} > {log:q} 2>&1"
