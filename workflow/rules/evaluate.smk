# Answers to the test prompts, and what judges and tasks say about them. The untrained policy is method "reference".

for name in COMPARISONS:
    for warning in EXPERIMENTS[name].evaluation.warnings():
        print(f"mallowspo: {name}: {warning}", file=sys.stderr)

SCORES = PATH.scores("{method}", "{seed}")


rule generate:
    input:
        shares=shares_of_answers,
        policy=policy_folder,
        prompts=PATH.prompts,
    output:
        answers=PATH.samples("{method}", "{seed}"),
    log:
        PATH.log("generate-{method}-{seed}"),
    benchmark:
        PATH.benchmark("generate-{method}-{seed}")
    threads: threads_beside(number_of_runs)
    resources:
        mem_mb=memory_of,
        runtime=minutes_of,
        gpu=gpus_of,
    params:
        call=call,
        share=[],
        depends=stage("generate"),
    shell:
        "mallowspo generate {params.call:q} {params.share:q} --method {wildcards.method} --seed {wildcards.seed}"
        " --threads {threads} > {log:q} 2>&1"


# Only where compute.shards is above 1: so many jobs share the answers, and the rule above puts them together.
use rule generate as generate_shard with:
    input:
        policy=policy_folder,
        prompts=PATH.prompts,
    output:
        done=touch(PATH.share("generate", "{method}", "{seed}", "{shard}", "{shards}")),
    log:
        PATH.log("generate-{method}-{seed}-{shard}-of-{shards}"),
    benchmark:
        PATH.benchmark("generate-{method}-{seed}-{shard}-of-{shards}")
    threads: threads_beside(number_of_shares)
    params:
        call=call,
        share=one_share,
        depends=stage("generate"),


rule score:
    input:
        shares=shares_of_scores,
        policy=policy_folder,
        model=model_folder,
        judge=model_of_the_reward,
        answers=PATH.samples("{method}", "{seed}"),
        prompts=PATH.prompts,
        pairs=PATH.pairs("test"),
        tokens=PATH.tokens("test"),
        reference=PATH.reference("test"),
    output:
        scores=SCORES / "score.parquet",
        pairs=SCORES / "pairs.parquet",
    log:
        PATH.log("score-{method}-{seed}"),
    benchmark:
        PATH.benchmark("score-{method}-{seed}")
    threads: threads_beside(number_of_runs)
    resources:
        mem_mb=memory_of,
        runtime=minutes_of,
        gpu=gpus_of,
    params:
        call=call,
        share=[],
        depends=stage("score"),
    shell:
        "mallowspo score {params.call:q} {params.share:q} --method {wildcards.method} --seed {wildcards.seed}"
        " --threads {threads} > {log:q} 2>&1"


# Of the reference, and of policies under another condition (mallowspo.policies), the answers alone.
use rule score as score_answers with:
    output:
        scores=SCORES / "score.parquet",
    wildcard_constraints:
        method=f"{REFERENCE}|[^/]+@[^/]+",


ruleorder: score_answers > score


use rule score as score_shard with:
    input:
        policy=policy_folder,
        model=model_folder,
        judge=model_of_the_reward,
        answers=PATH.samples("{method}", "{seed}"),
        prompts=PATH.prompts,
        tokens=PATH.tokens("test"),
    output:
        done=touch(PATH.share("score", "{method}", "{seed}", "{shard}", "{shards}")),
    log:
        PATH.log("score-{method}-{seed}-{shard}-of-{shards}"),
    benchmark:
        PATH.benchmark("score-{method}-{seed}-{shard}-of-{shards}")
    threads: threads_beside(number_of_shares)
    params:
        call=call,
        share=one_share,
        depends=stage("score"),


# Of a further set of pairs, the pairs alone.
use rule score as score_other_pairs with:
    input:
        shares=shares_of_other_pairs,
        policy=policy_folder,
        pairs=OTHER.pairs("test"),
        tokens=OTHER.tokens("test"),
        reference=OTHER.reference("test"),
    output:
        pairs=OTHER.scores("{method}", "{seed}") / "pairs.parquet",
    log:
        PATH.log("score_pairs-{method}-{seed}-{pair_set}"),
    benchmark:
        PATH.benchmark("score_pairs-{method}-{seed}-{pair_set}")
    params:
        call=call_with_pair_set,
        share=[],
        depends=stage("score"),


use rule score_other_pairs as score_other_pairs_shard with:
    input:
        policy=policy_folder,
        tokens=OTHER.tokens("test"),
    output:
        done=touch(OTHER.share("score", "{method}", "{seed}", "{shard}", "{shards}")),
    log:
        PATH.log("score_pairs-{method}-{seed}-{pair_set}-{shard}-of-{shards}"),
    benchmark:
        PATH.benchmark("score_pairs-{method}-{seed}-{pair_set}-{shard}-of-{shards}")
    threads: threads_beside(number_of_shares)
    params:
        call=call_with_pair_set,
        share=one_share,
        depends=stage("score"),


