"""Torchrun: where a job's ranks, started by torchrun or a cluster's own launcher, find each other.

Whoever starts the ranks sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; the store that these
lead to serves for nothing but an address and a secret.
"""

from __future__ import annotations

import math
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import timedelta

from torch._C._distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from .errors import RunError

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
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
        ip = _resolved(os.environ["MASTER_ADDR"])
        return f"tcp:[{ip}]:0" if ":" in ip else f"tcp:{ip}:0"

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
    return all(name in os.environ for name in VARIABLES)


def require_alone() -> None:
    """Raise RunError if this process has a rank, or others, but not all by which to find them."""
    if os.environ.get("RANK", "0") == "0" and os.environ.get("WORLD_SIZE", "1") == "1":
        return
    has = ", ".join(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ)
    missing = ", ".join(name for name in VARIABLES if name not in os.environ)
    raise RunError(
        f"this is one of several ranks by {has}, but {missing} is not set: set all four, as "
        "torchrun does, or none"
    )


def restarts() -> int:
    """How often the job has been started anew after a failure."""
    return _number("TORCHELASTIC_RESTART_COUNT", "0", 0)


def _number(name: str, otherwise: str, least: int, below: float = math.inf) -> int:
    text = os.environ.get(name, otherwise)
    number = int(text) if text.isascii() and text.isdigit() else -1
    if least <= number < below:
        return number
    up_to = "" if below == math.inf else f", and below {below:g}"
    raise RunError(f"{name} is {text!r}; it must be a whole number from {least} on{up_to}")


def _require_sound() -> None:
    """Ask here what would be waited for in vain, or be told in dozens of lines."""
    size = _number("WORLD_SIZE", "1", 1)
    _number("RANK", "0", 0, size)
    _number("MASTER_PORT", "0", 1, 1 << 16)
    _resolved(os.environ["MASTER_ADDR"])


def _resolved(name: str) -> str:
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "this can be no name"
        raise RunError(f"MASTER_ADDR {name!r} cannot be resolved: {reason}") from error


def meet(timeout: float) -> Rank:
    """This process's rank, and the store that the job's ranks share; waits `timeout` seconds.

    Raises:
        RunError: the store does not come, or the variables that lead to it make no sense.
    """
    _require_sound()
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"rank {os.environ['RANK']} finds no store at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {reason}"
        ) from None
    return Rank(rank=rank, size=size, restarts=restarts(), store=store)
