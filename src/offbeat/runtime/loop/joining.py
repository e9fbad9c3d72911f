"""Joining: how a rank of a user's loop connects to the others, and begins as rank 0 does."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...encoding import decode, encode
from ...method import Method
from ...parameters import Layout
from ..errors import RunError
from ..spawning import socket_names
from ..trained import overwrite
from .ranks import RankHost
from .rendezvous import Rendezvous, listening, machine, numbered, reachable
from .saved import as_bytes, as_tensor
from .terms import Terms
from .words import Start


def require_possible(method: Method, ranks: int) -> None:
    """Raise ValueError unless that method can run in a user's loop of that many ranks."""
    _require_method(method)
    method.validate(ranks)
    name = type(method).__name__
    if method.chooses_samples:
        raise ValueError(
            f"{name} chooses the samples of each gradient, which the user's "
            "own loop does itself; use a method that leaves them to the loop"
        )
    if method.unequal_rounds:
        raise ValueError(
            f"{name} lets slow workers make fewer rounds than fast ones, and the ranks of a user's "
            "own loop make equally many; run it with offbeat.run"
        )
    if method.shares_parameters:
        raise ValueError(
            f"{name} changes one vector in the memory of all workers, which a user's own loop "
            "does not have; run it with offbeat.run"
        )
    if method.server_count > ranks:
        raise ValueError(
            f"{method.server_count} servers need as many ranks to live on; there are {ranks}"
        )


def _require_method(method: object) -> None:
    # Whoever calls may have no type checker.
    if isinstance(method, type):
        name = method.__name__
        raise ValueError(f"method is the class {name}; give one made of it, as in method={name}()")
    if not isinstance(method, Method):
        raise ValueError(f"method is {method!r}; give a method, as in method=ADPSGD()")


def connected(
    job: Rendezvous, method: Method, terms: Terms, record: Path | None, timeout: float
) -> RankHost:
    """This rank's host, connected to the others, if all have the same terms.

    Raises:
        RunError: they differ, or a rank does not come.
    """
    secret = job.share("secret", secrets.token_bytes(32))
    first = decode(job.share("terms", encode(terms)), types=(Terms, Layout))
    try:
        terms.require_like(first, job.rank)
    except RunError as error:
        job.refuse("machine", str(error))
        raise
    machines = job.exchange("machine", machine())
    if record is not None:
        record.mkdir(parents=True, exist_ok=True)
    host = RankHost(
        method,
        job.rank,
        job.size,
        listen=listening(job.rank, machines, f"{socket_names()}/{job.rank}"),
        machines=numbered(machines),
        secret=secret,
        journals=record,
        timeout=timeout,
    )
    try:
        published = job.exchange("addresses", " ".join(host.transport.addresses))
        host.connect(reachable(job.rank, machines, published), timeout)
    except BaseException:
        host.abort()
        raise
    return host


def begin_alike(host: RankHost, parameters: Tensor, constants: Mapping[str, Tensor]) -> None:
    """Give all ranks the parameters (d,), frozen ones and buffers of rank 0."""
    if host.rank == 0:
        host.tell_others(Start(parameters, as_tensor(encode(constants))))
        return
    start = host.await_word(Start, 0, "rank 0's parameters")
    parameters.copy_(start.parameters)
    for name, value in decode(as_bytes(start.constants)).items():
        overwrite(constants[name], value)
