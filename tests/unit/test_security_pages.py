"""What models, judges and data wrote stays text: on the page, in Markdown, LaTeX and CSV, in figures and in MLflow."""

import base64
import csv
import hashlib
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from mallowspo import compare, report, tracking
from mallowspo.experiments import dump_settings
from mallowspo.files import read_json, read_jsonl, write_json, write_jsonl
from mallowspo.layout import Layout
from mallowspo.report.outcome_figures import _file_name
from mallowspo.report.style import csv as as_csv
from mallowspo.report.style import draw_panel
from mallowspo.report.table import Table, write_table
from mallowspo.tracking.contents import metric_name
from mallowspo.tracking.store import connect
from mallowspo.visible import visible
from tests.made_up_results import rewrite, write

ATTACKS = [
    "<script>document.title='taken over'</script>",
    "</script></style></pre></title><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "<svg/onload=alert(1)>",
    "javascript:alert(1)",
    "--><iframe src=//x></iframe>",
    "{{ 7 * 7 }}{% for x in y %}",
    "| a | b |\n|---|---|\\|",
    "$\\frac{1}$ costs $5 and $6_a",
    "\\input{/etc/passwd} 100% #1 & ~ ^ _x_",
    '=HYPERLINK("http://x")',
    "[click](javascript:alert(1))",
    "\u202egnp.exe\u2066 \u200f \x1b[2J\x00\x07\r\n\u2028 end",
]
HOSTILE = " ".join(ATTACKS)
NAME = "<b>\"'=| $x$ ](javascript:1) \u202e \x1b[2J \\ & % ../../etc/passwd" + "long " * 60


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Made-up results in which everything that others write is an attack."""
    against = {"alpaca": {"against": ["baseline", "path:outputs.json"]}}
    made = write(tmp_path_factory.mktemp("results"), evaluation=against)
    layout = made.layout
    for run in [("reference", 0), *made.experiment.runs()]:
        answers = read_jsonl(layout.samples(*run))
        write_jsonl(layout.samples(*run), [{**row, "output": HOSTILE, "instruction": HOSTILE} for row in answers])
    for split in ("train", "test"):
        rewrite(layout.pairs(split), _hostile_pairs)
    rewrite(layout.prompts, lambda table: table.assign(prompt=[f"{HOSTILE} {n}" for n in range(len(table))]))
    for run in made.experiment.runs():
        folder = layout.scores(*run)
        wins = pd.read_parquet(folder / "alpaca.parquet").assign(against=_cleaned(NAME))
        rewrite(folder / "alpaca_against.parquet", lambda table, wins=wins: pd.concat([table, wins]))
        judged = read_json(folder / "judge.json")
        comparison = judged["comparisons"][0]
        judged["comparisons"].append({**comparison, "against": _cleaned(NAME)})
        write_json(folder / "judge.json", judged | {"judge": f"openai:{ATTACKS[0]}"})
    health = read_json(layout.data_health)
    write_json(layout.data_health, [*health, {**health[0], "check": ATTACKS[1], "note": HOSTILE}])
    compare.run(made.experiment.stage_view("compare"), layout)
    titled = made.experiment.model_copy(update={"title": HOSTILE, "question": HOSTILE})
    report.run(titled.stage_view("report"), layout, dump_settings(titled))
    return made


def _cleaned(name):
    """As the stage alpaca names an opponent."""
    from mallowspo.evaluation.outputs import generator_of

    return generator_of([{"generator": name}], "x")


def _hostile_pairs(table):
    meta = [json.dumps({"source": ATTACKS[n % 2] + NAME}) for n in range(len(table))]
    return table.assign(prompt=HOSTILE, chosen=HOSTILE, rejected=HOSTILE + "!", meta=meta)


class Reader(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def test_nothing_on_the_page_runs(made):
    page = made.layout.report.read_text(encoding="utf-8")
    reader = Reader(page)
    assert not reader.tags & {"img", "iframe", "object", "embed", "base"}
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert not [
        v for n, v in reader.attributes if n in ("href", "src", "xlink:href") and (v or "").startswith("javascript")
    ]
    assert page.count("<svg") == page.count("</svg>")
    for attack in ("<script>document.title='taken over'</script>", "' onmouseover='alert(1)", "{{ 7 * 7 }}"):
        assert attack in reader.text
    assert "default-src 'none'" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\u200f]", page)
    assert "⟨U+202E⟩gnp.exe" in reader.text and "␛[2J" in reader.text


def test_the_one_script_is_ours_and_its_data_are_no_markup(made):
    page = made.layout.report.read_text(encoding="utf-8")
    data, script = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert page.count("<script") == page.count("</script>") == 2
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert html.unescape(policy).endswith(f"script-src 'sha256-{digest}'")
    assert script == (Path(report.__file__).parent / "explore.js").read_text(encoding="utf-8")
    assert not re.search("[<>&'\u2028\u2029]", data)
    value = json.loads(data)
    assert value["prompts"][0]["text"].startswith(ATTACKS[0]) and ATTACKS[1] in value["prompts"][0]["answers"][0]
    for risky in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "fetch(", "import("):
        assert risky not in script


def test_every_figure_has_files_with_names_of_letters(made):
    names = [path.name for path in made.layout.figures.iterdir()]
    assert all(re.fullmatch(r"[\w.-]{1,150}", name) for name in names)
    (hostile,) = (
        name for name in names if name.startswith("win_rate_against_") and name.endswith(".svg") and "_b_" in name
    )
    assert hostile.removesuffix(".svg") == _file_name(f"win_rate against {_cleaned(NAME)}")


def test_names_that_differ_have_files_that_differ():
    assert _file_name("win_rate against a b") == "win_rate_against_a_b"
    found = {_file_name(f"win_rate against {name}") for name in ("a b", "a;b", "a:b", "a" * 200, "a" * 201)}
    assert len(found) == 5 and max(map(len, found)) < 90


def test_markdown_tables_keep_their_columns(made):
    for file in made.layout.tables.glob("*.md"):
        head, _, *rows = file.read_text(encoding="utf-8").split("\n")[:-1]
        # An escaped bar is no border; two backslashes are one, and no escape.
        borders = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in (head, *rows)]
        assert len(set(borders)) == 1, file
        text = "\n".join(rows)
        assert not re.search(r"(?<!\\)<[a-zA-Z/!?]", text) and "](" not in text
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", text)


def test_latex_tables_hold_no_command_of_others(made):
    for file in made.layout.tables.glob("*.tex"):
        text = file.read_text(encoding="utf-8")
        assert "\\input" not in text and "$x$" not in text and not re.search(r"(?<!\\)%", text)
        assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", text)
        rows = [line for line in text.split("\n") if line.endswith("\\\\")]
        assert len({len(re.findall(r"(?<!\\)&", line)) for line in rows}) == 1, file


def test_csv_files_hold_no_formula(made):
    for file in [*made.layout.tables.glob("*.csv"), *made.layout.figures.glob("*.csv")]:
        for row in csv.reader(io.StringIO(file.read_text(encoding="utf-8"))):
            for cell in row:
                assert not cell.startswith(("=", "@", "\t", "\r")), (file, cell)
                assert not cell.startswith(("+", "-")) or re.fullmatch(r"[-+]?[\d.e+-]+|-?inf", cell), (file, cell)


def test_csv_numbers_are_left_as_they_are():
    table = pd.DataFrame({"value": [-0.5, 1e-9, float("nan")], "name": ["=1+1", "-rf", "plain"], "n": [-1, 2, 3]})
    assert as_csv(table) == "value,name,n\n-0.5,'=1+1,-1\n1e-09,'-rf,2\n,plain,3\n"


@pytest.mark.parametrize("text", ATTACKS)
def test_any_table_takes_any_text(tmp_path, text):
    layout = Layout(str(tmp_path), "x")
    frame = pd.DataFrame([{"Name": text, "Value": "1"}, {"Name": "plain", "Value": "2"}])
    write_table(layout, Table("t", frame, frame, ("Name",)))
    markdown = (layout.tables / "t.md").read_text(encoding="utf-8")
    assert markdown.count("\n") == 4
    latex = (layout.tables / "t.tex").read_text(encoding="utf-8")
    assert latex.count("\\\\\n") == 3


@pytest.mark.parametrize("text", ATTACKS)
def test_any_figure_takes_any_text(tmp_path, text):
    layout = Layout(str(tmp_path), "x")

    def draw(axes):
        axes.set_title(text)
        axes.set_yticks([0], [text])
        axes.plot([0, 1], [0, 1], label=text)
        axes.legend()

    panel = draw_panel(layout, "x", text, pd.DataFrame({"a": [1]}), draw)
    assert not Reader(panel.svg).tags & {"script", "img", "iframe"} and panel.svg.count("<svg") == 1


def test_names_in_mlflow_are_names():
    assert metric_name("eval/win_rate against ../../etc//x/./y") == "eval/win_rate against ../etc/x/y"
    long = metric_name("lm_eval", "a" * 400, "acc"), metric_name("lm_eval", "a" * 401, "acc")
    assert [len(name) for name in long] == [250, 250] and long[0] != long[1]


def test_mlflow_takes_whatever_the_results_hold(made, tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    experiment = made.experiment.model_copy(update={"title": HOSTILE})
    tracking.run(experiment.stage_view("track"), made.layout, uri)
    client = connect(uri)
    found = client.get_experiment_by_name("mallowspo/made_up")
    runs = client.search_runs([found.experiment_id])
    assert len(runs) == 1 + len(made.experiment.runs())
    (parent,) = (run for run in runs if run.data.tags["mallowspo.kind"] == "experiment")
    assert parent.data.tags["mlflow.note.content"] == visible(HOSTILE)
    child = next(run for run in runs if run.data.tags["mallowspo.kind"] == "training")
    assert any(name.startswith("eval/win_rate against _b_") for name in child.data.metrics)
