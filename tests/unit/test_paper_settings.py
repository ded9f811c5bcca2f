"""config/paper.yaml and config/published.yaml: those of the repository, and what is wrong with others in one line."""

import re
from pathlib import Path

import pytest
import yaml

from mallowspo.errors import InputError
from mallowspo.experiments import experiment_file, load_workflow
from mallowspo.paper.asked import ASKED, experiments_of_the_page
from mallowspo.paper.published import TAGS, load_published
from mallowspo.paper.settings import load_paper

ROOT = Path(__file__).parents[2]
CLAIM = {"title": "A claim", "says": "Something holds."}
TEST = {"kind": "difference", "part": "hh", "title": "t", "method": "mallows_theta", "metric": "reward"}
SMALL = {"scales": {"cpu": {"hh": "smoke"}}, "claims": {"better": {**CLAIM, "tests": [TEST]}}}


def write(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_files_of_the_repository():
    paper = load_paper(ROOT / "config/paper.yaml")
    assert set(paper.scales) == {"cpu", "paper"}
    assert {claim for claim, own in paper.claims.items() if own.ours} == {"people", "cause", "learned_beta"}
    published = load_published(list(paper.claims), ROOT / "config/published.yaml")
    known = [figure for figures in published.claims.values() for figure in figures if figure.known]
    assert all(figure.tag in TAGS and figure.source for figure in known)
    # Of the paper's numbers none has been read: only the abstract's words.
    assert not [figure for figure in known if figure.value is not None]
    assert published.of("two_points")[0].words == "nearly 2 %"
    for names in (paper.experiments("cpu"), paper.experiments("paper")):
        assert len(set(names)) == len(names)
        assert all(re.fullmatch(r"[a-z0-9_.]+", name) for name in names)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scales": {"cpu": {"hhh": "smoke"}}}, "claims.better: scale 'cpu' has no part 'hh'; did you mean 'hhh'?"),
        ({"scales": {"cpu": {"hh": "../x"}}}, "'../x' is no name of a file in config/experiments"),
        ({"scales": {"cpu": {"hh": "models"}}}, "'models' is no name"),
        ({"scales": {"C/..": {"hh": "smoke"}}}, "scales.C/..."),
        ({"claims": {"better": {**CLAIM, "tests": [{**TEST, "kind": "diference"}]}}}, "'diference'"),
        ({"claims": {"better": {**CLAIM, "tests": [{**TEST, "decides": False}]}}}, "no test decides"),
        ({"claims": {"better": {**CLAIM, "tests": [TEST], "need": "one"}}}, "claims.better.need: unknown key"),
        ({"confidence": 1.5}, "confidence: 1.5"),
    ],
    ids=str,
)
def test_wrong_settings_are_told_in_one_line(tmp_path, change, says):
    path = write(tmp_path / "paper.yaml", {**SMALL, **change})
    with pytest.raises(InputError) as caught:
        load_paper(path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("figure", "says"),
    [
        ({"value": 2.0}, "needs value or words, source and tag"),
        ({"value": 2.0, "tag": "PDF"}, "needs value or words, source and tag"),
        ({"words": "better", "source": "Table 1"}, "needs value or words, source and tag"),
        ({"tag": "PDF", "source": "Table 1"}, "needs value or words, source and tag"),
        ({"value": 2.0, "source": "Table 1", "tag": "V3"}, "'V3'"),
        ({"value": "two", "source": "Table 1", "tag": "PDF"}, "'two'"),
        ({"valu": 2.0}, "unknown key"),
    ],
    ids=str,
)
def test_a_published_figure_needs_its_source(tmp_path, figure, says):
    path = write(tmp_path / "published.yaml", {"claims": {"better": [{"what": "a thing", **figure}]}})
    with pytest.raises(InputError) as caught:
        load_published(["better"], path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_published_figure_may_be_blank_or_whole(tmp_path):
    whole = {"what": "a", "value": 0.0, "source": "Table 1", "tag": "PDF"}
    memory = {"what": "b", "value": 3.0, "source": "memory", "tag": "R"}
    path = write(tmp_path / "published.yaml", {"claims": {"better": [whole, memory, {"what": "c"}]}})
    figures = load_published(["better"], path).of("better")
    assert [figure.known for figure in figures] == [True, True, False]
    assert [figure.printable for figure in figures] == [True, False, False]
    with pytest.raises(InputError, match="claims.better: no such claim in config/paper.yaml; did you mean 'best'?"):
        load_published(["best"], path)


def test_a_scale_that_is_none_is_told(tmp_path):
    paper = load_paper(write(tmp_path / "paper.yaml", SMALL))
    with pytest.raises(InputError, match="scale 'cup': no such scale in config/paper.yaml; did you mean 'cpu'?"):
        paper.experiments("cup")


@pytest.mark.parametrize(
    ("arguments", "config", "environment", "asked"),
    [
        (["--cores", "all"], {}, {}, False),
        (["--cores", "all", "-n", "paper"], {}, {}, True),
        (["other/paper/index.html"], {}, {}, True),
        (["--config", "experiments=paperback"], {"experiments": "paperback"}, {}, False),
        (["--cores", "1"], {"scale": "cpu"}, {}, True),
        # A job of a call that asked.
        (["--target-jobs", "train:experiment=x"], {}, {ASKED: "1"}, True),
    ],
    ids=str,
)
def test_experiments_are_read_only_when_the_page_is_asked_for(
    tmp_path, monkeypatch, arguments, config, environment, asked
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    if asked:  # else the file is not even opened
        write(tmp_path / "config/paper.yaml", SMALL)
    found = experiments_of_the_page(load_workflow(config), config, arguments, environment)
    assert found == (["smoke"] if asked else [])
    assert (ASKED in environment) == asked


def test_a_file_of_the_same_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    write(tmp_path / "config/paper.yaml", SMALL)
    workflow = load_workflow({"experiments": "mine/smoke.yaml"})
    with pytest.raises(InputError, match="mine/smoke.yaml has the name of a part of scale 'cpu'"):
        experiments_of_the_page(workflow, {}, ["paper"], {})


def test_no_experiment_may_be_called_paper():
    with pytest.raises(InputError, match="none of models, .*paper"):
        experiment_file("paper")
