# Settings, paths and run lists. No logic: that is in the package, where tests reach it.
import os
import re
import sys

from mallowspo.chains import folder_of, load_all
from mallowspo.data_files import FOLDER as DATA, known_files
from mallowspo.errors import InputError
from mallowspo.judges.names import is_a_model, model_of
from mallowspo.layout import REFERENCE, Layout, shards_made
from mallowspo.methods import METHODS
from mallowspo.pair_betas import labels_with_pair_beta
from mallowspo.paper import FOLDER as PAPER_FOLDER
from mallowspo.paper.asked import experiments_of_the_page
from mallowspo.plan.requests import Requests
from mallowspo.plan.retries import grown
from mallowspo.policies import Policy
from mallowspo.provenance import code_digest, study_code_digest
from mallowspo.experiments import experiment_file, load_workflow
from mallowspo.slurm_jobs import keep_jobs_while_slurm_is_silent
from mallowspo.studies.kinds import KINDS
from mallowspo.tracking import hide_credentials

try:
    WORKFLOW = load_workflow(config)
    # Of the scale, where the target is the page of the paper; else none.
    PAPER = experiments_of_the_page(WORKFLOW, config, sys.argv[1:], os.environ)
    # Those that are asked for, those whose policies they begin from, and those whose reward models judge them.
    FILES, EXPERIMENTS = load_all([*WORKFLOW.experiments, *PAPER], WORKFLOW.results)
    DATA_FILES = known_files()
    ASKED = [experiment_file(name).stem for name in WORKFLOW.experiments]
except InputError as error:
    sys.exit(f"mallowspo: {error}")

keep_jobs_while_slurm_is_silent()

RESULTS = WORKFLOW.results
# An experiment is a comparison, or a study of the kind that it names.
STUDIES = [name for name, experiment in EXPERIMENTS.items() if getattr(experiment, "kind", None)]
COMPARISONS = [name for name in EXPERIMENTS if name not in STUDIES]
REWARD_MODELS = [name for name in STUDIES if EXPERIMENTS[name].kind == "reward_model"]
MODELS = {experiment.model.key: name for name, experiment in EXPERIMENTS.items() if experiment.model}
# A URI from the environment may hold a password: jobs read it there. One from the settings never does.
STORE = ["--store", WORKFLOW.tracking_uri] if WORKFLOW.tracking_uri else []
PATH = Layout(RESULTS, "{experiment}")
# What jobs ask for that hold a model: as `mallowspo plan` tells, or as the experiment says.
REQUESTS = {name: Requests(experiment, RESULTS, workflow.cores or 1) for name, experiment in EXPERIMENTS.items()}
PAGE_OF_THE_PAPER = Layout(RESULTS, PAPER_FOLDER).root
OTHER = PATH.other_pairs("{pair_set}")


def one_of(names):
    """A wildcard that matches these names, and nothing where there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    experiment=one_of(COMPARISONS),
    model_key=one_of(MODELS),
    method="[a-z][a-z0-9_]*(@[a-z]+=[0-9.]+)?",
    seed="-?[0-9]+",
    split="train|test",
    pair_set=one_of(sorted({name for item in COMPARISONS for name in EXPERIMENTS[item].evaluation.other_pairs})),
    shard="[0-9]+",
    shards="[0-9]+",
    data_file=one_of(DATA_FILES),


def layout(name):
    return Layout(RESULTS, name)


def model_folder(wildcards):
    model = EXPERIMENTS[wildcards.experiment].model
    return layout(wildcards.experiment).model(model.key) if model else []


def starting_policy(wildcards):
    """The trained policy that a model is, where it is another experiment's."""
    policy = EXPERIMENTS[MODELS[wildcards.model_key]].model.policy
    return [folder_of(policy, RESULTS)] if policy else []


def policy_folder(wildcards):
    """Of a policy along a training the trained one's: the same job writes both. And the initial policy's, to which its
    adapters belong."""
    label = Policy.parse(wildcards.method).label
    initial = model_folder(wildcards)
    return (
        [initial]
        if label == REFERENCE
        else [layout(wildcards.experiment).run(label, wildcards.seed) / "model", initial]
    )


def policies(name):
    """Every (method, seed) that answers: the untrained policy and all trained ones."""
    return [(REFERENCE, 0), *EXPERIMENTS[name].runs()]


