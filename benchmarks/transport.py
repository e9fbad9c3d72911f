"""What a payload costs from one process to another, against a copy of it in memory.

    python benchmarks/transport.py
    python benchmarks/transport.py --quick

Two processes of one thread each, joined by a Unix connection with shared-memory slots, then by TCP
on loopback. Per size: `copied`, a tensor of the sender's own; `in slot`, one that lies in the
transport's pool, which is lent without a copy. One way ends when the receiver's callback has
the payload, `and read` when it has summed it up too; `there and back` is a small answer's arrival.
Rounds alternate with a copy between two tensors of that size; shown are medians.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
from common import options
from torch import Tensor

from offbeat.runtime.forks import server_of_forks
from offbeat.runtime.transport import Transport

SIZES = (64, 100_000, 25_000_000, 100_000_000)
SECRET = b"benchmark"
PATIENCE = 60.0


def answer(listen: str, pipe: Any) -> None:
    """The receiver: says when each payload had come, and when it was read."""
    torch.set_num_threads(1)
    over = threading.Event()

    def on_frame(source: int, parts: list[memoryview]) -> None:
        came = time.monotonic()
        if len(parts) > 1:
            torch.frombuffer(parts[1], dtype=torch.uint8).view(torch.int64).sum()
        times = torch.tensor([came, time.monotonic()], dtype=torch.float64)
        transport.send(source, times)

    transport = Transport(1, listen, SECRET, on_frame, lambda *_: over.set())
    pipe.send(transport.address)
    transport.connect({0: pipe.recv()}, PATIENCE)
    over.wait()
    transport.close()


class Sender:
    """Sends payloads to the other process, and waits for its answers."""

    def __init__(self, folder: str, tcp: bool) -> None:
        listen = ["tcp:127.0.0.1:0" if tcp else f"unix:{folder}/{i}" for i in (0, 1)]
        self._times: list[float] = []
        self._answered = threading.Semaphore(0)
        self.transport = Transport(0, listen[0], SECRET, self._on_frame, lambda *_: None)
        context = server_of_forks()
        pipe, other = context.Pipe()
        self._process = context.Process(target=answer, args=(listen[1], other))
        self._process.start()
        address = pipe.recv()
        pipe.send(self.transport.address)
        self.transport.connect({1: address}, PATIENCE)

    def send(self, payload: Tensor) -> tuple[float, float, float]:
        """Seconds until it had come, until it was read, until the answer was here."""
        began = time.monotonic()
        self.transport.send(1, b"payload", payload)
        self._answered.acquire()
        came, was_read = self._times
        return came - began, was_read - began, time.monotonic() - began

    def _on_frame(self, source: int, parts: list[memoryview]) -> None:
        self._times = torch.frombuffer(parts[0], dtype=torch.float64).tolist()
        self._answered.release()

    def close(self) -> None:
        self.transport.close()
        self._process.join()


def measure(sender: Sender, size: int, rounds: int) -> dict[str, list[float]]:
    """Medians in seconds: of a copy, and of both kinds of payload the three times."""
    source, target = torch.ones(size, dtype=torch.uint8), torch.ones(size, dtype=torch.uint8)
    lent = sender.transport.pool.tensor(size, torch.uint8).fill_(1)
    rows: dict[str, list[tuple[float, ...]]] = {"copy": [], "copied": [], "in slot": []}
    for k in range(rounds + 3):
        began = time.monotonic()
        target.copy_(source)
        taken = {"copy": (time.monotonic() - began,)}
        taken["copied"] = sender.send(source)
        taken["in slot"] = sender.send(lent)
        if k >= 3:  # The first ones make and touch the slots.
            for name, times in taken.items():
                rows[name].append(times)
    return {
        name: [statistics.median(column) for column in zip(*times, strict=True)]
        for name, times in rows.items()
    }


def shown(seconds: float, copy: float) -> str:
    return f"{1e6 * seconds:11,.0f} us ({seconds / copy:7,.2f})"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("--rounds", type=options.rounds, help="payloads of each kind (30)")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="BYTES")
    asked = parser.parse_args(arguments)
    rounds = asked.rounds or (1 if asked.quick else 30)
    sizes = asked.sizes or ((64, 300_000) if asked.quick else SIZES)
    torch.set_num_threads(1)
    results: dict[str, dict[int, dict[str, list[float]]]] = {}
    print("medians, and in brackets how many copies in memory that is")
    print(f"{'':6}{'bytes':>12} {'payload':8}", end="")
    print("".join(f"{name:>26}" for name in ("one way", "and read", "there and back")))
    for name in ("unix", "tcp"):
        with tempfile.TemporaryDirectory() as folder:
            sender = Sender(folder, tcp=name == "tcp")
            try:
                results[name] = {}
                for size in sizes:
                    found = measure(sender, size, rounds)
                    results[name][size] = found
                    (copy,) = found["copy"]
                    for kind in ("copied", "in slot"):
                        row = "".join(f"{shown(seconds, copy):>26}" for seconds in found[kind])
                        print(f"{name:6}{size:12,} {kind:8}{row}")
            finally:
                sender.close()
    options.write(results, asked.out)


if __name__ == "__main__":
    main()
