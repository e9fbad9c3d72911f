"""Ledger: what a method conserves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .node import Node


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """A quantity that messages carry from node to node, and only `Node.apply` creates.

        held by live nodes + in flight or unread + lost = start + joined + applied

    Args:
        held: what a node has of it (k,).
        carried: what a message has of it (k,), or None if nothing.
    """

    held: Callable[[Node], Tensor]
    carried: Callable[[Any], Tensor | None]
