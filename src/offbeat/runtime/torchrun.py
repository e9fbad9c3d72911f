"""Torchrun: where a job's ranks, started by torchrun or a cluster's own launcher, find each other.

Whoever starts the ranks sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; the store that these
lead to serves for nothing but an address and a secret.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta

from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from .errors import RunError

_ADDRESS, _SECRET = "offbeat/run/address", "offbeat/run/secret"


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process among those of its job.

    Args:
        restarts: how often the job has been started anew after a failure.
    """

    rank: int
    size: int
    restarts: int
    store: Store

    @property
    def listen(self) -> str:
        """Where rank 0 listens for the others: the address by which they know its machine."""
        name = os.environ["MASTER_ADDR"]
        try:
            ip = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]
        except OSError as error:
            raise RunError(f"MASTER_ADDR {name!r} cannot be resolved: {error.strerror}") from error
        return f"tcp:[{ip}]:0" if ":" in str(ip) else f"tcp:{ip}:0"

    @property
    def secret(self) -> bytes:
        """What all ranks of this start know; rank 0 has made it up."""
        key = f"{_SECRET}/{self.restarts}"
        if self.rank == 0:
            self.store.set(key, secrets.token_bytes(32))  # pyright: ignore[reportArgumentType]
        return self.store.get(key)

    def publish(self, address: str) -> None:
        """Say where the coordinator can be reached."""
        self.store.set(f"{_ADDRESS}/{self.restarts}", address)

    def coordinator(self) -> str:
        """Where the coordinator can be reached; waits until it has said so.

        Raises:
            RunError: rank 0 does not come.
        """
        try:
            return self.store.get(f"{_ADDRESS}/{self.restarts}").decode()
        except RuntimeError as error:
            raise RunError(f"rank 0 never said where it coordinates the run: {error}") from None


def present() -> bool:
    """Whether this process is one of several ranks of a job."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def meet(timeout: float) -> Rank:
    """This process's rank, and the store that the job's ranks share; waits `timeout` seconds.

    Raises:
        RunError: the store does not come.
    """
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"rank {os.environ['RANK']} finds no store at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {reason}"
        ) from None
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return Rank(rank=rank, size=size, restarts=restarts, store=store)
