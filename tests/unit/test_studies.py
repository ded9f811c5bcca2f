"""The shell of studies: kinds, page, one run in the store, digests of settings and code."""

import importlib
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
import yaml
from pydantic import Field

from mallowspo import provenance, tracking
from mallowspo.errors import InputError
from mallowspo.experiments import dump_settings, load_comparison, load_experiment, load_study, settings_schema
from mallowspo.files import read_json
from mallowspo.layout import Layout
from mallowspo.provenance import code_digest, study_code_digest
from mallowspo.report.style import draw_panel
from mallowspo.report.table import Table
from mallowspo.settings import STAGE_READS, Experiment
from mallowspo.studies import page
from mallowspo.studies.kinds import KINDS, Kind, settings_class, study_module
from mallowspo.studies.result import Section, StudyResult
from mallowspo.studies.settings import Study
from mallowspo.tracking.store import connect

ROOT = Path(__file__).parents[2]
SMOKE = yaml.safe_load((ROOT / "config/experiments/smoke.yaml").read_text())
HOSTILE = "<script>alert('x')</script>"


class CoinStudy(Study):
    """A study for these tests: says what its settings say."""

    kind: Literal["coin"]
    heads: float = 0.5
    seeds: int = Field(default=20, ge=2)
    text: str = ""


def toss(settings, layout, model_folder):
    """Its module's `run`."""
    data = pd.DataFrame({"heads": [settings.heads], "text": [settings.text]})
    panel = draw_panel(layout, "coin", settings.text, data, lambda axes: axes.bar([0], [settings.heads]))
    table = Table("tosses", data, data.astype(str).rename(columns=str.title), ("Text",))
    sections = [
        Section("Picture", [settings.text], [panel], "A coin.", table),
        Section("Words only", ["Nothing to see."]),
    ]
    return StudyResult(
        [f"Heads: {settings.heads}.", settings.text], ["A caution."], sections, {"heads": settings.heads}
    )


@pytest.fixture
def coin(monkeypatch):
    """The kind "coin", registered for one test."""
    module = types.ModuleType("tests.coin_study")
    module.run, module.CoinStudy = toss, CoinStudy
    monkeypatch.setitem(sys.modules, "tests.coin_study", module)
    monkeypatch.setitem(KINDS, "coin", Kind("tests.coin_study:CoinStudy", "tests.coin_study"))


def write(tmp_path, **values):
    file = tmp_path / "coin.yaml"
    file.write_text(yaml.safe_dump({"kind": "coin", "title": "A coin", **values}))
    return str(file)


def made(tmp_path, **values):
    settings = load_study(write(tmp_path, **values))
    layout = Layout(str(tmp_path / "results"), "coin")
    page.run(settings, layout, None, dump_settings(settings))
    return settings, layout


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_can_be_run_and_is_checked_without_torch(kind):
    assert issubclass(settings_class(kind), Study)
    assert callable(study_module(kind).run)
    module = KINDS[kind].settings.partition(":")[0]
    code = f"import sys, {module}; assert not {{'torch', 'transformers', 'mlflow', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_kind_says_which_settings_hold(tmp_path, coin):
    assert isinstance(load_experiment(write(tmp_path, heads=0.7)), CoinStudy)
    assert isinstance(load_experiment(str(ROOT / "config/experiments/smoke.yaml")), Experiment)
    assert load_study(write(tmp_path, heads=0.7)).heads == 0.7


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "bandti"}, "kind: 'bandti': unknown kind; did you mean 'bandit'?"),
        ({"kind": ["bandit"]}, "unknown kind"),
        ({"haeds": 1}, "haeds: unknown key; did you mean 'heads'?"),
        ({"heads": "many"}, "heads: 'many': Input should be a valid number"),
        ({"seeds": 1}, "seeds: 1: Input should be greater than or equal to 2"),
        ({"model": {"source": "smollm"}}, "model.source: 'smollm'"),
    ],
    ids=str,
)
def test_wrong_settings_are_told_in_one_line(tmp_path, coin, values, says):
    with pytest.raises(InputError) as caught:
        load_experiment(write(tmp_path, **values))
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "coin.yaml"))


