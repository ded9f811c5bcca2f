"""The report as a reader's browser shows it: no console error, every figure there, no sideways scrolling."""

import time

import pytest

from mallowspo import compare, report
from tests.browser.chromium import Chromium, require_chromium
from tests.made_up_results import write

pytestmark = pytest.mark.browser

FIGURES = """[...document.querySelectorAll('.panel .plot svg')].map(svg => {
  const box = svg.getBoundingClientRect();
  return [svg.querySelectorAll('path, use').length, box.width, box.height];
})"""
# An SVG reference to an id that is missing, or there twice, draws the wrong thing without any error.
BROKEN_REFERENCES = """[...document.querySelectorAll('.plot use')]
  .map(use => use.getAttribute('xlink:href') || use.getAttribute('href'))
  .filter(href => document.querySelectorAll('[id="' + href.slice(1) + '"]').length !== 1)"""
TOO_WIDE = """[...document.querySelectorAll('main > section > *')].filter(
  element => element.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"""

SHOWN_PROMPT = "document.querySelector('#explore-prompt').textContent"
COUNT = "document.querySelector('#explore-count').textContent"
POINTS = "document.querySelectorAll('#explore-plot .in').length"


def place_of_point(number):
    """Where the centre of a point is in the window, by dispersion."""
    return f"""(() => {{
      document.querySelector('#explore-plot').scrollIntoView();
      const centres = [...document.querySelectorAll('#explore-plot .in')].map(point => {{
        const box = point.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
      }});
      return centres.sort((a, b) => a[0] - b[0])[{number}];
    }})()"""


