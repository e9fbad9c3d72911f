"""Reassembly: the processes of a run go on from states that all are given, new ones among them.

A process that is lost, and that the method cannot do without, comes back this way: all go back to
the last checkpoint. A worker that joins late comes this way: all go on from where they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..encoding import encode
from ..method import Method
from .capture import NodeState, read_state
from .checkpoint import Checkpoint
from .errors import RunError
from .placement import Placement
from .roster import Roster
from .seats import Seat
from .status import Snapshot
from .world import World

TIMEOUT = 120.0
"""Seconds for new processes to build their model and find the others."""


class Reassembly:
    """One of them, step by step.

    Args:
        start: lets all live members begin.
        states: of every node from which it goes on, by rank; a node without one begins anew.
        tickets: that have been used up there.
    """

    def __init__(
        self,
        roster: Roster,
        placement: Placement,
        start: Callable[[], None],
        states: Mapping[int, bytes],
        tickets: int,
    ) -> None:
        self.states = states
        self._tickets = tickets
        self.newcomers: list[Seat] = []
        self._roster = roster
        self._placement = placement
        self._start = start
        self._told = False
        self._deadline = time.monotonic() + TIMEOUT

    def add(self, seat: Seat) -> None:
        """A process is to be waited for; those that were told already are told again."""
        self.newcomers.append(seat)
        self._told = False
        self._deadline = time.monotonic() + TIMEOUT

    def advance(self) -> bool:
        """Do what is next; whether all go on now.

        Raises:
            RunError: a new process does not come.
        """
        late = [
            seat for seat in self.newcomers if not seat.addresses or (self._told and not seat.met)
        ]
        for seat in self.newcomers:
            if seat.failed is not None or seat.ended is not None:
                raise RunError(f"{seat.names} did not come back: {seat.failed or seat.ended}")
        if time.monotonic() > self._deadline:
            names = ", ".join(seat.names for seat in late) or "the others"
            raise RunError(f"{names} did not come back within {TIMEOUT:g} s")
        if not self._told:
            if not late and self._roster.is_quiet():
                self._tell()
            return False
        if late or any(not seat.restored for seat in self._roster.live()):
            return False
        for seat in self.newcomers:
            seat.arriving = False
        for seat in self._roster.live():
            seat.status = None
        self._start()
        return True

    def _tell(self) -> None:
        self._told = True
        # Only now: whoever is told gives up what it has in store, granted until this moment.
        assert self._placement.tickets is not None
        self._placement.tickets.set(self._tickets)
        for seat in self._roster.live():
            seat.restored = False
            self._placement.restore(seat, self._of(seat))
        for seat in self.newcomers:
            seat.restored = True
            self._placement.introduce(seat, self._of(seat))

    def _of(self, seat: Seat) -> dict[int, bytes]:
        return {rank: self.states[rank] for rank in seat.ranks if rank in self.states}


def admit(
    method: Method, states: Mapping[int, bytes], ranks: Sequence[int], servers: Sequence[int]
) -> dict[int, bytes]:
    """The states of all nodes, with those of workers that come in late.

    A newcomer begins with the present model, at the round that all the others are at.
    """
    known = {rank: read_state(state) for rank, state in states.items()}
    workers = [state for rank, state in sorted(known.items()) if rank not in servers]
    model = method.model([_holder(state, state.rank in servers) for state in known.values()])
    first = max(state.round for state in workers)
    furthest = max(workers, key=lambda state: (min(state.versions), state.samples))
    gone = {peer for state in known.values() for peer in state.departed} - set(ranks)
    found: dict[int, bytes] = {}
    for rank, state in known.items():
        present = tuple(peer for peer in state.departed if peer not in ranks)
        found[rank] = encode(
            replace(state, departed=present, first_round=state.first_round | _from(ranks, first))
        )
    versions = tuple(known[rank].versions[0] for rank in servers) or furthest.versions
    for rank in ranks:
        names = furthest.parameters
        newcomer = NodeState(
            rank=rank,
            parameters=_split(model, names),
            versions=versions,
            round=first,
            requests=first,
            samples=furthest.samples,
            mixes=0,
            mixes_at_snapshot=0,
            random=furthest.random,
            states=(),
            optimizer=None,
            outer={},
            collectives=furthest.collectives,
            departed=tuple(sorted(gone)),
            first_round=furthest.first_round | _from(ranks, first),
            unread=(),
            received={},
        )
        found[rank] = encode(newcomer)
    return found


def with_everyone(checkpoint: Checkpoint, world: World) -> Checkpoint:
    """The checkpoint with all workers: those that departed before it come in late there.

    Raises:
        CheckpointError, EncodingError: a node's state cannot be read.
    """
    begins_absent = world.experiment.cluster.begins_absent
    ranks = [
        rank for rank in world.workers if rank not in checkpoint.nodes and not begins_absent(rank)
    ]
    if not ranks or not world.experiment.method.survives_loss:
        return checkpoint
    known = {rank: checkpoint.node(rank) for rank in checkpoint.nodes}
    states = admit(world.experiment.method, known, ranks, world.servers)
    return replace(checkpoint, nodes=tuple(sorted(states)), states=states)


def _from(ranks: Sequence[int], first: int) -> dict[int, int]:
    return dict.fromkeys(ranks, first)


def _split(model: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = model.split([tensor.numel() for tensor in like.values()])
    return {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}


def _holder(state: NodeState, is_server: bool) -> Snapshot:
    flat = torch.cat([tensor.reshape(-1) for tensor in state.parameters.values()])
    return Snapshot(state.rank, is_server, flat, {type(held): held for held in state.states})