# The same answers by a judge that chose no pairs; only where evaluation.second_judge names one.
rule second_score:
    input:
        judge=model_of_the_second_judge,
        answers=PATH.samples("{method}", "{seed}"),
    output:
        scores=SCORES / "second.parquet",
    log:
        PATH.log("second_score-{method}-{seed}"),
    benchmark:
        PATH.benchmark("second_score-{method}-{seed}")
    threads: if_the_second_judge_is_a_model(threads_beside(number_of_runs), 1)
    resources:
        mem_mb=if_the_second_judge_is_a_model(memory_of, 2000),
        runtime=if_the_second_judge_is_a_model(minutes_of, 60),
        gpu=if_the_second_judge_is_a_model(gpus_of, 0),
    params:
        call=call,
        depends=stage("second-score"),
    shell:
        "mallowspo score {params.call:q} --second-judge --method {wildcards.method} --seed {wildcards.seed}"
        " --threads {threads} > {log:q} 2>&1"


# The beta of each held-out pair, of methods that have one; only where evaluation.signals says so.
use rule score as signals with:
    input:
        policy=policy_folder,
        model=model_folder,
        pairs=PATH.pairs("test"),
        tokens=PATH.tokens("test"),
        reference=[PATH.reference("train"), PATH.reference("test")],
    output:
        betas=SCORES / "signals.parquet",
    log:
        PATH.log("signals-{method}-{seed}"),
    benchmark:
        PATH.benchmark("signals-{method}-{seed}")
    params:
        call=lambda wildcards: [*call(wildcards), "--signals"],
        share=[],
        depends=stage("signals"),


rule alpaca:
    input:
        judges=models_of_the_judges,
        prompts=PATH.prompts,
        opponents=opponents,
        answers=PATH.samples("{method}", "{seed}"),
        reference=PATH.samples(REFERENCE, 0),
        scores=SCORES / "score.parquet",
        reference_scores=PATH.scores(REFERENCE, 0) / "score.parquet",
    output:
        table=SCORES / "alpaca.parquet",
        against=SCORES / "alpaca_against.parquet",
        summary=SCORES / "alpaca.json",
        judge=SCORES / "judge.json",
    log:
        PATH.log("alpaca-{method}-{seed}"),
    benchmark:
        PATH.benchmark("alpaca-{method}-{seed}")
    threads: if_a_judge_is_asked(threads_beside(number_of_runs), 1)
    resources:
        mem_mb=if_a_judge_is_asked(memory_of, 2000),
        runtime=if_a_judge_is_asked(minutes_of, 60),
        gpu=if_a_judge_is_asked(gpus_of, 0),
    params:
        call=call,
        depends=stage("alpaca"),
    shell:
        "mallowspo alpaca {params.call:q} --method {wildcards.method} --seed {wildcards.seed} --threads {threads}"
        " > {log:q} 2>&1"


# The judge behind the win rates, on pairs that people have labelled.
rule judge:
    input:
        judges=models_of_the_judges,
        labels=labels_of_people,
    output:
        measured=PATH.judge_measured,
    log:
        PATH.log("judge"),
    benchmark:
        PATH.benchmark("judge")
    threads: threads_beside(1)
    resources:
        mem_mb=memory_of,
        runtime=minutes_of,
        gpu=if_a_judge_is_asked(gpus_of, 0),
    params:
        call=call,
        depends=stage("judge"),
    shell:
        "mallowspo judge {params.call:q} --threads {threads} > {log:q} 2>&1"


rule lm_eval:
    input:
        shares=shares_of_tasks,
        policy=policy_folder,
        tasks=lambda wildcards: EXPERIMENTS[wildcards.experiment].task_files(),
    output:
        summary=SCORES / "lm_eval.json",
        per_item=SCORES / "lm_eval.parquet",
    log:
        PATH.log("lm_eval-{method}-{seed}"),
    benchmark:
        PATH.benchmark("lm_eval-{method}-{seed}")
    threads: threads_beside(number_of_runs)
    resources:
        mem_mb=memory_of,
        runtime=minutes_of,
        gpu=gpus_of,
    params:
        call=call,
        share=[],
        depends=stage("lm-eval"),
    shell:
        "mallowspo lm-eval {params.call:q} {params.share:q} --method {wildcards.method} --seed {wildcards.seed}"
        " --threads {threads} > {log:q} 2>&1"


use rule lm_eval as lm_eval_shard with:
    input:
        policy=policy_folder,
        tasks=lambda wildcards: EXPERIMENTS[wildcards.experiment].task_files(),
    output:
        done=touch(PATH.share("lm_eval", "{method}", "{seed}", "{shard}", "{shards}")),
    log:
        PATH.log("lm_eval-{method}-{seed}-{shard}-of-{shards}"),
    benchmark:
        PATH.benchmark("lm_eval-{method}-{seed}-{shard}-of-{shards}")
    threads: threads_beside(number_of_shares)
    params:
        call=call,
        share=one_share,
        depends=stage("lm-eval"),
