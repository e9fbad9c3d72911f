"""Signals: handlers written in Python wait while the thread that they interrupt cannot bear it."""

from __future__ import annotations

import os
import signal
import threading

# What `signal` wraps. Its own functions search for the name of each handler, and find none, which
# for all signals together costs as much as receiving a message.
from _signal import getsignal as _handler_of  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
from _signal import signal as _set_handler  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

_NUMBERS = sorted(map(int, signal.valid_signals()))


class DeferredSignals:
    """Let no handler run in the `with` block; signals that came are raised anew after it.

    Python calls handlers between any two instructions of the main thread. One that raises, as that
    of Ctrl-C does or that of a data loader whose worker was killed, would leave half done what it
    interrupts. In other threads none are called, and the block is as any other. Handlers in C that
    call those in Python (`faulthandler.register` with `chain`) are not put back.

    The block is given the set of the signals that have come.

    Args:
        on_signal: called in the middle of the block when one comes, to bring about its end.
    """

    def __init__(self, on_signal: Callable[[], object]) -> None:
        self._on_signal = on_signal
        self._arrived: set[int] = set()
        self._handlers: dict[int, Any] = {}
        """By signal, those that are to be put back."""
        self._process = os.getpid()

    def __enter__(self) -> set[int]:
        if threading.get_ident() == threading.main_thread().ident:
            self._handlers = _python_handlers()
            try:
                for number in self._handlers:
                    # It may have replaced itself meanwhile.
                    self._handlers[number] = _set_handler(number, self._note)
            except BaseException:
                self.__exit__()
                raise
        return self._arrived

    def __exit__(self, *error: object) -> None:
        if self._handlers:
            try:
                _put_back(self._handlers)
            finally:
                _raise(sorted(self._arrived))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # Another thread has forked meanwhile.
            self._handlers[number](number, frame)
            return
        self._arrived.add(number)
        self._on_signal()


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
