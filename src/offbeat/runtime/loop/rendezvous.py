"""Rendezvous: how the ranks of a job that torchrun started find each other."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import DistError
from torch.distributed.rendezvous import rendezvous

from ..errors import RunError

_STORES: list[tuple[Store, int, int]] = []
"""The job's store, once met: there is one for each process, as torchrun's is."""
_USES = itertools.count()
_REFUSAL = "refused: "
"""Begins what a rank that cannot take part says in place of what was asked of it."""


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """One use of `distribute` in a job: its ranks, and a store with keys of its own."""

    store: Store | None
    """None if there is one rank only."""
    rank: int
    size: int

    @classmethod
    def of_job(cls, timeout: float) -> Rendezvous:
        """As RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say; a lone rank without them.

        Raises:
            RunError: the others do not come, or the rank that keeps the store is not there.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(store=None, rank=0, size=1)
        if not _STORES:
            with _met("the ranks of the job"):
                _STORES.append(next(rendezvous("env://", timeout=timedelta(seconds=timeout))))
        store, rank, size = _STORES[0]
        return cls(store=PrefixStore(f"offbeat/{next(_USES)}", store), rank=rank, size=size)

    def share(self, key: str, value: bytes) -> bytes:
        """Rank 0's value, on every rank.

        Raises:
            RunError: none has come in time.
        """
        if self.store is None:
            return value
        with _met(f"rank 0's {key}"):
            if self.rank == 0:
                self.store.set(key, value)  # pyright: ignore[reportArgumentType]
            return self.store.get(key)

    def exchange(self, key: str, value: str) -> dict[int, str]:
        """Every rank's value, on every rank.

        Nobody goes on before all have read all, for the store may live in the process of one of
        them, and end with it.

        Raises:
            RunError: a rank has refused to take part, or has not come in time.
        """
        if self.store is None:
            return {self.rank: value}
        ranks = range(self.size)
        with _met(f"the {key} of all ranks"):
            self.store.set(f"{key}/{self.rank}", value)
            values = {rank: self.store.get(f"{key}/{rank}").decode() for rank in ranks}
            self.store.set(f"{key}/{self.rank}/read", "")
            if self.rank == 0:
                self.store.wait([f"{key}/{rank}/read" for rank in ranks])
        for said in values.values():
            if said.startswith(_REFUSAL):
                raise RunError(said.removeprefix(_REFUSAL))
        return values

    def refuse(self, key: str, reason: str) -> None:
        """Tell the others, who wait for this rank's value, why none comes."""
        if self.store is not None:
            with _met(f"the {key} of all ranks"):
                self.store.set(f"{key}/{self.rank}/read", "")
                self.store.set(f"{key}/{self.rank}", f"{_REFUSAL}{reason}")


@contextlib.contextmanager
def _met(what: str) -> Generator[None]:
    """Turn what the store raises into a RunError of one line."""
    try:
        yield
    except DistError as error:
        line = str(error).strip().partition("\n")[0]
        raise RunError(
            f"{what} did not come: a rank has ended, was never started or cannot be reached at "
            f"MASTER_ADDR {os.environ['MASTER_ADDR']}, MASTER_PORT {os.environ['MASTER_PORT']} "
            f"({line})"
        ) from error


def machine() -> str:
    """Equal on ranks that can reach each other's Unix sockets: one boot, one network namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/proc/self/ns/net').st_ino}"


def numbered(machines: Mapping[int, str]) -> list[int]:
    """The number of each rank's machine, in the order of their first ranks."""
    names = list(dict.fromkeys(machines[rank] for rank in sorted(machines)))
    return [names.index(machines[rank]) for rank in sorted(machines)]


def interface() -> str:
    """The address of this machine on which it reaches MASTER_ADDR: loopback if that is.

    Raises:
        RunError: there is no way to MASTER_ADDR.
    """
    master, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        family, kind, *_, address = socket.getaddrinfo(master, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # Of a datagram socket: it chooses a route and sends nothing.
            host = str(probe.getsockname()[0])
    except OSError as error:
        raise RunError(f"MASTER_ADDR {master} cannot be reached: {error}") from error
    return f"[{host}]" if family == socket.AF_INET6 else host


def listening(rank: int, machines: Mapping[int, str], unix: str) -> list[str]:
    """Where this rank has to listen: for those on its machine, and for those on others."""
    others = [machines[other] == machines[rank] for other in machines if other != rank]
    found: list[str] = []
    if any(others) or not others:
        found.append(unix)
    if not all(others):
        found.append(f"tcp:{interface()}:0")
    return found


def reachable(
    rank: int, machines: Mapping[int, str], published: Mapping[int, str]
) -> dict[int, str]:
    """The address at which this rank reaches each other, of those it has published.

    Raises:
        RunError: a rank of another machine listens on loopback only.
    """
    chosen: dict[int, str] = {}
    for other, text in published.items():
        if other == rank:
            continue
        near = machines[other] == machines[rank]
        scheme = "unix:" if near else "tcp:"
        chosen[other] = next(address for address in text.split() if address.startswith(scheme))
        boots = {machines[r].partition("/")[0] for r in (rank, other)}
        if len(boots) > 1 and chosen[other].startswith(("tcp:127.", "tcp:[::1]")):
            raise RunError(
                f"rank {other} is on another machine than rank {rank} and listens on loopback, "
                f"where MASTER_ADDR leads there; set MASTER_ADDR to an address of rank 0's "
                "machine that all machines reach"
            )
    return chosen
