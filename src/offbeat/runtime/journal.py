"""Journal: the order in which one node's suspensions were answered, kept so that a kill spares it.

A role is a deterministic function of its gradients and of what the journal holds: which message
answered which await, what polls found, what the clock said, when a departure was noticed.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .causes import Cause, Kind
from .errors import RunError

MAGIC = b"offbeat journal 2\0\0\0\0\0\0\0"
_COUNT = struct.Struct("<Q")
_MACHINE = struct.Struct("<q")
_ENTRY = struct.Struct("<B3xIiIqq")
_START = len(MAGIC) + _COUNT.size + _MACHINE.size
_GROWTH = 1 << 20


class JournalError(RunError, ValueError):
    """A file that is no journal, or one that the run being replayed does not follow."""


class Entry(NamedTuple):
    """`time` is in nanoseconds since the run began."""

    task: int
    cause: Cause
    time: int


class Journal:
    """Appends to a file mapped into memory: what a killed process has written is there to read.

    `machine` is the number of the machine that the node is on, for the choice of collectives.
    """

    def __init__(self, path: Path, machine: int = 0) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        # Room is taken now: a page that the disk lacks when it is written to kills by SIGBUS.
        os.posix_fallocate(self._fd, 0, _GROWTH)
        self._map = mmap.mmap(self._fd, _GROWTH)
        self._map[: len(MAGIC)] = MAGIC
        _MACHINE.pack_into(self._map, len(MAGIC) + _COUNT.size, machine)
        self._count = 0
        self._position = _START

    def append(self, task: int, cause: Cause, time: int) -> None:
        if self._position + _ENTRY.size > len(self._map):
            size = len(self._map) + _GROWTH
            os.posix_fallocate(self._fd, 0, size)
            self._map.resize(size)
        kind, source, sequence = cause
        _ENTRY.pack_into(self._map, self._position, kind, task, source, 0, sequence, time)
        self._position += _ENTRY.size
        self._count += 1
        # The count comes after the entry, so a reader never sees half of one.
        _COUNT.pack_into(self._map, len(MAGIC), self._count)

    def close(self) -> None:
        self._map.close()
        os.ftruncate(self._fd, self._position)
        os.close(self._fd)


def read_journal(path: Path) -> list[Entry]:
    """The entries of a journal, in order.

    Raises:
        JournalError: the file is no journal.
    """
    data = _contents(path)
    (count,) = _COUNT.unpack_from(data, len(MAGIC))
    if len(data) < _START + count * _ENTRY.size:
        raise JournalError(f"{path} is cut short: {count} entries do not fit {len(data)} bytes")
    return list(_entries(data, count))


def read_machine(path: Path) -> int:
    """The number of the machine that a journal's node was on.

    Raises:
        JournalError: the file is no journal.
    """
    (machine,) = _MACHINE.unpack_from(_contents(path), len(MAGIC) + _COUNT.size)
    return machine


def _contents(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise JournalError(f"journal {path} cannot be read: {error.strerror}") from error
    if len(data) < _START or not data.startswith(MAGIC):
        raise JournalError(f"{path} is no journal of a run")
    return data


def _entries(data: bytes, count: int) -> Iterator[Entry]:
    body = memoryview(data)[_START : _START + count * _ENTRY.size]
    for kind, task, source, _, sequence, time in _ENTRY.iter_unpack(body):
        yield Entry(task, Cause(Kind(kind), source, sequence), time)
