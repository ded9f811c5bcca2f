# One pass of the reference policy over every pair, and the dispersion that follows from it.


rule reference:
    input:
        model=model_folder,
        train=PATH.pairs("train"),
        test=PATH.pairs("test"),
    output:
        train=PATH.reference("train"),
        test=PATH.reference("test"),
        summary=PATH.reference_summary,
    log:
        PATH.log("reference"),
    benchmark:
        PATH.benchmark("reference")
    threads: threads_of
    resources:
        mem_mb=memory_of,
        runtime=minutes_of,
        gpu=gpus_of,
    params:
        call=call,
        depends=stage("reference"),
    shell:
        "mallowspo reference {params.call:q} --threads {threads} > {log:q} 2>&1"


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
    threads: if_sampled(threads_of, 1)
    resources:
        mem_mb=if_sampled(memory_of, 1000),
        runtime=if_sampled(minutes_of, 10),
        gpu=if_sampled(gpus_of, 0),
    params:
        call=call,
        depends=stage("dispersion"),
    shell:
        "mallowspo dispersion {params.call:q} > {log:q} 2>&1"
