"""Asynchronous decentralized parallel SGD."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from ..ledger import Ledger
from ..messages import message
from ..method import Method
from ..node import Node
from ..suspensions import PeerLost
from ..topology import Ring, Topology


@message
class Offer:  # active -> passive
    parameters: Tensor  # (d,)


@message
class Difference:  # passive -> active
    delta: Tensor  # (d,)


@dataclass
class Exchange:
    """A worker's own averaging, and whom it has put off meanwhile."""

    under_way: bool = False
    put_off: list[tuple[int, Offer]] = field(default_factory=list[tuple[int, Offer]])


@dataclass(frozen=True, kw_only=True)
class ADPSGD(Method):
    """AD-PSGD: x_i, x_j <- (x_i + x_j) / 2 with a random neighbour j, then x_i <- x_i - lr * g_i.

    The averaging goes on while the gradient is computed, at a snapshot taken before. It exchanges
    differences: j subtracts delta = (x_j - x_i) / 2 and sends it to i, who adds it. Whatever
    either has applied in between is kept, and the sum of all x never changes.

    Two offers that cross would swap x_i and x_j instead of averaging them. So a worker whose own
    offer is out puts off those of higher rank until it is answered; waits then go from higher to
    lower ranks only, and no graph deadlocks.

    Args:
        topology: who may average with whom.

    Roles: worker, answer (beside it). Messages: Offer, Difference.
    Reference: Lian et al., "Asynchronous Decentralized Parallel Stochastic Gradient Descent",
    ICML 2018, algorithm 1.
    Differences: differences instead of values, so that the graph need not be bipartite; momentum
    stays with its worker.
    """

    topology: Topology = field(default_factory=Ring)

    family: ClassVar[str] = "decentralized"
    background: ClassVar[tuple[str, ...]] = ("answer",)
    messages: ClassVar[tuple[type, ...]] = (Offer, Difference)
    survives_loss: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {"topology": Ring()}
    ledger: ClassVar[Ledger | None] = Ledger(
        held=lambda node: node.parameters,
        carried=lambda message: message.delta if isinstance(message, Difference) else None,
    )

    async def step(self, node: Node) -> None:
        averaging = node.start(self._average(node))
        gradient = await node.gradient()  # The averaging goes on meanwhile.
        await averaging
        node.apply(gradient)

    async def _average(self, node: Node) -> None:
        neighbours = sorted(node.peers(self.topology).out)
        if not neighbours:
            return
        exchange, peer = node.state(Exchange), node.rng.choice(neighbours)
        exchange.under_way = True
        node.send(peer, Offer(node.parameters))
        with contextlib.suppress(PeerLost):  # Then this round has no averaging.
            _, answer = await node.recv(Difference, source=peer)
            node.mix(add=answer.delta)
        exchange.under_way = False
        while exchange.put_off:
            self._accept(node, *exchange.put_off.pop(0))

    async def answer(self, node: Node) -> None:
        peer, offer = await node.recv(Offer)
        exchange = node.state(Exchange)
        if exchange.under_way and peer > node.rank:
            exchange.put_off.append((peer, offer))
        else:
            self._accept(node, peer, offer)

    def _accept(self, node: Node, peer: int, offer: Offer) -> None:
        delta = (node.parameters - offer.parameters) / 2
        node.mix(add=-delta)
        node.send(peer, Difference(delta))
