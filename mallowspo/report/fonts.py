"""The figures' font, cut to the characters that figures usually hold: a PDF is then written in a third of the time.

matplotlib embeds TrueType outlines (publishers refuse its quicker Type 3 fonts), and for each PDF it has fontTools read
the whole font: 6,000 glyphs with the layout rules of many scripts, of which a figure needs fifty. So the font is cut
once a process, and each figure cuts the small one. What the small one lacks is taken from the whole one.
"""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from fontTools import subset
from matplotlib import font_manager

FAMILY = "DejaVu Sans"
CUT = "DejaVu Sans, cut"
WEIGHTS = ("normal", "bold")
#: First and last code points: Latin and Greek letters, punctuation, a few signs.
KEPT = ((0x20, 0x7E), (0xA0, 0x17F), (0x391, 0x3C9), (0x2010, 0x2044), (0x2190, 0x2193), (0x2212, 0x2212),
        (0x2248, 0x2248), (0x2264, 0x2265))  # fmt: skip
#: Ids of a font's name table that say its family; the PostScript name, which a PDF tells, stays.
_FAMILY_IDS = (1, 16)


@cache
def families() -> list[str]:
    """Font families for matplotlib, the first to be asked first; made known to it at the first call."""
    folder = Path(tempfile.mkdtemp(prefix="mallowspo-fonts-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for weight in WEIGHTS:
        whole = font_manager.findfont(font_manager.FontProperties(family=FAMILY, weight=weight))
        font_manager.fontManager.addfont(_cut(Path(whole), folder))
    return [CUT, FAMILY]


def _cut(whole: Path, folder: Path) -> Path:
    """The same font with the glyphs of `KEPT` alone, under the family `CUT`."""
    # No time of writing in it: equal inputs give equal bytes.
    options = subset.Options(notdef_outline=True, recalc_timestamp=False)
    options.drop_tables += ["FFTM"]  # when its editor wrote it
    path = folder / whole.name
    with subset.load_font(str(whole), options) as font:
        cutter = subset.Subsetter(options)
        cutter.populate(unicodes=[code for first, last in KEPT for code in range(first, last + 1)])
        cutter.subset(font)
        for entry in font["name"].names:
            if entry.nameID in _FAMILY_IDS:
                entry.string = CUT
        subset.save_font(font, str(path), options)
    return path
