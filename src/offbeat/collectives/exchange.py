"""Everyone sends everyone a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from ..node import Node
from ..suspensions import Group
from .algorithm import Tag

M = TypeVar("M")


async def exchange(node: Node, own: M, group: Group, tag: Tag | None = None) -> list[M]:
    """The messages of all members, in the group's order; this node's is `own`.

    Each reads only those whose tag is `tag`, if it is given.
    """
    return await exchange_each(node, [own] * len(group), group, tag)


async def exchange_each(
    node: Node, outgoing: Sequence[M], group: Group, tag: Tag | None = None
) -> list[M]:
    """The same with a message of its own for each member; this node keeps that for itself.

    In round s each member sends to the s-th after it and awaits that of the s-th before it: all at
    once would have several senders at one receiver while other receivers are idle.
    """
    n, here = len(group), group.index(node.rank)
    everyone = list(outgoing)
    for s in range(1, n):
        after, before = (here + s) % n, (here - s) % n
        node.send(group[after], outgoing[after])
        kind = type(outgoing[after])
        _, everyone[before] = await node.recv(kind, source=group[before], tag=tag)
    return everyone
