"""`mallowspo excerpt`: what of finished experiments goes into a repository."""

import re

import pytest
from typer.testing import CliRunner

from mallowspo import compare
from mallowspo.cli import app
from mallowspo.errors import InputError
from mallowspo.files import write_text
from mallowspo.report import page
from tests.made_up_results import write


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A comparison with its page."""
    made = write(tmp_path_factory.mktemp("results"), steps=2)
    compare.run(made.experiment.stage_view("compare"), made.layout)
    page.run(made.experiment.stage_view("report"), made.layout, made.settings_text)
    return made


def command(*arguments):
    return CliRunner().invoke(app, ["excerpt", *map(str, arguments)])


def test_an_excerpt_reads_alone(made, tmp_path):
    layout = made.layout
    done = command(layout.experiment, "--out", tmp_path, "--results", layout.results, "--figures", "win_rate*,frontier")
    assert done.exit_code == 0, done.output
    folder = tmp_path / layout.experiment
    text = (folder / "README.md").read_text()
    assert text.startswith("# Made-up comparison \\<b>of three\\</b>\n\nDoes a dispersion-weighted")
    assert f"[settings](settings.yaml) {made.experiment.identity}, commit " in text
    assert "**On reward, " in text and "| Metric | Method | Minus dpo | Holm p | Detectable | n | Seeds |" in text
    assert (layout.tables / "main.md").read_text().rstrip() in text
    assert f"    snakemake --cores all --config experiments={layout.experiment}\n" in text
    assert (folder / "settings.yaml").read_bytes() == layout.settings.read_bytes()
    drawn = sorted(file.name for file in (folder / "figures").iterdir())
    assert drawn == sorted(file.name for file in layout.figures.glob("*.svg") if file.name.startswith(("win_", "fron")))
    assert all(f"(figures/{name})" in text for name in drawn) and "frontier.svg" in drawn
    for table in layout.tables.glob("*.csv"):
        assert (folder / "tables" / table.name).read_bytes() == table.read_bytes()


def test_a_long_table_is_named_in_place_of_shown(made, tmp_path, monkeypatch):
    monkeypatch.setattr("mallowspo.excerpt.MOST_ROWS", 1)
    command(made.layout.experiment, "--out", tmp_path, "--results", made.layout.results)
    text = (tmp_path / made.layout.experiment / "README.md").read_text()
    named = r"Minus dpo: (\d+) rows in \[tables/comparison.csv\]\(tables/comparison.csv\)"
    assert int(re.search(named, text).group(1)) > 1 and "| Minus dpo |" not in text


def test_an_older_excerpt_is_replaced(made, tmp_path):
    write_text(tmp_path / made.layout.experiment / "figures" / "old.svg", "old")
    command(made.layout.experiment, "--out", tmp_path, "--results", made.layout.results, "--figures", "none")
    assert not (tmp_path / made.layout.experiment / "figures").exists()


def test_an_unfinished_experiment_is_refused(tmp_path):
    error = command("mine", "--out", tmp_path / "out", "--results", tmp_path).exception
    assert isinstance(error, InputError) and "not finished; run snakemake --config experiments=mine" in str(error)
    assert not (tmp_path / "out").exists()


def test_of_the_paper_the_tables_and_figures(tmp_path):
    error = command("paper", "--out", tmp_path / "out", "--results", tmp_path).exception
    assert isinstance(error, InputError) and "no page of the paper's claims; run mallowspo paper" in str(error)
    for name in ("claims", "tests", "differs"):
        write_text(tmp_path / "paper" / "tables" / f"{name}.md", f"| {name} |\n")
    write_text(tmp_path / "paper" / "tables" / "claims.csv", "claim\n")
    write_text(tmp_path / "paper" / "figures" / "overview.svg", "<svg/>")
    assert command("paper", "--out", tmp_path / "out", "--results", tmp_path).exit_code == 0
    text = (tmp_path / "out" / "paper" / "README.md").read_text()
    assert text.index("| claims |") < text.index("| tests |") < text.index("| differs |")
    assert "![overview](figures/overview.svg)" in text and "snakemake --cores all paper\n" in text
    assert sorted(file.name for file in (tmp_path / "out" / "paper").rglob("*.*")) == [
        "README.md", "claims.csv", "overview.svg"
    ]  # fmt: skip


def test_a_large_table_is_left_out_and_named(made, tmp_path):
    large = made.layout.tables / "large.csv"
    write_text(large, "x" * 200_001)
    command(made.layout.experiment, "--out", tmp_path, "--results", made.layout.results)
    large.unlink()
    assert not (tmp_path / made.layout.experiment / "tables" / "large.csv").exists()
    text = (tmp_path / made.layout.experiment / "README.md").read_text()
    assert text.endswith("Left out, larger than 200 kB: large.csv.\n")