def choose(select, text):
    return f"""(() => {{
      const select = document.querySelector('{select}');
      select.value = [...select.options].find(option => option.text === '{text}').value;
      select.dispatchEvent(new Event('change'));
    }})();"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    require_chromium()
    made = write(tmp_path_factory.mktemp("results"))
    compare.run(made.experiment.stage_view("compare"), made.layout)
    report.run(made.experiment.stage_view("report"), made.layout, made.settings_text)
    return made.layout.report


@pytest.fixture(scope="module")
def chromium(page, tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_page_shows_every_figure_and_fits(page, chromium, width, dark):
    chromium.complaints.clear()
    chromium.open(page, width, dark=dark)
    figures = chromium.evaluate(FIGURES)
    assert len(figures) == len(list((page.parent / "figures").glob("*.svg"))) > 15
    assert all(shapes > 10 and wide > 250 and high > 80 for shapes, wide, high in figures)
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    assert chromium.evaluate(TOO_WIDE) == 0
    assert chromium.complaints == []


def test_drawing_references_are_whole_and_unique(page, chromium):
    chromium.open(page, 1280)
    assert chromium.evaluate("document.querySelectorAll('.plot use').length") > 100
    assert chromium.evaluate(BROKEN_REFERENCES) == []


def test_model_text_stays_text(page, chromium):
    chromium.open(page, 1280)
    assert chromium.evaluate("document.title") == "Made-up comparison <b>of three</b>"
    assert chromium.evaluate("document.querySelectorAll('.model-text *').length") == 0
    assert chromium.evaluate("document.querySelectorAll('script').length") == 2  # ours, and its data
    assert "<script>document.title" in chromium.evaluate("document.querySelector('#samples').innerText")


def test_a_broken_page_would_be_noticed(tmp_path, page, chromium):
    """The checks above are not blind: an error, a missing picture and a wide block are each seen."""
    broken = tmp_path / "broken.html"
    broken.write_text("<main><section><div style='width:3000px'>wide</div></section></main><script>nowhere()</script>")
    chromium.complaints.clear()
    chromium.open(broken, 390)
    assert chromium.evaluate(FIGURES) == []
    assert chromium.evaluate(TOO_WIDE) == 1
    assert len(chromium.complaints) == 1


def test_hovering_a_point_shows_its_prompt_and_answers(page, chromium):
    chromium.complaints.clear()
    chromium.open(page, 1280)
    assert chromium.evaluate(SHOWN_PROMPT).startswith("Point at a prompt")
    x, y = chromium.evaluate(place_of_point(3))
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    by_dispersion = chromium.evaluate(
        "JSON.parse(document.querySelector('#explore-data').textContent).prompts"
        ".sort((a, b) => a.dispersion - b.dispersion)"
    )
    assert by_dispersion[3]["text"].split("{{")[0].strip() in chromium.evaluate(SHOWN_PROMPT)
    assert "mallows_theta says 0" in chromium.evaluate(SHOWN_PROMPT)
    assert chromium.evaluate("document.querySelectorAll('#explore-prompt script, #explore-prompt img').length") == 0
    assert chromium.evaluate("document.title") == "Made-up comparison <b>of three</b>"
    # Held by a click, it stays while the pointer goes on.
    for kind in ("mousePressed", "mouseReleased"):
        chromium.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    held = chromium.evaluate(SHOWN_PROMPT)
    x, y = chromium.evaluate(place_of_point(0))
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert chromium.evaluate(SHOWN_PROMPT) == held
    assert chromium.complaints == []


def test_the_dispersion_filter_changes_the_count(page, chromium):
    chromium.complaints.clear()
    chromium.open(page, 390)
    assert chromium.evaluate(COUNT) == "12 of 12 prompts are in this range."
    chromium.evaluate(
        "(() => { const low = document.querySelector('#explore-low');"
        "low.value = (Number(low.min) + Number(low.max)) / 2; low.dispatchEvent(new Event('input')); })()"
    )
    shown = chromium.evaluate(POINTS)
    assert 0 < shown < 12
    assert chromium.evaluate(COUNT) == f"{shown} of 12 prompts are in this range."
    chromium.evaluate("document.querySelector('#explore-high').value = document.querySelector('#explore-high').min;"
                      "document.querySelector('#explore-high').dispatchEvent(new Event('input'))")  # fmt: skip
    assert chromium.evaluate(POINTS) == 1  # the one with the least dispersion: the other end followed
    assert chromium.complaints == []


def test_outcome_and_policy_can_be_chosen_and_keys_step(page, chromium):
    chromium.complaints.clear()
    chromium.open(page, 1280)
    chromium.evaluate(choose("#explore-policy", "mallows_phi") + choose("#explore-minus", "reference"))
    first = chromium.evaluate("document.querySelector('#explore-plot').textContent")
    assert "Reward: mallows_phi minus reference" in first
    chromium.evaluate(choose("#explore-outcome", "Win rate against the reference"))
    assert chromium.evaluate(COUNT).startswith("Nothing to draw: one of the two policies has no values")
    chromium.evaluate(choose("#explore-minus", "nothing"))
    assert chromium.evaluate(POINTS) == 12
    chromium.evaluate("document.querySelector('#explore-plot').focus()")
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End"):
        chromium.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        seen.append(chromium.evaluate(SHOWN_PROMPT))
    assert seen[0] == seen[2] and len(set(seen)) == 3
    assert chromium.complaints == []


def test_the_plot_follows_the_width_of_the_window(page, chromium):
    chromium.complaints.clear()
    width = "document.querySelector('#explore-plot svg').viewBox.baseVal.width"
    chromium.open(page, 1280)
    wide = chromium.evaluate(width)
    size = {"width": 390, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    chromium.call("Emulation.setDeviceMetricsOverride", **size)
    until = time.monotonic() + 30
    while (narrow := chromium.evaluate(width)) == wide and time.monotonic() < until:
        time.sleep(0.05)
    assert narrow < 390 < wide and chromium.evaluate(POINTS) == 12
    assert chromium.complaints == []


def test_a_script_of_another_is_refused_by_the_page(tmp_path, page, chromium):
    """Even markup that got through would not run: the page's policy names the one script that may."""
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text(encoding="utf-8").replace("</main>", "<script>document.title = 1</script></main>"))
    chromium.complaints.clear()
    chromium.open(broken, 1280)
    assert chromium.evaluate("document.title") == "Made-up comparison <b>of three</b>"
    assert any("Content Security Policy" in complaint for complaint in chromium.complaints)
