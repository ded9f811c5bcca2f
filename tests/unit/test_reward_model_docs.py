"""The page docs/adding_a_judge.md: its commands run as they stand, and its settings are the package's."""

import json
import re
import shlex
from pathlib import Path

import yaml
from typer.testing import CliRunner

from mallowspo.cli import app
from mallowspo.files import read_json
from mallowspo.judges.names import check_reward_name, model_of
from mallowspo.layout import Layout
from mallowspo.models import make_made_up
from mallowspo.settings import PairsSettings

PAGE = Path(__file__).parents[2] / "docs/adding_a_judge.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_commands_of_the_page_train_and_measure_a_judge(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_made_up(tmp_path / "my_model")
    rows = [{"prompt": f"Number {n} was", "chosen": " good", "rejected": " bad indeed"} for n in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "judge.yaml").write_text(blocks("yaml")[0])
    (commands,) = blocks("bash")
    for command in commands.splitlines():
        program, *arguments = shlex.split(command)
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert (program, done.exit_code) == ("mallowspo", 0), command
    assert "agreement with the labels" in done.output
    assert read_json("results/judge/study.json")["numbers"]["train_pairs"] < 30, "a third of the prompts"


def test_the_comparison_of_the_page_takes_the_other_prompts_and_that_judge():
    ours, theirs = (yaml.safe_load(text) for text in blocks("yaml"))
    shares = [PairsSettings(**values["pairs"]).split.share for values in (ours, theirs)]
    assert shares[0].of == shares[1].of and not set(shares[0].parts) & set(shares[1].parts)
    judge = check_reward_name(theirs["evaluation"]["judge"])
    assert model_of(judge) == str(Layout("results", "judge").reward_model)
