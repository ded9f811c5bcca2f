# One pass of the reference policy over every pair, and the dispersion that follows from it. What the pass computes lies
# in RESULTS/references, which is no output: a killed pass goes on from there, and experiments share it.


# Only where reference.shards is above 1: so many jobs share the pass, and the rule below puts the tables together.
rule reference_shard:
    input:
        tokens_for_scoring,
    output:
        done=PATH.reference_shard("{shard}", "{shards}"),
    log:
        PATH.log("reference-{shard}-of-{shards}"),
    benchmark:
        PATH.benchmark("reference-{shard}-of-{shards}")
    threads: threads_beside(number_of_shards)
    resources:
        mem_mb=memory_of,
        runtime=minutes_of,
        gpu=gpus_of,
    params:
        call=call,
        depends=stage("reference"),
    shell:
        "mallowspo reference {params.call:q} --shard {wildcards.shard}/{wildcards.shards} --threads {threads}"
        " > {log:q} 2>&1"


rule reference:
    input:
        tokens_for_scoring,
        reference_shards,
    output:
        train=PATH.reference("train"),
        test=PATH.reference("test"),
        summary=PATH.reference_summary,
    log:
        PATH.log("reference"),
    benchmark:
        PATH.benchmark("reference")
    threads: threads_beside(1)
    resources:
        mem_mb=memory_of,
        runtime=minutes_of,
        gpu=gpus_of,
    params:
        call=call,
        depends=stage("reference"),
    shell:
        "mallowspo reference {params.call:q} --threads {threads} > {log:q} 2>&1"


# A further set of pairs to measure policies on: checked, tokenized and scored by itself, in parts of its own.
rule other_pairs:
    input:
        model=model_folder,
        sources=other_pair_source,
    output:
        pairs=OTHER.pairs("test"),
        tokens=directory(OTHER.tokens("test")),
        tokens_summary=OTHER.tokens_summary,
        reference=OTHER.reference("test"),
        reference_summary=OTHER.reference_summary,
    log:
        PATH.log("other_pairs-{pair_set}"),
    benchmark:
        PATH.benchmark("other_pairs-{pair_set}")
    threads: threads_beside(1)
    resources:
        mem_mb=memory_of,
        runtime=minutes_of,
        gpu=gpus_of,
    params:
        call=call,
        depends=stage("other-pairs"),
    shell:
        "mallowspo other-pairs {params.call:q} --set {wildcards.pair_set} --threads {threads} > {log:q} 2>&1"


rule dispersion:
    input:
        beside_the_reference_table,
        train=PATH.reference("train"),
        test=PATH.reference("test"),
        summary=PATH.reference_summary,
    output:
        table=PATH.dispersion,
        summary=PATH.dispersion_summary,
    log:
        PATH.log("dispersion"),
    benchmark:
        PATH.benchmark("dispersion")
    threads: if_from_the_model(threads_beside(1), 1)
    resources:
        mem_mb=if_from_the_model(memory_of, 1000),
        runtime=if_from_the_model(minutes_of, 10),
        gpu=if_from_the_model(gpus_of, 0),
    params:
        call=call,
        depends=stage("dispersion"),
    shell:
        "mallowspo dispersion {params.call:q} > {log:q} 2>&1"
