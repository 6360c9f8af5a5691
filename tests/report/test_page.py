from __future__ import annotations

import re

import pytest

from common.handlers import MASK_COLOR, TRUTH_COLOR
from common.report.page import FOLDER, SCRIPTS

STYLE = (FOLDER / "style.css").read_text()
DARK = STYLE[STYLE.index("prefers-color-scheme: dark") :]
PAIRS = [(tone, sheet) for tone in ("ink", "soft", "own", "other") for sheet in ("paper", "sheet")]


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("style", [STYLE, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("tone", "sheet"), [*PAIRS, ("doubt", "doubt-sheet"), ("doubt", "sheet")])
def test_texts_stand_out_as_wcag_aa_asks(style, tone, sheet):
    one, other = (luminance(re.search(rf"--{name}: (#\w+)", style)[1]) for name in (tone, sheet))
    assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5


def test_outlines_have_the_colors_of_the_pictures_beside_them():
    tints = re.search(r"TINTS = \{ mask: (\[.*?\]), truth: (\[.*?\]) \}", (FOLDER / "viewer.js").read_text())
    assert [tuple(map(int, re.findall(r"\d+", tint))) for tint in tints.groups()] == [MASK_COLOR, TRUTH_COLOR]


def test_every_script_is_in_the_page_and_short_enough_to_read():
    files = {path.stem for path in FOLDER.glob("*.js")}
    assert files == set(SCRIPTS)
    assert all(path.read_text().count("\n") <= 320 for path in FOLDER.iterdir())


def test_the_page_may_ask_the_network_for_nothing():
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', (FOLDER / "page.html").read_text())[1]
    assert policy.startswith("default-src 'none'")
    assert not re.search(r"https?:|\*", policy)
    assert all("http" not in path.read_text().replace("http://www.w3.org/2000/svg", "") for path in FOLDER.glob("*.js"))
