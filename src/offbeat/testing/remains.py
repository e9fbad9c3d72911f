"""Remains: what a real run may leave behind, and must not.

before = Belongings.now()
...
assert not before.remains()
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_PR_SET_CHILD_SUBREAPER = 36
_POLL = 0.02


@dataclass(frozen=True, kw_only=True)
class Belongings:
    """What this process and all below it hold of the machine.

    Args:
        processes: below this one, as "4711 python".
        descriptors: how many files, sockets and pipes this process has open.
        memory: memory files that this process or one below it holds, as "/memfd:name of 4711".
        named: shared memory in /dev/shm; not semaphores, which are not told apart from those of
            others, nor what is named after a process elsewhere.
        folders: of the sockets of this process's runs, in /tmp.
    """

    processes: frozenset[str]
    descriptors: int
    memory: frozenset[str]
    named: frozenset[str]
    folders: frozenset[str]

    @classmethod
    def now(cls) -> Self:
        below = descendants()
        elsewhere = {pid for pid, _, _ in _processes()} - {os.getpid(), *below}
        memory = {
            f"{link} of {pid}"
            for pid in [os.getpid(), *below]
            for link in _open_files(pid)
            if link.startswith("/memfd:")
        }
        return cls(
            processes=frozenset(f"{pid} {name}" for pid, name in below.items()),
            descriptors=len(_open_files(os.getpid())),
            memory=frozenset(memory),
            named=frozenset(
                path.name
                for path in Path("/dev/shm").glob("*")
                if not path.name.startswith("sem.")
                and elsewhere.isdisjoint(map(int, re.findall(r"\d+", path.name)))
            ),
            folders=frozenset(map(str, Path("/tmp").glob(f"offbeat-{os.getpid()}-*"))),
        )

    def remains(self, patience: float = 2.0) -> list[str]:
        """What there is now and was not before, in words, once it does not go away any more.

        Args:
            patience: seconds for what is ending to end.
        """
        deadline = time.monotonic() + patience
        while (found := self._more(Belongings.now())) and time.monotonic() < deadline:
            time.sleep(_POLL)
        return found

    def _more(self, after: Belongings) -> list[str]:
        named = {
            "process": after.processes - self.processes,
            "shared memory": after.memory - self.memory,
            "named memory": after.named - self.named,
            "folder": after.folders - self.folders,
        }
        found = [f"{what} {name}" for what, names in named.items() for name in sorted(names)]
        if after.descriptors > self.descriptors:
            found.append(f"{after.descriptors - self.descriptors} open files of its own")
        return found


def adopt_orphans(*, adopt: bool = True) -> None:
    """Whether, from now on, a process below this one whose parent ends becomes its child."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def descendants() -> dict[int, str]:
    """Names of the living processes below this one, by number."""
    children: dict[int, list[tuple[int, str]]] = {}
    for pid, parent, name in _processes():
        children.setdefault(parent, []).append((pid, name))
    found: dict[int, str] = {}
    open_ends = [os.getpid()]
    while open_ends:
        for pid, name in children.get(open_ends.pop(), []):
            found[pid] = name
            open_ends.append(pid)
    return found


def _processes() -> Iterator[tuple[int, int, str]]:
    """Number, parent's number and name of every process that is not a zombie."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        # It may end while it is being read.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            before, _, after = path.read_text().rpartition(")")
            state, parent, *_ = after.split()
            if state != "Z":
                yield int(path.parent.name), int(parent), before.partition("(")[2]


def _open_files(pid: int) -> list[str]:
    """What the descriptors of a process are, that of this very look aside; none if it has ended."""
    found: list[str] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for entry in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.append(os.readlink(f"/proc/{pid}/fd/{entry}"))
    return found
