"""Signals: handlers written in Python wait while the thread that they interrupt cannot bear it."""

from __future__ import annotations

import os
import signal
import threading

# What `signal` wraps. Its own functions search for the name of each handler, and find none, which
# for all signals together costs as much as receiving a message.
from _signal import getsignal as _handler_of  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
from _signal import signal as _set_handler  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NUMBERS = sorted(map(int, signal.valid_signals()))


@contextmanager
def deferred_signals(on_signal: Callable[[], object]) -> Generator[set[int]]:
    """Let no handler run in the block; signals that came are raised anew after it.

    Python calls handlers between any two instructions of the main thread. One that raises, as that
    of Ctrl-C does or that of a data loader whose worker was killed, would leave half done what it
    interrupts. In other threads none are called, and the block is as any other. Handlers in C that
    call those in Python (`faulthandler.register` with `chain`) are not put back.

    Args:
        on_signal: called in the middle of the block when one comes, to bring about its end.

    Yields:
        the signals that have come.
    """
    arrived: set[int] = set()
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    own = _python_handlers()
    process = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # Another thread has forked meanwhile.
            own[number](number, frame)
            return
        arrived.add(number)
        on_signal()

    try:
        for number in own:
            own[number] = _set_handler(number, note)  # It may have replaced itself meanwhile.
        yield arrived
    finally:
        try:
            _put_back(own)
        finally:
            _raise(sorted(arrived))


_known: tuple[list[Any], dict[int, Any]] = ([], {})
"""Handlers as they were found last, and by number those that are called."""


def _python_handlers() -> dict[int, Any]:
    """Of each signal whose handler is written in Python, that handler; a new mapping."""
    global _known
    found = [*map(_handler_of, _NUMBERS)]
    if found != _known[0]:  # They hardly ever change.
        pairs = zip(_NUMBERS, found, strict=True)
        _known = found, {number: handler for number, handler in pairs if callable(handler)}
    return dict(_known[1])


def _put_back(handlers: Mapping[int, Any]) -> None:
    """All of them, though one that is back already may be called, and raise."""
    failure: BaseException | None = None
    while True:
        try:
            for number, handler in handlers.items():
                _set_handler(number, handler)
            break
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure


def _raise(numbers: list[int]) -> None:
    """One after the other, also if a handler raises."""
    if numbers:
        try:
            signal.raise_signal(numbers[0])
        finally:
            _raise(numbers[1:])
