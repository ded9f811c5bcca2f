"""Python on the pages: run as it stands, or listed with the reason why not."""

from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
import torch
from pydantic import Field
from torch import Tensor

from mallowspo import concepts_figure
from mallowspo.layout import Layout
from mallowspo.methods import METHODS, Method
from mallowspo.objectives import LINKS, Objective, PairScores
from mallowspo.report.style import draw_panel
from mallowspo.studies.result import Section, StudyResult
from mallowspo.studies.settings import Study
from tests.doc_commands import ROOT, all_blocks, is_python

#: Page and first line -> who runs it, or why nobody does.
KNOWN = {
    ("docs/adding_a_method.md", "def bounded"): "below",
    ("docs/adding_a_study.md", "class CoinStudy"): "below",
    ("docs/adding_a_study.md", "def run"): "below",
    ("docs/use_in_your_own_code.md", "import torch"): "tests/unit/test_docs.py",
    ("docs/tracking.md", "from mlflow.server"): "needs a server with users; tests/unit/test_security_auth.py has one",
    ("docs/tracking.md", "live = track_live"): "needs a training; tests/unit/test_tracking.py has one",
}
FOUND = {(block.page, block.text.split("\n")[0]): block.text for block in all_blocks() if is_python(block)}


def block(page, start):
    (text,) = [text for (of, first), text in FOUND.items() if of == page and first.startswith(start)]
    return text


def indented(page, start):
    """An indented block that is no whole program, such as a row of a table."""
    (text,) = [found.text for found in all_blocks() if found.page == page and found.text.startswith(start)]
    return text


def test_every_block_is_known_and_compiles():
    for (page, first), text in FOUND.items():
        assert any(page == of and first.startswith(start) for of, start in KNOWN), f"{page}: {first}"
        compile(text, page, "exec")


def test_the_method_of_the_page(monkeypatch):
    """A link and a row are all it takes. By hand: at a margin of 2 nats and beta 0.1 the loss is sigmoid(-0.2)."""
    names = {"torch": torch, "Tensor": Tensor, "Method": Method}
    exec(block("docs/adding_a_method.md", "def bounded"), names)
    monkeypatch.setitem(LINKS, "bounded", names["bounded"])
    row = eval("{" + indented("docs/adding_a_method.md", '"bounded_dpo"') + "}", names)
    monkeypatch.setitem(METHODS, "bounded_dpo", row["bounded_dpo"])
    chosen, rejected, zero = (torch.tensor([value]) for value in (-3.0, -5.0, 0.0))
    scores = PairScores(chosen_logp=chosen, rejected_logp=rejected, reference_chosen=zero, reference_rejected=zero)
    assert Objective("bounded_dpo", beta=0.1)(scores).loss.item() == pytest.approx(0.450166, abs=1e-6)


def test_the_study_of_the_page(tmp_path):
    names = {"Study": Study, "Literal": Literal, "Field": Field, "Layout": Layout, "Path": Path}
    names |= {"StudyResult": StudyResult, "Section": Section, "draw_panel": draw_panel}
    table = pd.DataFrame({"side": ["heads", "tails"], "share": [0.5, 0.5]})
    names |= {"table": table, "table_of_numbers": table, "draw": lambda axes: axes.bar(table["side"], table["share"])}
    for start in ("class CoinStudy", "def run"):
        exec(block("docs/adding_a_study.md", start), names)
    study = names["CoinStudy"].model_validate({"kind": "coin", "title": "Coin", "heads": 0.4})
    result = names["run"](study, Layout(str(tmp_path), "coin"), None)
    assert result.numbers == {"heads": 0.5}
    assert (tmp_path / "coin/figures/coin.svg").exists()


def test_the_figure_of_concepts_is_what_its_command_draws(tmp_path):
    drawn = concepts_figure.run(tmp_path)
    assert drawn.read_bytes() == (ROOT / "docs/images/concepts.svg").read_bytes()
    text = (ROOT / "docs/concepts.md").read_text(encoding="utf-8")
    assert "images/concepts.svg" in text and "python -m mallowspo.concepts_figure" in text
