"""Everyone sends everyone a message."""

from __future__ import annotations

from typing import TypeVar

from ..node import Node
from ..suspensions import Group

M = TypeVar("M")


async def exchange(node: Node, own: M, group: Group, tag: tuple[int, int] | None = None) -> list[M]:
    """The messages of all members, in the group's order; this node's is `own`.

    In round s each member sends to the s-th after it and awaits that of the s-th before it: all at
    once would have several senders at one receiver while other receivers are idle. Each reads only
    those whose tag is `tag`, if it is given.
    """
    n, here = len(group), group.index(node.rank)
    everyone = [own] * n
    for s in range(1, n):
        before = (here - s) % n
        node.send(group[(here + s) % n], own)
        _, everyone[before] = await node.recv(type(own), source=group[before], tag=tag)
    return everyone
