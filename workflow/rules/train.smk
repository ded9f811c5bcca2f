# One job a (method, seed). Checkpoints lie in RUN/work and policies along the training in RUN/kept, which are no outputs:
# a killed job goes on from there.

RUN = PATH.run("{method}", "{seed}")


rule train:
    input:
        model=model_folder,
        tokens=PATH.tokens("train"),
        reference=PATH.reference("train"),
        dispersion=dispersion_table,
    output:
        model=directory(RUN / "model"),
        metrics=RUN / "metrics.jsonl",
        settings=RUN / "settings.yaml",
        summary=RUN / "summary.json",
        environment=RUN / "environment.json",
    log:
        PATH.log("train-{method}-{seed}"),
    benchmark:
        PATH.benchmark("train-{method}-{seed}")
    threads: threads_of_training
    resources:
        mem_mb=memory_of,
        runtime=minutes_of,
        gpu=gpus_of,
        nodes=1,
    params:
        call=call,
        depends=stage("train"),
        live=["--live", *STORE] if WORKFLOW.live_curves else [],
    shell:
        "mallowspo train {params.call:q} --method {wildcards.method} --seed {wildcards.seed} --threads {threads}"
        " {params.live:q}"
        " > {log:q} 2>&1"
