"""Trace: the typed record of a run, one table per kind of thing that happens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TABLES: dict[str, list[tuple[str, str]]] = {
    "gradients": [("node", "i4"), ("start_ns", "i8"), ("end_ns", "i8"), ("loss", "f8")],
    "steps": [
        ("node", "i4"),
        ("at_ns", "i8"),
        ("version", "i8"),
        ("staleness", "i8"),
        ("mixes", "i8"),
    ],
    "messages": [
        ("source", "i4"),
        ("to", "i4"),
        ("kind", "i4"),
        ("bytes", "i8"),
        ("sent_ns", "i8"),
        ("start_ns", "i8"),
        ("end_ns", "i8"),
        ("outcome", "i1"),
    ],
    "waits": [("node", "i4"), ("start_ns", "i8"), ("end_ns", "i8")],
    "work": [("node", "i4"), ("start_ns", "i8"), ("end_ns", "i8")],
    "faults": [("node", "i4"), ("at_ns", "i8"), ("kind", "i1"), ("factor", "f8")],
}
DELIVERED, LOST = 0, 1
FAULT_KINDS = ("crash", "leave", "join", "slow")


PACKED = 4096
"""Rows that are packed at once."""


class Rows:
    """A table as it grows: the latest rows as tuples, those before packed, in far less memory.

    Only one thread at a time may append to it or read it.
    """

    def __init__(self, columns: list[tuple[str, str]]) -> None:
        self._dtype = np.dtype(columns)
        self._packed: list[NDArray[np.void]] = []
        self._latest: list[tuple[float, ...]] = []

    def append(self, row: tuple[float, ...]) -> None:
        self._latest.append(row)
        if len(self._latest) >= PACKED:
            self._pack()

    def extend(self, table: NDArray[np.void]) -> None:
        """Append the rows of such a table."""
        self._pack()
        self._packed.append(table.astype(self._dtype))

    def __len__(self) -> int:
        return sum(map(len, self._packed)) + len(self._latest)

    def __iter__(self) -> Iterator[tuple[float, ...]]:
        return iter(self.table().tolist())

    @property
    def last(self) -> tuple[float, ...] | None:
        """None if there are none."""
        if not self._latest and len(self):
            return self.table()[-1].item()
        return self._latest[-1] if self._latest else None

    def table(self) -> NDArray[np.void]:
        """All of them; not to be written."""
        self._pack()
        if len(self._packed) != 1:
            self._packed = [np.concatenate([np.empty(0, self._dtype), *self._packed])]
        self._packed[0].flags.writeable = False
        return self._packed[0]

    def _pack(self) -> None:
        if self._latest:
            self._packed.append(np.array(self._latest, dtype=self._dtype))
            self._latest.clear()


class Trace:
    """Rows are appended as tuples while the run goes on, and read as structured arrays.

    Tables and columns are those of `TABLES`; times are integer nanoseconds since the run began.
    `kinds` names the message classes that `messages["kind"]` numbers.
    """

    def __init__(self) -> None:
        self.rows = {name: Rows(columns) for name, columns in TABLES.items()}
        self.kinds: list[str] = []
        self._kind_numbers: dict[str, int] = {}

    def kind(self, name: str) -> int:
        """The number under which a message class's name is recorded."""
        number = self._kind_numbers.get(name)
        if number is None:
            number = self._kind_numbers[name] = len(self.kinds)
            self.kinds.append(name)
        return number

    def table(self, name: str) -> NDArray[np.void]:
        return self.rows[name].table()

    @property
    def gradients(self) -> NDArray[np.void]:
        """When each node computed, and the minibatch loss."""
        return self.table("gradients")

    @property
    def steps(self) -> NDArray[np.void]:
        """One row per gradient applied: the step's version, its staleness in optimizer steps, and
        how many mixings the node saw since the gradient's snapshot."""
        return self.table("steps")

    @property
    def messages(self) -> NDArray[np.void]:
        """Every message: when sent, when its transfer began, when it arrived."""
        return self.table("messages")

    @property
    def waits(self) -> NDArray[np.void]:
        """When each node's worker role waited for a message, a collective or a sleep."""
        return self.table("waits")

    @property
    def work(self) -> NDArray[np.void]:
        """When each server's processor worked on a message that had reached it."""
        return self.table("work")

    @property
    def faults(self) -> NDArray[np.void]:
        """Crashes, departures, arrivals and changes of speed; `kind` indexes FAULT_KINDS."""
        return self.table("faults")

    def merge(self, other: Trace) -> None:
        """Add another host's rows, behind those that are here."""
        renumbered = np.array([self.kind(name) for name in other.kinds], dtype="i4")
        for name in TABLES:
            table = other.table(name)
            if name == "messages":
                table = table.copy()
                table["kind"] = renumbered[table["kind"]]
            self.rows[name].extend(table)

    def columns(self) -> dict[str, dict[str, NDArray[np.generic]]]:
        """Every table's columns, to be sent elsewhere with `kinds`."""
        tables = {name: self.table(name) for name in TABLES}
        return {
            name: {column: np.ascontiguousarray(table[column]) for column, _ in TABLES[name]}
            for name, table in tables.items()
        }

    @classmethod
    def of_columns(
        cls, tables: Mapping[str, Mapping[str, NDArray[np.generic]]], kinds: Iterable[str]
    ) -> Trace:
        """The trace whose `columns` and `kinds` these are.

        Raises:
            ValueError: a table or column is missing, or its columns differ in length.
        """
        trace = cls()
        for name, columns in TABLES.items():
            try:
                held = [tables[name][column].tolist() for column, _ in columns]
                rows = np.array(list(zip(*held, strict=True)), dtype=columns)
                trace.rows[name].extend(rows)
            except KeyError as error:
                raise ValueError(f"a trace lacks {error} of its table {name}") from None
        for kind in kinds:
            trace.kind(kind)
        return trace

    def hash(self) -> str:
        """SHA-256 over every row: equal for equal runs."""
        digest = hashlib.sha256(repr(self.kinds).encode())
        for name in TABLES:
            digest.update(self.table(name).tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write `path` (.npz): one structured array per table, and `kinds`."""
        tables = {name: self.table(name) for name in TABLES}
        np.savez_compressed(path, allow_pickle=False, kinds=np.array(self.kinds, "U"), **tables)

    @classmethod
    def load(cls, path: Path) -> Trace:
        trace = cls()
        with np.load(path, allow_pickle=False) as stored:
            for name in TABLES:
                trace.rows[name].extend(stored[name])
            for kind in stored["kinds"].tolist():
                trace.kind(kind)
        return trace