def test_a_study_has_no_stages_of_a_comparison_and_the_other_way_round(tmp_path, coin):
    with pytest.raises(InputError, match="a study .kind: coin., which has one stage"):
        load_comparison(write(tmp_path))
    with pytest.raises(InputError, match="a comparison, not a study; add kind: bandit or "):
        load_study(str(ROOT / "config/experiments/smoke.yaml"))


def test_the_commands_say_so_too():
    for arguments, says in ((["train", "bandit", "--method", "dpo", "--seed", "1"], "run `mallowspo study`"),
                            (["study", "smoke"], "a comparison, not a study"),
                            (["model", "bandit"], "has no model to fetch")):  # fmt: skip
        command = [sys.executable, "-m", "mallowspo.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_schema_covers_all_kinds():
    schema = settings_schema()
    kinds = [part["$ref"].rpartition("/")[2] for part in schema["anyOf"]]
    assert kinds == ["Experiment", *(settings_class(kind).__name__ for kind in KINDS)]
    for kind in KINDS:
        assert schema["$defs"][settings_class(kind).__name__]["properties"]["kind"]["const"] == kind


def test_settings_read_back_equal(tmp_path, coin):
    settings = load_study(write(tmp_path, heads=0.25))
    file = tmp_path / "again.yaml"
    file.write_text(dump_settings(settings))
    assert load_study(str(file)) == settings


def test_digests_follow_what_the_results_depend_on(tmp_path, coin):
    plain = load_study(write(tmp_path))
    for change, same_result, same_page in (
        ({"compute": {"threads": 2}}, True, True),
        ({"title": "Another"}, True, False),
        ({"heads": 0.6}, False, False),
    ):
        other = load_study(write(tmp_path, **change))
        assert (plain.identity == other.identity) is same_result
        assert (plain.stage_digest("study") == other.stage_digest("study")) is same_page


def test_a_model_is_shared_with_comparisons(tmp_path, coin):
    """Same digest of the stage "model", so that the workflow does not fetch it once for each kind."""
    study = load_study(write(tmp_path, model=SMOKE["model"]))
    comparison = load_comparison(str(ROOT / "config/experiments/smoke.yaml"))
    assert study.model.key == comparison.model.key
    assert study.stage_digest("model") == comparison.stage_digest("model")
    assert vars(study.stage_view("model").model) == vars(comparison.stage_view("model").model)
    assert {key.removeprefix("model.") for key in STAGE_READS["model"]} == set(vars(study.stage_view("model").model))
    with pytest.raises(ValueError, match="has no stage 'model'"):
        load_study(write(tmp_path)).stage_view("model")


def test_a_study_leaves_its_page_tables_figures_and_numbers(tmp_path, coin):
    settings, layout = made(tmp_path, heads=0.25, text="plain")
    text = layout.report.read_text()
    assert (
        text.index("Heads: 0.25.") < text.index("A caution.") < text.index("<h2>Picture") < text.index("<h2>Words only")
    )
    assert text.count("<svg") == 1 and "mallowspo study coin" in text
    assert {file.name for file in layout.figures.iterdir()} == {"coin.svg", "coin.pdf", "coin.csv"}
    assert {file.name for file in layout.tables.iterdir()} == {"tosses.csv", "tosses.md", "tosses.tex"}
    assert pd.read_csv(layout.tables / "tosses.csv")["heads"].tolist() == [0.25]
    written = read_json(layout.study)
    assert written["numbers"] == {"heads": 0.25} and written["settings"] == settings.identity
    assert load_study(str(layout.settings)) == settings


def test_the_page_opens_anywhere_and_escapes_what_it_is_told(tmp_path, coin):
    _, layout = made(tmp_path, text=HOSTILE, title=HOSTILE, question=HOSTILE)
    text = layout.report.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "http://" not in text.replace("http://www.w3.org", "") and 'src="' not in text


def test_numbers_that_are_none_and_tables_of_one_name_are_refused(tmp_path, coin, monkeypatch):
    with pytest.raises(ValueError, match="not finite: heads"):
        made(tmp_path, heads=float("nan"))
    table = Table("same", pd.DataFrame(), pd.DataFrame(), ())
    twice = StudyResult(["."], [], [Section("a", table=table), Section("b", table=table)], {})
    monkeypatch.setattr(sys.modules["tests.coin_study"], "run", lambda *arguments: twice)
    with pytest.raises(ValueError, match="share a name: same, same"):
        made(tmp_path)
    assert not (tmp_path / "results/coin/study.json").exists()


def test_tracking_holds_one_run_a_result(tmp_path, coin):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    _, layout = made(tmp_path, heads=0.25)
    tracking.track_study(layout, uri)
    first = read_json(layout.tracked)
    tracking.track_study(layout, uri)
    assert read_json(layout.tracked) == first
    client = connect(uri)
    (run,) = client.search_runs([first["experiment_id"]])
    assert run.data.metrics == {"heads": 0.25}
    assert run.data.params["heads"] == "0.25" and run.data.params["kind"] == "coin" and "title" not in run.data.params
    assert run.data.tags["mlflow.note.content"] == "A coin" and run.info.status == "FINISHED"
    artifacts = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert artifacts == {"settings.yaml", "report.html", "study.json", "figures", "tables"}
    assert len(client.get_metric_history(run.info.run_id, "heads")) == 1

    made(tmp_path, heads=0.75)
    tracking.track_study(layout, uri)
    second = read_json(layout.tracked)
    superseded = {run.info.run_id: run.data.tags["mallowspo.superseded"]
                  for run in client.search_runs([first["experiment_id"]])}  # fmt: skip
    assert superseded == {first["run_id"]: "true", second["run_id"]: "false"}


def test_tracking_names_what_is_missing(tmp_path, coin):
    layout = Layout(str(tmp_path), "coin")
    with pytest.raises(InputError, match="settings.yaml: no such file; run mallowspo study coin first"):
        tracking.track_study(layout, f"sqlite:///{tmp_path}/mlflow.db")
    _, layout = made(tmp_path)
    with pytest.raises(InputError, match="nothing is lost: every number is in .*study.json"):
        tracking.track_study(layout, "ftp://nowhere")


@pytest.fixture
def digests(tmp_path, monkeypatch):
    """Digests of every kind and every stage, from a copy of the package whose files a test may edit."""
    copy = tmp_path / "mallowspo"
    shutil.copytree(provenance.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "PACKAGE", copy)

    def clear():
        for cached in (code_digest, study_code_digest, provenance._imported_modules, provenance._bare_code):
            cached.cache_clear()

    def found():
        clear()
        stages = {stage: code_digest(stage) for stage in provenance.STAGE_MODULES}
        return {**stages, **{kind: study_code_digest(row.module) for kind, row in KINDS.items()}}

    before = found()

    def changed(name, edit):
        file = copy / name
        text = file.read_text()
        file.write_text(edit(text))
        after = found()
        file.write_text(text)
        return {name for name in before if before[name] != after[name]}

    yield changed
    clear()


def test_only_its_own_code_runs_a_study_again(digests):
    def add(text):
        return text + "\nNEW = 1\n"

    assert digests("bandits/world.py", add) == {"bandit"}
    assert digests("bandits/world.py", lambda text: "# a remark\n" + text) == set()
    assert digests("report/tables.py", add) == {"report"}
    assert digests("tracking/study.py", add) == {"track"}
    assert {"bandit", "train"} <= digests("objectives/links.py", add)
    assert digests("studies/study.html.jinja", lambda text: text + " ") == set(KINDS)
    assert digests("report/page.css", lambda text: text + " ") == {"report", "paper", *KINDS}
    assert digests("report/report.html.jinja", lambda text: text + " ") == {"report"}


def test_bandit_as_it_is_set_up():
    """What the issue asks of config/experiments/bandit.yaml."""
    study = load_study(str(ROOT / "config/experiments/bandit.yaml"))
    methods = importlib.import_module("mallowspo.methods").METHODS
    assert study.kind == "bandit" and study.arms == 5 and study.comparisons == [16, 64] and study.seeds >= 20
    assert set(study.methods) == set(methods)
    assert json.loads(json.dumps(study.model_dump())) == study.model_dump()
