"""D-PSGD of two processes written out by hand: what is left when nothing is general.

One vector of parameters, two vectors of shared memory for each process, and one byte over a socket
to say that the next one is ready. There are no types, no topologies, no failures, no signals and no
third process: it is what no runtime written in Python can be faster than.
"""

from __future__ import annotations

import mmap
import os
import socket
import time
from collections.abc import Generator
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
    """x <- x / 2 + (the other's x) / 2 - lr g(x), as two workers on a ring."""
    keep_freed_memory()
    model, draw = problem.model(), minibatches(problem, place.rank)
    tensors = list(model.parameters())
    x = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    for tensor, view in zip(tensors, Layout.of(model).views(x), strict=True):
        tensor.data = view
    stepped = nn.Parameter(x)
    optimizer = Optimizer([stepped])
    halves = _shared(place, x)
    with _connected(place) as other:
        turn = 0
        torch.mul(x, 0.5, out=halves[place.rank][turn])
        other.send(b"x")

        def step() -> None:
            nonlocal turn
            inputs, targets = draw()
            loss = problem.loss(model(inputs), targets)
            loss.backward()
            gradients = [tensor.grad.reshape(-1) for tensor in tensors if tensor.grad is not None]
            stepped.grad = torch.cat(gradients)
            if not other.recv(1):
                raise EOFError("the other process has ended")
            torch.add(halves[1 - place.rank][turn], x, alpha=0.5, out=x)
            optimizer.step()
            for tensor in (*tensors, stepped):
                tensor.grad = None
            turn = (turn + 1) % TURNS
            torch.mul(x, 0.5, out=halves[place.rank][turn])
            other.send(b"x")

        yield step


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
