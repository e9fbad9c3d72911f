"""What an all-reduce algorithm is: its messages, its sum, and its price."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..messages import codec_of, message
from ..node import Node
from ..suspensions import Group

Tag = tuple[int, int]


@message
class Chunk:
    values: Tensor  # about (d / n,), or (d,) where whole vectors are passed
    key: int
    sequence: int

    @property
    def tag(self) -> Tag:
        return (self.key, self.sequence)


class Lines(Protocol):
    """What a price asks of a network whose lines are all alike; times in nanoseconds."""

    def transfer(self, source: int, to: int, size: int, now: int) -> tuple[int, int]: ...

    def ring(
        self, hosts: Sequence[int], entered: Sequence[int], sizes: Sequence[int], rounds: int
    ) -> NDArray[np.int64]: ...


@dataclass(frozen=True, kw_only=True)
class Price:
    """What a collective costs, member by member.

    Args:
        finished: when each has its result, in nanoseconds.
        sent: bytes that each sends.
        first_to: which member each sends to first, by its place in the group.
    """

    finished: Sequence[int]
    sent: Sequence[int]
    first_to: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """One way to reduce over a group.

    Args:
        run: every member's part, as messages; its values are not changed until it has ended.
        mean: what `run` gives every member, bit for bit, from the members' values in order.
        price: of values (d,) like the given one, for members on these hosts who enter at these
            nanoseconds: the times and bytes of the messages of `run`, if nothing else is on
            these lines.
        seconds: closed form for n members, a message of so many bytes if whole, latency and
            bandwidth, when all enter at once: until the last has its result.
        in_step: whether the price is that of the messages only if all enter at one instant.
    """

    run: Callable[[Node, Tensor, Group, Tag], Coroutine[Any, Any, Tensor]]
    mean: Callable[[Sequence[Tensor]], Tensor]
    price: Callable[[Lines, Sequence[int], Sequence[int], Tensor], Price]
    seconds: Callable[[int, float, float, float], float]
    in_step: bool = False


def message_size(values: Tensor, count: int | None = None) -> int:
    """Bytes of a message with `count` of these values; with all of them if not given."""
    count = values.numel() if count is None else count
    overhead = codec_of(Chunk).size(Chunk(values.reshape(-1)[:0], 0, 0))
    return overhead + count * values.element_size()


def mean_in_order(values: Sequence[Tensor]) -> Tensor:
    """((x_0 + x_1) + x_2) + ..., divided by n."""
    total = values[0].detach().clone()
    for value in values[1:]:
        total += value
    return total.div_(len(values)) if len(values) > 1 else total