def call(wildcards):
    """The arguments that every stage takes."""
    return ["--results", RESULTS, FILES[wildcards.experiment]]


def call_with_pair_set(wildcards):
    """The same, of a further set of pairs."""
    return [*call(wildcards), "--pairs", wildcards.pair_set]


def stage(name):
    """What a stage's results depend on besides its input: the settings that it reads, and its code.

    Both are params, so that a change runs the stage again (Snakemake sees neither a value read inside a job nor an
    edit in an imported package).
    """

    def digest(wildcards):
        part = {"train": "method", "other-pairs": "pair_set"}.get(name)
        own = getattr(wildcards, part) if part else None
        return f"{EXPERIMENTS[wildcards.experiment].stage_digest(name, own)}-{code_digest(name)}"

    return digest


def model_depends(wildcards):
    return f"{EXPERIMENTS[MODELS[wildcards.model_key]].stage_digest('model')}-{code_digest('model')}"


def study_depends(wildcards):
    study = EXPERIMENTS[wildcards.experiment]
    return f"{study.stage_digest('study')}-{study_code_digest(KINDS[study.kind].module)}"


def reward_model_depends(wildcards):
    return f"{EXPERIMENTS[wildcards.experiment].stage_digest('reward-model')}-{code_digest('reward-model')}"


def trained_reward_model(wildcards):
    """What the page of a reward model is drawn from; no other study has any."""
    place = layout(wildcards.experiment)
    training = [place.reward_model_training / name for name in ("metrics.jsonl", "summary.json")]
    files = [place.reward_model, place.pairs("train"), place.pairs("test"), *training]
    return files if wildcards.experiment in REWARD_MODELS else []


def models_of(*judges):
    """Folders of the models that judge: an experiment of this run trains them, or they are there."""
    return list(dict.fromkeys(folder for folder in map(model_of, judges) if folder))


def model_of_the_reward(wildcards):
    return models_of(EXPERIMENTS[wildcards.experiment].evaluation.judge)


def model_of_the_second_judge(wildcards):
    return models_of(EXPERIMENTS[wildcards.experiment].evaluation.second_judge)


def models_of_the_judges(wildcards):
    evaluation = EXPERIMENTS[wildcards.experiment].evaluation
    return models_of(evaluation.judge, evaluation.alpaca.judge)


def labels_of_people(wildcards):
    """Pairs on which the judge of the win rates is measured, if the experiment names any."""
    labels = EXPERIMENTS[wildcards.experiment].evaluation.judge_labels
    return [labels] if labels else []


def judge_on_labels(wildcards):
    return [layout(wildcards.experiment).judge_measured] if labels_of_people(wildcards) else []


def model_of_the_sampled_pairs(wildcards):
    return models_of(EXPERIMENTS[wildcards.experiment].pairs.on_policy.judge)


def measured_judges(wildcards):
    """What is known of these models where an experiment trained them, and the pairs that it trained them on."""
    trained = [layout(name) for name in REWARD_MODELS]
    folders = [*models_of_the_judges(wildcards), *model_of_the_second_judge(wildcards)]
    places = map(Layout.of_reward_model, dict.fromkeys(folders))
    files = [(place, file) for place in places for file in (place.study, place.pairs("train"))]
    return [file for place, file in files if place in trained or file.exists()]


def threads_beside(jobs):
    """Threads of one of so many jobs that can run side by side; `jobs` is a number or a function of the experiment."""

    def threads(wildcards, attempt=1, rulename=None):
        experiment = EXPERIMENTS[wildcards.experiment]
        count = jobs(experiment) if callable(jobs) else jobs
        return experiment.compute.threads_of(workflow.cores or 1, count)

    return threads


def threads_of_training(wildcards):
    """The same of one of the trainings, and one at least for each of its processes."""
    processes = EXPERIMENTS[wildcards.experiment].compute.processes
    return max(processes, threads_beside(number_of_runs)(wildcards))


def number_of_runs(experiment):
    return len(experiment.runs())


def number_of_shards(experiment):
    return experiment.reference.shards


def number_of_shares(experiment):
    return number_of_runs(experiment) * experiment.compute.shards


def memory_of(wildcards, attempt, rulename):
    return request(wildcards, attempt, rulename).memory_mb


