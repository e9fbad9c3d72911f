"""Words: what the ranks of a user's loop tell each other, beside nodes and journals."""

from __future__ import annotations

from torch import Tensor

from ...messages import message


@message
class Start:
    """What every rank begins with: rank 0's."""

    parameters: Tensor  # (d,)
    constants: Tensor  # uint8: frozen parameters and buffers, encoded


@message
class Overflow:
    """Whether the sender's scaled gradients have overflowed."""

    step: int
    found: bool


@message
class Counts:
    """The messages between nodes that the sender, who steps no more, has had so far."""

    pause: int
    """Which of the pauses of the job this is about."""
    sent: Tensor  # (ranks,) int64, to each
    received: Tensor  # (ranks,) int64, from each


@message
class Paused:
    """The sender has seen that all is quiet, and will do nothing before all have."""

    pause: int


@message
class Sent:
    """Which messages the sender's worker sent in its present round, before its gradient."""

    first: Tensor  # (nodes,) int64: the number of the first, to each
    after: Tensor  # (nodes,) int64: that of the one after the last


@message
class Copy:
    """A node's parameters and states, for `consensus`."""

    rank: int
    parameters: Tensor  # (d,)
    states: Tensor  # uint8: encoded


@message
class Memory:
    """What the optimizers of the sender's servers remember, at the end: a part of it."""

    to_come: int
    """Parts after this one."""
    part: Tensor  # uint8: encoded


@message
class Left:
    """The sender's loop is over; it goes on to serve the others until theirs are."""

    rounds: int
    """That its worker took part in; in those others still count on it, wherever they are by now."""


@message
class Farewell:
    """The sender will ask nothing more of the nodes of a rank that has left its loop."""

    steps: int


@message
class Answered:
    """The sender, who has left its loop, has answered all that was asked before a Farewell."""

    steps: int


@message
class Finished:
    """The sender has all it needs of the others."""

    steps: int
