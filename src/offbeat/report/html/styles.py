"""How runs are told apart: a colour per family, as in the plots; dashes and shades within it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.colors import to_hex, to_rgb

from ...runs import Run
from ..plots import FAMILY_COLOURS

ON_DARK = {
    "serial": "#B8B8B8",
    "all-reduce": "#56B4E9",
    "parameter server": "#FF8B3D",
    "decentralized": "#2BCB9A",
    "local updates": "#E38BD0",
    "user": "#F5C04A",
}
"""The families' colours on a dark ground."""
DASHES = ("solid", "8px,3px", "2px,3px", "10px,3px,2px,3px")
PATTERNS = ("none", "8 3", "2 3", "10 3 2 3")
"""The same dashes, as SVG writes them."""


@dataclass(frozen=True, kw_only=True)
class Style:
    light: str
    dark: str
    dash: str
    pattern: str


def styles(runs: Sequence[Run]) -> list[Style]:
    """One for each run: dashes first, then fainter shades."""
    used: Counter[str] = Counter()
    found: list[Style] = []
    for run in runs:
        family = run.experiment.method.family
        k = used[family]
        used[family] += 1
        shade = min(0.22 * (k // len(DASHES)), 0.66)
        light = FAMILY_COLOURS.get(family, FAMILY_COLOURS["user"])
        dark = ON_DARK.get(family, ON_DARK["user"])
        found.append(
            Style(
                light=_mixed(light, 1.0, shade),
                dark=_mixed(dark, 0.1, shade),
                dash=DASHES[k % len(DASHES)],
                pattern=PATTERNS[k % len(DASHES)],
            )
        )
    return found


def _mixed(colour: str, grey: float, share: float) -> str:
    """That colour with a share of a grey in it."""
    red, green, blue = ((1 - share) * part + share * grey for part in to_rgb(colour))
    return to_hex((red, green, blue))
