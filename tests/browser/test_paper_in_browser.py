"""The page of the paper as a reader's browser shows it: no console error, every figure there, no sideways scrolling."""

import os
from pathlib import Path

import pytest

from mallowspo.paper import page as paper_page
from mallowspo.paper.published import load_published
from mallowspo.paper.settings import load_paper
from tests.browser.chromium import Chromium, require_chromium
from tests.browser.test_report_page import BROKEN_REFERENCES, FIGURES, TOO_WIDE
from tests.made_up_paper import write_paper

pytestmark = pytest.mark.browser

IMAGES = """[...document.querySelectorAll('.plot img')].map(image => {
  const box = image.getBoundingClientRect();
  return [image.complete && image.naturalWidth > 0, box.width, box.height];
})"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    require_chromium()
    folder = tmp_path_factory.mktemp("paper")
    write_paper(folder, ("sentiment_smollm2", "controls_sentiment_smollm2"), prompts=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        paper = load_paper()
        return folder / paper_page.run(paper, load_published(list(paper.claims)), "cpu", "results")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_page_shows_every_figure_and_fits(page, tmp_path, width, dark):
    with Chromium(tmp_path / "profile") as chromium:
        chromium.open(page, width, dark=dark)
        drawn, images = chromium.evaluate(FIGURES), chromium.evaluate(IMAGES)
        assert len(drawn) + len(images) == len(list((page.parent / "figures").glob("*.svg"))) >= 5
        assert all(shapes > 10 and wide > 250 and high > 80 for shapes, wide, high in drawn)
        assert all(loaded and wide > 250 and high > 80 for loaded, wide, high in images)
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        assert chromium.evaluate(TOO_WIDE) == 0
        assert chromium.evaluate(BROKEN_REFERENCES) == []
        assert chromium.complaints == []
        if folder := os.environ.get("MALLOWSPO_SCREENSHOTS"):
            chromium.screenshot(Path(folder) / f"paper_{width}_{'dark' if dark else 'light'}.png")