def minutes_of(wildcards, attempt, rulename):
    return request(wildcards, attempt, rulename).minutes


def request(wildcards, attempt, rulename):
    """What a job asks for; at a retry more of what the one before lacked, if Slurm's log of it says so."""
    asked = REQUESTS[wildcards.experiment].of(rulename, getattr(wildcards, "method", None))
    logs = getattr(workflow.executor_settings, "logdir", None)
    return grown(asked, logs, rulename, list(wildcards), attempt)


def gpus_of(wildcards, attempt, rulename):
    """A training takes what the experiment says, any other job with a model one."""
    count = EXPERIMENTS[wildcards.experiment].compute.gpus
    return count if rulename == "train" else min(count, 1)


def pair_sources(wildcards):
    """Files that pairs are read from: answers of our own, a local file, or none for the hub."""
    kind, _, place = EXPERIMENTS[wildcards.experiment].pairs.source.partition(":")
    if kind == "on_policy":
        return [
            *prompt_source(wildcards),
            *(layout(wildcards.experiment).answers(split) for split in ("train", "test")),
        ]
    return [place] if kind == "path" else []


def prompt_source(wildcards):
    """The file of the prompts that on-policy answers are sampled to, or none for the hub."""
    place = EXPERIMENTS[wildcards.experiment].pairs.source.removeprefix("on_policy:")
    return [] if place.startswith("hub:") else [place]


def other_pair_source(wildcards):
    """The file of a further set of pairs, or none for the hub."""
    source = EXPERIMENTS[wildcards.experiment].evaluation.other_pairs[wildcards.pair_set].source
    return [source.removeprefix("path:")] if source.startswith("path:") else []


def tokens_for_scoring(wildcards):
    """What the reference scores: both splits, and itself."""
    place = layout(wildcards.experiment)
    return [model_folder(wildcards), place.tokens_summary, *(place.tokens(split) for split in ("train", "test"))]


def reference_shards(wildcards):
    """Shares of the reference pass that are computed before its tables are put together; none where it is one job.

    Tables that are there keep the shares that they were made of: another number in the settings would be another input,
    and the tables, with all that was trained on them, would be made again.
    """
    place = layout(wildcards.experiment)
    count = EXPERIMENTS[wildcards.experiment].reference.shards
    if place.reference_summary.exists():
        count = shards_made(place.reference_shard("*", "*"))
    shards = range(1, count + 1) if count > 1 else []
    return [place.reference_shard(shard, count) for shard in shards]


def shares(stage, wildcards, place, result, most=None):
    """Shares of a policy's answers, scores or tasks that are computed before they are put together; none where it is
    one job.

    As for the reference pass, what is there keeps the shares that it was made of.
    """
    of = (stage, wildcards.method, wildcards.seed)
    count = min(EXPERIMENTS[wildcards.experiment].compute.shards, most or sys.maxsize)
    if result.exists():
        count = shards_made(place.share(*of, "*", "*"))
    return [place.share(*of, number, count) for number in range(1, count + 1)] if count > 1 else []


def shares_of_answers(wildcards):
    place = layout(wildcards.experiment)
    return shares("generate", wildcards, place, place.samples(wildcards.method, wildcards.seed))


def shares_of_scores(wildcards):
    place = layout(wildcards.experiment)
    return shares("score", wildcards, place, place.scores(wildcards.method, wildcards.seed) / "score.parquet")


def shares_of_other_pairs(wildcards):
    place = layout(wildcards.experiment).other_pairs(wildcards.pair_set)
    return shares("score", wildcards, place, place.scores(wildcards.method, wildcards.seed) / "pairs.parquet")


def shares_of_tasks(wildcards):
    place, tasks = layout(wildcards.experiment), len(EXPERIMENTS[wildcards.experiment].evaluation.lm_eval.tasks)
    return shares("lm_eval", wildcards, place, place.scores(wildcards.method, wildcards.seed) / "lm_eval.json", tasks)


def one_share(wildcards):
    return ["--shard", f"{wildcards.shard}/{wildcards.shards}"]


def dispersion_table(wildcards):
    """Read by a method that needs it, and by no other: DPO does not train again when the weights change."""
    name = EXPERIMENTS[wildcards.experiment].methods[wildcards.method].method
    return [layout(wildcards.experiment).dispersion] if "dispersion" in METHODS[name].needs else []


