"""Causes: what answered a suspension, as journals keep it."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Kind(IntEnum):
    """What answered a suspension, as a journal keeps it.

    Those that end in NOW did so without the role being suspended.
    """

    GRADIENT = 1
    MESSAGE = 2
    MESSAGE_NOW = 3
    LOST = 4
    LOST_NOW = 5
    CANCELLED = 6
    CANCELLED_NOW = 7
    WOKEN = 8
    POLL = 9
    CLOCK = 10
    DEPARTURE = 11
    PARKED = 12
    RETUNED = 13
    PAUSED = 14
    PROCEEDED = 15


class Cause(NamedTuple):
    """Why a role goes on: the kind, and for a message its sender and number from that sender."""

    kind: Kind
    source: int = -1
    sequence: int = -1


GRADIENT = Cause(Kind.GRADIENT)
WOKEN = Cause(Kind.WOKEN)
CANCELLED = Cause(Kind.CANCELLED)
