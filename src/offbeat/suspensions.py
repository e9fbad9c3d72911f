"""Suspensions: what a role awaits, and what it is answered."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from torch import Tensor

from .parameters import Dense, PiecewiseVector, SparseVector, Values

if TYPE_CHECKING:
    from .node import Node

M = TypeVar("M")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Group = range | tuple[int, ...]
"""Members of a collective, in the order of its ring; of all workers a range, which hashes fast."""


class PeerLost(Exception):
    """The peer from which a role awaited something has crashed or left."""

    def __init__(self, peer: int) -> None:
        super().__init__(f"node {peer} is gone")
        self.peer = peer


class Suspension(Generic[R]):
    """What a role awaits: the scheduler takes it and later resumes the role with its result."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, R]:
        return (yield self)


class Gradient:
    """A minibatch gradient at a snapshot of the parameters.

    Args:
        values: (d,), dense, sparse or in pieces, as the model gives it.
        versions: of each shard of the snapshot; one number unless servers share the parameters.
        loss: of the minibatch.
    """

    __slots__ = ("_sparse", "_values", "_vector", "loss", "versions")

    def __init__(self, values: Values, versions: tuple[int, ...], loss: float) -> None:
        self._values = values
        self._vector = values if isinstance(values, Tensor) else None
        self._sparse = values if isinstance(values, SparseVector) else None
        self.versions = versions
        self.loss = loss

    @property
    def vector(self) -> Tensor:
        """(d,), dense; of a gradient that is sparse or in pieces made when first asked for."""
        if self._vector is None:
            assert not isinstance(self._values, Tensor)
            self._vector = self._values.dense()
        return self._vector

    @property
    def dense(self) -> Dense:
        """`vector`, or the pieces of it while nobody has wanted it whole."""
        if self._vector is not None:
            return self._vector
        return self._values if isinstance(self._values, PiecewiseVector) else self.vector

    def sparse(self) -> tuple[Tensor, Tensor]:
        """Coordinates that may be other than zero, (k,) int64 increasing, and their values (k,).

        They are those that the model's own sparse gradients name, where it gives such
        (`nn.Embedding(sparse=True)`), and all of its dense parameters; of a model without sparse
        gradients, and in the user's loop, the entries of `vector` that are not zero.
        """
        if self._sparse is None:
            vector = self.vector
            indices = vector.nonzero().reshape(-1)
            self._sparse = SparseVector(size=len(vector), indices=indices, values=vector[indices])
        return self._sparse.indices, self._sparse.values

    @property
    def version(self) -> int:
        return self.versions[0]


@dataclass(slots=True, eq=False)
class GradientRequest(Suspension[Gradient]):
    node: Node
    snapshot: Tensor
    """Not a copy: the runtime makes one where anything may change it before the gradient is there.
    """
    batch: Tensor | None
    cancel_on: type | None
    step: int
    versions: tuple[int, ...]
    changes: int
    """How often the node's parameters had been changed."""

    def __await__(self) -> Generator[Any, Any, Gradient]:
        if self.node.changes != self.changes:
            raise RuntimeError(
                f"node {self.node.rank}'s parameters were changed between gradient() and its "
                "await; await node.gradient() where you call it"
            )
        return (yield self)

    def __str__(self) -> str:
        return "gradient()"


@dataclass(slots=True, eq=False)
class Receive(Suspension[tuple[int, M]]):
    message_type: type[M]
    source: int | None
    tag: tuple[int, int] | None
    departures: bool = False
    """Whether the departure of any peer ends it."""

    def __await__(self) -> Generator[Any, Any, tuple[int, M]]:
        # In a list, for whoever resumes a role keeps what it is given until the next suspension,
        # and the memory of a message may be another node's, who waits for it.
        return (yield self).pop()

    def accepts(self, source: int, message: Any) -> bool:
        return (self.source is None or self.source == source) and (
            self.tag is None or message.tag == self.tag
        )

    def __str__(self) -> str:
        sender = "" if self.source is None else f", source={self.source}"
        return f"recv({self.message_type.__name__}{sender})"


@dataclass(slots=True, eq=False)
class Sleep(Suspension[None]):
    seconds: float

    def __str__(self) -> str:
        return f"sleep({self.seconds:g})"


@dataclass(slots=True, eq=False)
class Meet(Suspension[Tensor]):
    """A collective that the runtime carries out itself, without messages of the role's."""

    values: Tensor
    group: Group
    tag: tuple[int, int]

    def __str__(self) -> str:
        return f"all_reduce(group of {len(self.group)})"


class Started(Protocol[R_co]):
    """A coroutine that runs beside the role that started it; await it for its result."""

    def __await__(self) -> Generator[Any, Any, R_co]: ...