def beside_the_reference_table(wildcards):
    """What the chosen estimator reads besides: votes stand in the pairs; some ask the model for more."""
    dispersion = EXPERIMENTS[wildcards.experiment].dispersion
    if dispersion.estimator == "votes":
        return [layout(wildcards.experiment).pairs(split) for split in ("train", "test")]
    return tokens_for_scoring(wildcards) if dispersion.asks_the_model else []


def if_from_the_model(of_model, otherwise):
    """Threads, memory, time and GPUs are the model's only where the estimator asks it."""

    def resource(wildcards, attempt, rulename):
        asked = EXPERIMENTS[wildcards.experiment].dispersion.asks_the_model
        return of_model(wildcards, attempt, rulename) if asked else otherwise

    return resource


def scores(wildcards):
    """Every file of scores that the comparison reads."""
    name = wildcards.experiment
    files = []
    for method, seed in policies(name):
        folder = layout(name).scores(method, seed)
        files.append(folder / "score.parquet")
        if method != REFERENCE:
            files += [folder / file for file in ("pairs.parquet", "alpaca.parquet", "alpaca_against.parquet")]
            files += [place.scores(method, seed) / "pairs.parquet" for place in other_pair_places(name)]
        if EXPERIMENTS[name].evaluation.lm_eval:
            files += [folder / "lm_eval.parquet", folder / "lm_eval.json"]
    files += [layout(name).scores(*variant) / "score.parquet" for variant in EXPERIMENTS[name].variants()]
    if EXPERIMENTS[name].evaluation.second_judge:
        answered = [*policies(name), *EXPERIMENTS[name].variants()]
        files += [layout(name).scores(*policy) / "second.parquet" for policy in answered]
    if EXPERIMENTS[name].evaluation.signals:
        adaptive = labels_with_pair_beta(EXPERIMENTS[name].methods)
        seeds = EXPERIMENTS[name].seeds
        files += [layout(name).scores(label, seed) / "signals.parquet" for label in adaptive for seed in seeds]
    return files


def other_pair_places(name):
    """Where each further set of pairs lies."""
    return [layout(name).other_pairs(pair_set) for pair_set in EXPERIMENTS[name].evaluation.other_pairs]


def all_test_pairs(wildcards):
    """The held-out pairs, and those of every further set."""
    name = wildcards.experiment
    return [place.pairs("test") for place in (layout(name), *other_pair_places(name))]


def all_test_references(wildcards):
    """What the reference says of them."""
    name = wildcards.experiment
    return [place.reference("test") for place in (layout(name), *other_pair_places(name))]


def runs(wildcards):
    name = wildcards.experiment
    files = ("summary.json", "metrics.jsonl", "settings.yaml", "environment.json")
    return [layout(name).run(method, seed) / file for method, seed in EXPERIMENTS[name].runs() for file in files]


def answers(wildcards):
    name = wildcards.experiment
    return [layout(name).samples(method, seed) for method, seed in policies(name)]


def opponents(wildcards):
    """What a run is compared with besides the reference: the baseline's answers and rewards, published outputs."""
    evaluation, place = EXPERIMENTS[wildcards.experiment].evaluation, layout(wildcards.experiment)
    baseline, against = evaluation.comparison.baseline, evaluation.alpaca.against
    files = [source.removeprefix("path:") for source in against if source.startswith("path:")]
    if "baseline" in against and wildcards.method != baseline:
        run = (baseline, wildcards.seed)
        files += [place.samples(*run), place.scores(*run) / "score.parquet"]
    return files


def if_a_judge_is_asked(of_model, otherwise):
    """Threads, memory, time and GPUs are the model's only where the comparison does not go by rewards on file."""

    def resource(wildcards, attempt, rulename):
        return (
            of_model(wildcards, attempt, rulename)
            if EXPERIMENTS[wildcards.experiment].evaluation.alpaca.judge
            else otherwise
        )

    return resource


def if_the_second_judge_is_a_model(of_model, otherwise):
    """The same where the second judge is no function."""

    def resource(wildcards, attempt, rulename):
        judge = EXPERIMENTS[wildcards.experiment].evaluation.second_judge
        return of_model(wildcards, attempt, rulename) if judge and is_a_model(judge) else otherwise

    return resource
