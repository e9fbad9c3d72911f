"""What a step costs beside its gradient: the scheduler, and an empty message there and back.

One host with its transport, journal and node lock, a worker that asks for gradients, and gradients
that cost nothing; then two processes that send each other messages with nothing in them.
"""

from __future__ import annotations

import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from common import ours
from common.figures import Part
from common.groups import Group, Place, Step
from common.workloads import RandomData

import offbeat
from offbeat.method import Method, ServerMethod
from offbeat.methods import SGD
from offbeat.node import Node
from offbeat.parameters import Layout
from offbeat.runtime.host import Host
from offbeat.schedule import Constant

STEPS = 5_000
DIMENSION = 2_410


@dataclass(frozen=True, kw_only=True)
class Idle(Method):
    """Asks for gradients and drops them: the scheduler alone."""

    async def step(self, node: Node) -> None:
        await node.gradient()


@offbeat.message
class Ping:
    number: int


@offbeat.message
class Pong:
    number: int


@dataclass(frozen=True, kw_only=True)
class RoundTrip(ServerMethod):
    """The worker sends a number, and the server sends it back."""

    async def serve(self, node: Node) -> None:
        worker, ping = await node.recv(Ping)
        node.send(worker, Pong(ping.number))

    async def step(self, node: Node) -> None:
        node.send(node.server, Ping(node.round))
        await node.recv(Pong)


def measure(*, rounds: int, quick: bool) -> list[Part]:
    return [_steps(rounds, 100 if quick else STEPS), _round_trips(rounds, quick)]


def _steps(rounds: int, steps: int) -> Part:
    part = Part(name="scheduler", title="A step of a real run beside its gradient, us")
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        idle_host, idle = _stepping(Idle(), folder, folder, steps)
        bare_host, bare = _stepping(Idle(), folder, None, steps)
        sgd_host, sgd = _stepping(SGD(), folder, None, steps)
        parameter = torch.nn.Parameter(torch.zeros(DIMENSION))
        parameter.grad = torch.ones(DIMENSION)
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def plain() -> None:
            for _ in range(steps):
                optimizer.step()

        rows = {
            "step without gradient or optimizer, journal on": idle,
            "the same, journal off": bare,
            "step of SGD without gradient": sgd,
            "torch.optim.SGD.step alone": plain,
        }
        for action in rows.values():
            action()
        for _ in range(rounds):
            for what, action in rows.items():
                part.add(what, _microseconds(action, steps))
        for host in (idle_host, bare_host, sgd_host):
            host.finish()
            host.close()
    return part


def _microseconds(action: Callable[[], None], steps: int) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) / steps * 1e6


def _stepping(
    method: Method, folder: Path, journals: Path | None, steps: int
) -> tuple[Host, Callable[[], None]]:
    host = Host(
        method,
        [0],
        0,
        listen=f"unix:{folder / type(method).__name__}-{journals is None}",
        secret=b"benchmark",
        may_compute=lambda node, request: True,
        on_failure=lambda error: None,
        journals=journals,
    )
    node = Node(
        rank=0,
        workers=range(1),
        servers=range(1, 1),
        parameters=torch.zeros(DIMENSION),
        layout=Layout(("x",), ((DIMENSION,),)),
        runtime=host,
        optimizer_factory=lambda named: torch.optim.SGD([p for _, p in named], lr=0.1),
        schedule=Constant(),
        batch_size=1,
        seed=0,
    )
    host.add(node)
    host.begin(time.monotonic_ns())
    gradient = torch.ones(DIMENSION)

    def run() -> None:
        for _ in range(steps):
            asked = host.next_request()
            assert asked is not None
            host.fulfil(*asked, gradient, 0.0, host.elapsed)

    return host, run


def _round_trips(rounds: int, quick: bool) -> Part:
    part = Part(name="round trip", title="There and back between two processes, us")
    problem = RandomData(network="small_mlp", samples=64)
    with Group(unix_socket) as bare:
        for _ in range(rounds):
            times = bare.burst(100 if quick else 5_000)
            part.add("64 bytes over a Unix socket, blocking", 1e6 * statistics.median(times))
            run = ours.run_for(RoundTrip(), problem, workers=1, seconds=0.3 if quick else 1.0)
            trips = ours.message_seconds(run, Ping.__qualname__)
            part.add("a message and its answer", 1e6 * statistics.median(trips))
    return part


@contextmanager
def unix_socket(place: Place) -> Generator[Step]:
    """Two processes that send each other 64 bytes, without any library."""
    with socket.socket(socket.AF_UNIX) as own:
        address = str(place.folder / "socket")
        if place.rank == 0:
            own.bind(address)
            own.listen()
            peer = own.accept()[0]
        else:
            peer = own
            while True:
                try:
                    peer.connect(address)
                    break
                except (FileNotFoundError, ConnectionRefusedError):
                    time.sleep(0.01)

        def ask() -> None:
            peer.sendall(bytes(64))
            peer.recv(64)

        def answer() -> None:
            peer.sendall(peer.recv(64))

        with peer:
            yield ask if place.rank == 0 else answer
