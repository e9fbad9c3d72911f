"""Signals: handlers written in Python wait while the thread that they interrupt cannot bear it."""

from __future__ import annotations

import inspect
import os
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NUMBERS = sorted(signal.valid_signals())
# Without the search for a name of the handler, which takes longer than all else here.
_handler_of = inspect.unwrap(signal.getsignal)


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
    own: dict[int, Any] = {}
    process = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # Another thread has forked meanwhile.
            own[number](number, frame)
            return
        arrived.add(number)
        on_signal()

    try:
        for number in _NUMBERS:
            if callable(handler := _handler_of(number)):
                own[number] = handler
                signal.signal(number, note)
        yield arrived
    finally:
        try:
            _put_back(own)
        finally:
            _raise(sorted(arrived))


def _put_back(handlers: Mapping[int, Any]) -> None:
    """All of them, though one that is back already may be called, and raise."""
    failure: BaseException | None = None
    while True:
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
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
