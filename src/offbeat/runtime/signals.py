"""Signals: handlers written in Python wait while the thread that they interrupt cannot bear it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NUMBERS = sorted(signal.valid_signals())
Arrived = list[tuple[int, FrameType | None]]


@contextmanager
def deferred_signals(on_signal: Callable[[], object]) -> Generator[Arrived]:
    """Let no handler run in the block; those of signals that came are called after it.

    Python calls handlers between any two instructions of the main thread. One that raises, as that
    of Ctrl-C does or that of a data loader whose worker was killed, would leave half done what it
    interrupts. In other threads none are called, and the block is as any other.

    Args:
        on_signal: called in the middle of the block when one comes, to bring about its end.

    Yields:
        those that have come.
    """
    arrived: Arrived = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    own: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        arrived.append((number, frame))
        on_signal()

    def put_back() -> None:
        for number, handler in own.items():
            signal.signal(number, handler)

    try:
        for number in _NUMBERS:
            if callable(handler := signal.getsignal(number)):
                own[number] = handler
                signal.signal(number, note)
        yield arrived
    finally:
        # Twice: one that is back already may be called, and raise, before all are.
        try:
            put_back()
        finally:
            put_back()
    for number, frame in arrived:
        own[number](number, frame)
