"""How runs are told apart: a colour per family, as in the plots; shades and dashes within it."""

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
    "shared memory": "#D2A679",
    "decentralized": "#2BCB9A",
    "local updates": "#E38BD0",
    "user": "#F5C04A",
}
"""The families' colours on a dark ground."""
DASHES = ("solid", "8px,3px", "2px,3px", "10px,3px,2px,3px")
PATTERNS = ("none", "8 3", "2 3", "10 3 2 3")
"""The same dashes, as SVG writes them."""
SHADES = ((False, 0.0), (True, 0.4), (False, 0.5), (False, 0.2), (True, 0.2), (False, 0.7))
"""Whether a shade nears the ground or the ink, and how far: three far apart, and three between."""
ON_LIGHT_GREYS, ON_DARK_GREYS = (0.0, 1.0), (1.0, 0.1)
"""Ink and ground of a light page, and of a dark one."""


@dataclass(frozen=True, kw_only=True)
class Style:
    light: str
    dark: str
    dash: str
    pattern: str


def styles(runs: Sequence[Run]) -> list[Style]:
    """One for each run: the next dash and the next shade of its family's, 24 before they repeat."""
    used: Counter[str] = Counter()
    found: list[Style] = []
    for run in runs:
        family = run.experiment.method.family
        k = used[family]
        used[family] += 1
        # Three shades and four dashes make twelve pairs; the next twelve have the shades between.
        shade = SHADES[(k % 3 + k // 12 * 3) % len(SHADES)]
        light = FAMILY_COLOURS.get(family, FAMILY_COLOURS["user"])
        dark = ON_DARK.get(family, ON_DARK["user"])
        found.append(
            Style(
                light=_mixed(light, shade, ON_LIGHT_GREYS),
                dark=_mixed(dark, shade, ON_DARK_GREYS),
                dash=DASHES[k % len(DASHES)],
                pattern=PATTERNS[k % len(DASHES)],
            )
        )
    return found


def _mixed(colour: str, shade: tuple[bool, float], greys: tuple[float, float]) -> str:
    """That colour with a share of the ink's or the ground's grey in it."""
    ground, share = shade
    grey = greys[ground]
    red, green, blue = ((1 - share) * part + share * grey for part in to_rgb(colour))
    return to_hex((red, green, blue))
