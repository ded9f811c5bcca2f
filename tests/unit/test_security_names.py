"""Names in settings that reach a shell, a path or a message: refused, or quoted so that they work."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from mallowspo.errors import InputError
from mallowspo.experiments import experiment_file, load_experiment, load_workflow, validate
from mallowspo.judges.settings import JudgeSettings
from mallowspo.settings import Experiment
from mallowspo.visible import one_line

ROOT = Path(__file__).parents[2]
#: What a shell, a path or an option parser would take otherwise.
HOSTILE = ["a b", 'a"b', "a'b", "$(touch pwned)", "`touch pwned`", "a;touch pwned", "a&b", "a|b", "a>b", "a\nb", "-rf",
           "--help", "..", ".", "a/../b", "{wildcards}", "a*", "~", "a\x1b[2Jb", "\u202eb", "dpo\n", ""]  # fmt: skip


@pytest.fixture(scope="module")
def smoke():
    return yaml.safe_load((ROOT / "config/experiments/smoke.yaml").read_text())


@pytest.mark.parametrize("name", HOSTILE)
def test_labels_and_names_of_sets_are_words(smoke, name):
    methods = {**smoke["methods"], name: {"method": "dpo", "beta": 0.1}}
    with pytest.raises(InputError, match="must be lower-case letters, digits and _"):
        validate(Experiment, smoke | {"methods": methods}, "x.yaml")
    sets = {name: {"source": "path:pairs.jsonl"}}
    with pytest.raises(InputError, match="must be lower-case letters, digits and _"):
        validate(Experiment, smoke | {"evaluation": smoke["evaluation"] | {"other_pairs": sets}}, "x.yaml")


@pytest.mark.parametrize("name", [name for name in HOSTILE if "/" not in name] + ["models", "references", "logs"])
def test_an_experiment_is_named_by_a_word(tmp_path, name):
    for given in (name, f"{name}.yaml", str(tmp_path / f"{name}.yaml")):
        if given in (".yaml", str(tmp_path / ".yaml")):
            continue
        with pytest.raises(InputError, match="names a folder of results"):
            experiment_file(given)


def test_paths_of_experiments(tmp_path):
    assert experiment_file("a folder; $(x)/pythia-2.8b_v1.yaml").stem == "pythia-2.8b_v1"
    for given in ("-rf/a.yaml", "../secrets"):
        with pytest.raises(InputError, match="names a folder of results"):
            experiment_file(given)


@pytest.mark.parametrize("results", ["", "-rf", "a\nb", "a{b}", "a\x1b[2J"])
def test_results_lie_in_a_folder_that_can_be_written_about(results):
    with pytest.raises(InputError, match="config/config.yaml: results"):
        load_workflow({"results": results})


def test_two_experiments_share_no_folder():
    with pytest.raises(InputError, match="two files are called 'x' and would share a folder"):
        load_workflow({"experiments": ["a/x.yaml", "b/x.yaml"]})
    assert load_workflow({"experiments": "demo,demo"}).experiments == ["demo", "demo"]


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://mlflow:hunter2@db/mlflow",
        "postgresql://mlflow:hunter2/with/slashes@db/mlflow",
        "postgresql://db/mlflow?user=mlflow&password=hunter2",
        "postgresql://db/mlflow?sslpassword=hunter2",
        "http://somebody:hunter2@host:5000",
        "https://hunter2@host",
        "http://:hunter2@host",
        "http://host?token=hunter2",
    ],
)
def test_a_password_in_the_settings_is_refused_and_not_repeated(uri):
    with pytest.raises(InputError, match="tracking_uri: a password does not belong in settings") as caught:
        load_workflow({"tracking_uri": uri})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("uri", ["postgresql://mlflow@db/mlflow", "http://host:5000", "sqlite:////a:b@c/mlflow.db"])
def test_a_store_without_a_password_is_taken(uri):
    assert load_workflow({"tracking_uri": uri}).store == uri


@pytest.mark.parametrize(
    "request_", [{"api_key": "hunter2"}, {"extra_headers": {"x": "hunter2"}}, {"a": [{"Authorization": "hunter2"}]}]
)
def test_a_key_in_a_judges_settings_is_refused_and_not_repeated(request_):
    with pytest.raises(InputError, match="does not belong in settings; put the key in OPENAI_API_KEY") as caught:
        validate(JudgeSettings, {"request": request_}, "judge.yaml")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("judge", ["reward:vader\n", "reward:os:system\n", "openai:gpt 4", "openai:x\n", "-rf"])
def test_names_of_judges_are_whole(smoke, judge):
    with pytest.raises(InputError, match="judge"):
        validate(Experiment, smoke | {"evaluation": smoke["evaluation"] | {"judge": judge}}, "x.yaml")
    with pytest.raises(ValidationError):
        Experiment.model_validate(smoke | {"evaluation": smoke["evaluation"] | {"alpaca": {"judge": judge}}})


def test_a_message_is_one_line_whatever_it_names(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text('title: "\\e[2J\\u202e\\r"\n"ti\\ntle\\e[31m": 1\n')
    command = [sys.executable, "-m", "mallowspo.cli", "settings", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "\x1b" not in done.stderr and "ti tle␛[31m: unknown key" in done.stderr


def test_what_cannot_be_seen_is_shown():
    assert one_line("a\u202eb\x00\x1b\u2028\ud800 \n\t c\u200f") == "a⟨U+202E⟩b␀␛⟨U+2028⟩? c⟨U+200F⟩"
    assert one_line("déjà vu 測試 שלום 👩‍👧", 40) == "déjà vu 測試 שלום 👩‍👧"
    assert one_line("abcdef", 4) == "abc…"


STUB = """#!{python}
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
"""


def test_the_workflow_quotes_what_settings_hold(smoke, tmp_path):
    """The real dry run with hostile folders and store: its shell lines, run by a shell, call mallowspo as meant."""
    for name in ("Snakefile", "workflow", "slurm"):
        (tmp_path / name).symlink_to(ROOT / name)
    folder = "it's $(touch pwned); `touch pwned` \"&|>* é"
    (tmp_path / "config").mkdir()
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "pairs.jsonl").write_text((ROOT / "config/pairs/plain_endings.jsonl").read_text())
    smoke = smoke | {"pairs": {"source": f"path:{folder}/pairs.jsonl"}}
    others = {"others": {"source": f"path:{folder}/pairs.jsonl"}}
    smoke["evaluation"] = smoke["evaluation"] | {"other_pairs": others, "lm_eval": None}
    file, results, store = f"{folder}/a.b-c_1.yaml", f"{folder}/results", f"sqlite:///{folder}/mlflow.db"
    (tmp_path / file).write_text(yaml.safe_dump(smoke))
    config = {"experiments": [file], "results": results, "tracking_uri": store, "live_curves": True}
    (tmp_path / "config" / "config.yaml").write_text(yaml.safe_dump(config))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["snakemake", "--cores", "1", "--dry-run", "--printshellcmds"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed = [line.strip().removeprefix("Shell command: ") for line in (done.stdout + done.stderr).splitlines()]
    lines = [line for line in printed if line.startswith("mallowspo ") and " > " in line]
    assert len(lines) > 10
    stub = tmp_path / "bin" / "mallowspo"
    stub.parent.mkdir()
    stub.write_text(STUB.format(python=sys.executable))
    stub.chmod(0o755)
    environment = {**os.environ, "PATH": f"{stub.parent}:{path}", "CALLS": str(tmp_path / "calls")}
    for line in lines:
        words = shlex.split(line)
        log = tmp_path / words[words.index(">") + 1]
        assert str(log).startswith(f"{tmp_path}/{results}/")
        log.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["bash", "-euc", line], cwd=tmp_path, env=environment, check=True)
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert {call[0] for call in calls} >= {"model", "pairs", "train", "generate", "report", "track", "other-pairs"}
    for call in calls:
        assert call[1:4] == ["--results", results, file]
    assert all(call[-2:] == ["--store", store] for call in calls if call[0] in ("train", "track"))
    assert not list(tmp_path.rglob("pwned"))


def test_commands_take_such_folders(tmp_path):
    """An experiment in a hostile folder is found by the command line itself."""
    folder = tmp_path / "it's $(x); é"
    folder.mkdir()
    (folder / "a.yaml").write_text((ROOT / "config/experiments/smoke.yaml").read_text())
    assert load_experiment(str(folder / "a.yaml")).title
