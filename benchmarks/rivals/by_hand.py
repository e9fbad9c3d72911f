"""Gossip of two processes written out by hand: what is left when nothing is general.

One vector of parameters, two vectors of shared memory for each process, and one byte over a socket
to say that the next one is ready. There are no types, no topologies, no failures, no signals and no
third process: it is what no runtime written in Python can be faster than.
"""

from __future__ import annotations

import mmap
import os
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
from common.groups import Place, Step
from common.workloads import Optimizer, RandomData, minibatches
from torch import Tensor, nn

from offbeat.parameters import Layout
from offbeat.runtime.memory import keep_freed_memory

TURNS = 2
"""Vectors that take turns: while one is read, the next is written."""


@contextmanager
def d_psgd(place: Place, problem: RandomData) -> Generator[Step]:
    """x <- x / 2 + (the other's x) / 2 - lr g(x), as two workers on a ring.

    The other's x is on its way while the gradient is computed.
    """
    with _gossip(place, problem) as (gossip, gradient, descend):
        gossip.send()

        def step() -> None:
            gradient()
            gossip.average()
            descend()
            gossip.send()

        yield step


@contextmanager
def push_sum(place: Place, problem: RandomData) -> Generator[Step]:
    """x <- x - lr g(x), and then x <- x / 2 + (the other's x) / 2; both weights stay 1.

    The other's x is that of after its step, and waited for.
    """
    with _gossip(place, problem) as (gossip, gradient, descend):

        def step() -> None:
            gradient()
            descend()
            gossip.send()
            gossip.average()

        yield step


class _Gossip:
    """One process's x and how it meets the other's."""

    def __init__(self, x: Tensor, own: list[Tensor], others: list[Tensor], other: socket.socket):
        self.x, self.own, self.others, self.other = x, own, others, other
        self.sent = self.received = 0

    def send(self) -> None:
        torch.mul(self.x, 0.5, out=self.own[self.sent % TURNS])
        self.sent += 1
        self.other.send(b"x")

    def average(self) -> None:
        if not self.other.recv(1):
            raise EOFError("the other process has ended")
        torch.add(self.others[self.received % TURNS], self.x, alpha=0.5, out=self.x)
        self.received += 1


@contextmanager
def _gossip(
    place: Place, problem: RandomData
) -> Generator[tuple[_Gossip, Callable[[], None], Callable[[], None]]]:
    """What meets the other, what computes a gradient, and what steps by it."""
    keep_freed_memory()
    model, draw = problem.model(), minibatches(problem, place.rank)
    tensors = list(model.parameters())
    x = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    for tensor, view in zip(tensors, Layout.of(model).views(x), strict=True):
        tensor.data = view
    stepped = nn.Parameter(x)
    optimizer = Optimizer([stepped])

    def gradient() -> None:
        inputs, targets = draw()
        problem.loss(model(inputs), targets).backward()
        gradients = [tensor.grad.reshape(-1) for tensor in tensors if tensor.grad is not None]
        stepped.grad = torch.cat(gradients)

    def descend() -> None:
        optimizer.step()
        for tensor in (*tensors, stepped):
            tensor.grad = None

    halves = _shared(place, x)
    with _connected(place) as other:
        yield _Gossip(x, halves[place.rank], halves[1 - place.rank], other), gradient, descend


def _shared(place: Place, x: Tensor) -> list[list[Tensor]]:
    """For each process so many vectors like x, which both have mapped."""
    size = -(-x.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    fd = os.open(place.folder / "vectors", os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(fd, place.size * TURNS * size)
        memory = mmap.mmap(fd, place.size * TURNS * size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(fd)
    starts = [[(rank * TURNS + turn) * size for turn in range(TURNS)] for rank in (0, 1)]
    return [
        [torch.frombuffer(memory, dtype=x.dtype, count=len(x), offset=at) for at in own]
        for own in starts
    ]


@contextmanager
def _connected(place: Place) -> Generator[socket.socket]:
    """A socket to the other process."""
    path = place.folder / "socket"
    with socket.socket(socket.AF_UNIX) as sock:
        if place.rank == 0:
            sock.bind(str(path))
            sock.listen(1)
            other, _ = sock.accept()
            with other:
                yield other
            return
        while True:
            try:
                sock.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.01)
        yield sock
