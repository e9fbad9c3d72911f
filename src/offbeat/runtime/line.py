"""Line: the words that a coordinator or an agent sends, and an inbox of those that it hears."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from ..encoding import EncodingError, decode, encode
from .tls import TLS
from .transport import Transport


class Line:
    """One end of it.

    Args:
        number: among the hosts of the run.
        listen: where others reach this one, as `Transport` has it.
        note: told, in one line, what was wrong with what others sent.
        tls: certificates, for connections between machines.

    Raises:
        OSError: an address is taken, or not of this machine.
    """

    def __init__(
        self,
        number: int,
        listen: Sequence[str],
        secret: bytes,
        note: Callable[[str], None],
        tls: TLS | None = None,
    ) -> None:
        self._inbox: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        self._note = note
        self._transport = Transport(
            number,
            listen,
            secret,
            self._on_frame,
            lambda host, graceful: self._inbox.put((host, None)),
            on_error=lambda error: note(" ".join(str(error).split())),
            tls=tls,
        )
        self.addresses = self._transport.addresses
        """Where others reach this one, in the order of `listen`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._transport.__exit__(kind, error, trace)

    def dial(self, host: int, address: str, timeout: float) -> None:
        """Connect to another end.

        Raises:
            ConnectionError: nobody is there within `timeout` seconds, or it refuses.
        """
        self._transport.connect({host: address}, timeout)

    def send(self, host: int, word: object) -> None:
        """Say something; whoever is not there is met again as one that has left."""
        with contextlib.suppress(ValueError):
            self._transport.send(host, encode(word))

    def hear(self, timeout: float) -> Iterator[tuple[int, Any]]:
        """What has come, from whom; waits for something at most so many seconds.

        None in place of a word: that connection has ended.
        """
        with contextlib.suppress(queue.Empty):
            yield self._inbox.get(timeout=timeout)
            while True:
                yield self._inbox.get_nowait()

    def _on_frame(self, host: int, parts: list[memoryview]) -> None:
        try:
            self._inbox.put((host, decode(parts[0])))
        except EncodingError as error:
            self._note(f"host {host} said what cannot be understood: {error}")
