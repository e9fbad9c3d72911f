"""Garbage: what is to be done when nothing refers to an object any more."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

_WAITING: dict[int, _Last] = {}
"""A weak reference calls only while it is itself referred to."""


class _Last(weakref.ref[Any]):
    __slots__ = ("arguments", "call")

    call: Callable[..., object]
    arguments: tuple[object, ...]


def when_garbage(target: object, call: Callable[..., object], *arguments: object) -> None:
    """Call that once the target is garbage, in whatever thread that happens; not at exit.

    As `weakref.finalize`, in a third of its time, which counts for what every message needs.
    """
    last = _Last(target, _call)
    last.call, last.arguments = call, arguments
    _WAITING[id(last)] = last


def _call(last: _Last) -> None:
    del _WAITING[id(last)]
    last.call(*last.arguments)
