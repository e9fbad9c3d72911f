"""Consensus: the model that all ranks of a user's loop stand for together."""

from __future__ import annotations

from torch import Tensor

from ...encoding import decode, encode
from ..status import Snapshot
from .ranks import RankHost
from .saved import as_bytes, as_tensor
from .words import Copy


def common_model(host: RankHost, what: str) -> Tensor:
    """The common parameters (d,); a collective, for the sake of `what`.

    Raises:
        RunError: a rank that the model needs is gone, or does not come.
    """
    copies = {snapshot.rank: snapshot for snapshot in host.snapshots()}
    types = tuple({t for snapshot in copies.values() for t in snapshot.states})
    for snapshot in copies.values():
        states = as_tensor(encode(list(snapshot.states.values())))
        host.tell_others(Copy(snapshot.rank, snapshot.parameters, states))
    for rank in host.others:
        with host.bearing_loss():
            for _ in range(host.placement.count(rank)):
                said = host.await_word(Copy, rank, f"rank {rank}'s copy for {what}")
                held = decode(as_bytes(said.states), types)
                states = {type(state): state for state in held}
                is_server = said.rank >= host.size
                copies[said.rank] = Snapshot(said.rank, is_server, said.parameters, states)
    return host.scheduler.method.model([copies[rank] for rank in sorted(copies)])
