"""The font that figures are drawn with: cut, with nothing of a figure lost."""

import re
import warnings
import zlib

import pandas as pd

from mallowspo.layout import Layout
from mallowspo.report.fonts import CUT, families
from mallowspo.report.style import draw_panel


def panel(folder, text):
    def draw(axes):
        axes.set_title(text)
        axes.plot([0, 1], [0, 1])

    layout = Layout(str(folder), "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # matplotlib warns of a character that no font has
        made = draw_panel(layout, "x", "alt", pd.DataFrame({"a": [1]}), draw)
    return made, (layout.figures / "x.pdf").read_bytes()


def test_a_pdf_holds_outlines_of_letters_as_publishers_want_them(tmp_path):
    _, pdf = panel(tmp_path, "Reward − é ≤ β")
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf
    assert set(re.findall(rb"/BaseFont /\w+\+(\S+)", pdf)) == {b"DejaVuSans", b"DejaVuSans-Bold"}


def test_letters_outside_the_cut_come_from_the_whole_font(tmp_path):
    assert families()[0] == CUT
    made, pdf = panel(tmp_path, "Награда и reward")
    assert made.svg.count("<use") > 16
    streams = [
        zlib.decompress(part) for part in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL) if part[:1] == b"x"
    ]
    assert any(b"041d" in stream.lower() for stream in streams)  # of the title's first letter


def test_the_same_data_gives_the_same_bytes(tmp_path):
    assert panel(tmp_path / "a", "Reward ⟨U⟩ 1") == panel(tmp_path / "b", "Reward ⟨U⟩ 1")
