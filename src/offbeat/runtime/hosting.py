"""Hosting: which machines start the processes of a run that its coordinator's own does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..experiment import Experiment, to_config
from ..likeness import differing, settings, shown
from ..runs import versions
from . import control
from .errors import RunError
from .seats import Seat


class Hosting:
    """The agents that have come, and the seats that they fill.

    Args:
        seats: those that are to be filled by agents, in order.
        journals: where the journals of their nodes go; nowhere if None.
        send: sends a word to an agent.
        replaces: whether lost processes are started anew.
    """

    def __init__(
        self,
        experiment: Experiment,
        seats: Sequence[Seat],
        journals: Path | None,
        send: Callable[[int, Any], None],
        *,
        replaces: bool,
    ) -> None:
        self.unplaced = list(seats)
        self.agents: dict[int, list[Seat]] = {}
        """The agents that take part, and their seats."""
        self._settings = settings(to_config(experiment))
        self._journals = journals
        self._send = send
        self._replaces = replaces

    def heed(self, agent: int, word: Any) -> list[tuple[int, str]]:
        """Hear an agent; which processes have ended by that, and how. None: it is gone."""
        if isinstance(word, control.Offer):
            self._place(agent, word)
        elif isinstance(word, control.Journal) and self._journals is not None:
            # A name is a name: what an agent sends lands in this folder only.
            (self._journals / Path(word.name).name).write_bytes(word.content)
        elif isinstance(word, control.Ended) and any(
            seat.host == word.host for seat in self.agents.get(agent, [])
        ):
            return [(word.host, word.how)]
        elif word is None:
            seats = self.agents.pop(agent, [])
            return [(s.host, "was on a machine that is gone") for s in seats if s.ended is None]
        return []

    def missing(self, patience: float) -> str:
        """Which nodes have no machine, and what to do."""
        nodes = ", ".join(seat.names for seat in self.unplaced)
        return (
            f"nobody came for {nodes} within {patience:g} s: start the same command on more "
            "machines, or raise --slots"
        )

    def _place(self, agent: int, offer: control.Offer) -> None:
        refusal = self._refusal(offer)
        if refusal is not None:
            self._send(agent, control.Refused(text=refusal))
            return
        if offer.hosts:
            seats = [seat for seat in self.unplaced if seat.host in offer.hosts]
        else:
            seats = self.unplaced[: offer.slots]
        self.unplaced = [seat for seat in self.unplaced if seat not in seats]
        self.agents[agent] = seats
        for seat in seats:
            seat.agent = agent
        hosts = tuple(seat.host for seat in seats)
        self._assign(agent, hosts)

    def again(self, seat: Seat) -> None:
        """Have the process of a seat started that one of its agent's was in before.

        Raises:
            RunError: that agent is gone.
        """
        assert seat.agent is not None
        if seat.agent not in self.agents:
            raise RunError(
                f"{seat.names} was on a machine that is gone, and no other can start it: go on "
                "from the last checkpoint by `offbeat run --resume`"
            )
        self.agents[seat.agent].append(seat)
        self._assign(seat.agent, (seat.host,))

    def _assign(self, agent: int, hosts: tuple[int, ...]) -> None:
        word = control.Assigned(
            hosts=hosts, journals=self._journals is not None, replaces=self._replaces
        )
        self._send(agent, word)

    def _refusal(self, offer: control.Offer) -> str | None:
        """Why this offer cannot be taken."""
        theirs = settings(offer.experiment)
        apart = differing(self._settings, theirs)
        if apart:
            name = apart[0]
            return (
                f"the experiments differ: {name} is {shown(self._settings, name)} at the "
                f"coordinator and {shown(theirs, name)} here; give the same options everywhere"
            )
        for package, version in versions().items():
            found = offer.versions.get(package)
            if package in ("offbeat", "torch") and found != version:
                return (
                    f"the versions differ: {package} is {version} at the coordinator and {found} "
                    "here; install the same everywhere"
                )
        wanted = set(offer.hosts) - {seat.host for seat in self.unplaced}
        if wanted or not self.unplaced:
            return "every node has a place already: the run has begun, or is about to"
        return None
