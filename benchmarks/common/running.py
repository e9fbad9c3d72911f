"""A run by `offbeat.run` that takes turns: all its processes are stopped between them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from offbeat.method import Method
from offbeat.runtime.forks import server_of_forks

from . import ours
from .groups import START_TIMEOUT, Step, die_with_parent, send_signal, timed
from .workloads import Optimizer, RandomData, plain_step

KEPT = 1 << 16
"""Times that a worker's clock keeps."""
LOOK_SECONDS = 0.05
"""Between two looks whether a turn is over."""
FIRST = 5
"""Losses after which a worker takes steps: it asks for some before it has met the others, and who
is stopped there may be taken for one who never comes."""
DAY_SECONDS = 86_400.0


class Clock:
    """When a worker has done what: in a file, to be read by another process.

    That one may also ask for steps of the worker alone, and read what each took.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(2 * 8 * KEPT + 3 * 8))
        whole = np.memmap(path, dtype=np.float64, mode="r+")
        self._times, self._alone, self._counts = np.split(whole, [KEPT, 2 * KEPT])
        self.ticks = self.read()

    def tick(self) -> None:
        self._times[self.ticks % KEPT] = time.perf_counter()
        self.ticks += 1
        self._counts[0] = self.ticks

    def read(self) -> int:
        """Its ticks so far."""
        return int(self._counts[0])

    def gaps(self, first: int, count: int) -> list[float]:
        """Seconds between tick `first` and the next, and so on."""
        return np.diff(self._times[np.arange(first, first + count + 1) % KEPT]).tolist()

    @property
    def asked(self) -> tuple[int, int]:
        """Steps alone that it is asked for, and how many before these do not count."""
        steps, warm = self._counts[1:].tolist()
        return int(steps), int(warm)

    def ask(self, steps: int, warm: int) -> None:
        self._counts[1:] = steps, warm

    def answer(self, seconds: Sequence[float]) -> None:
        """Say what each of the steps asked for has taken."""
        self._alone[: len(seconds)] = seconds
        self.ask(0, 0)

    def answers(self, steps: int) -> list[float]:
        return self._alone[:steps].tolist()


@dataclass(frozen=True, kw_only=True)
class ClockedData(RandomData):
    """The same, in processes that note when they ask for a loss.

    In the midst of that they train another model alone, if they are asked to.

    Args:
        folder: for a clock of each process, which is called by the process's number.
    """

    folder: str

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        clock = _own_clock(self.folder, os.getpid())
        clock.tick()
        steps, warm = clock.asked
        if steps:
            clock.answer(timed(_alone(self.network, self.batch_size), steps, warm))
        return super().loss(outputs, targets)


@functools.cache
def _own_clock(folder: str, number: int) -> Clock:
    die_with_parent()
    # It appears when it is whole.
    hidden = Path(folder) / f".{number}"
    Clock(hidden)
    hidden.rename(Path(folder) / str(number))
    return Clock(Path(folder) / str(number))


@functools.cache
def _alone(network: str, batch_size: int) -> Step:
    problem = RandomData(network=network, batch_size=batch_size)
    model = problem.model()
    return plain_step(problem, model, Optimizer(model.parameters()), os.getpid())


class Running:
    """A run of two workers for as long as the block lasts.

    Raises:
        RuntimeError: it ended, or a turn took two minutes.
    """

    def __init__(self, method: Method, problem: RandomData, workers: int = 2) -> None:
        self.name = f"offbeat.run of {type(method).__name__}"
        self._folder = tempfile.TemporaryDirectory(prefix="offbeat-benchmark-", dir="/tmp")
        clocked = ClockedData(**vars(problem), folder=self._folder.name)
        self._pipe, theirs = server_of_forks([__name__]).Pipe()
        # It has processes of its own, which a daemon may not.
        self._process = server_of_forks().Process(
            target=_live, args=(method, clocked, workers, theirs), daemon=False
        )
        self._process.start()
        theirs.close()
        self._clocks: dict[int, Clock] = {}
        try:
            self._wait(lambda: self._begun(workers))
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def burst(self, steps: int, warm: int = 3, *, beside: bool = False) -> list[float]:
        """Seconds of each of so many steps, after some that do not count; of all workers.

        Those `beside` the run are of each worker alone, in the midst of one of its steps.
        """
        clocks = list(self._clocks.values())
        first = [clock.read() + warm for clock in clocks]
        for clock in clocks if beside else ():
            clock.ask(steps, warm)
        self._signal(signal.SIGCONT)
        if beside:
            self._wait(lambda: not any(clock.asked[0] for clock in clocks))
            seconds = [clock.answers(steps) for clock in clocks]
        else:
            goals = [at + steps for at in first]
            self._wait(lambda: all(c.read() > at for c, at in zip(clocks, goals, strict=True)))
            seconds = [c.gaps(at, steps) for c, at in zip(clocks, first, strict=True)]
        self._signal(signal.SIGSTOP)
        return list(itertools.chain(*seconds))

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        send_signal(self._process.pid, signal.SIGINT)
        self._process.join(15.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()
        self._folder.cleanup()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _begun(self, workers: int) -> bool:
        """Whether all of them take steps; who evaluates asks for losses too."""
        for path in Path(self._folder.name).glob("[0-9]*"):
            number = int(path.name)
            if number not in self._clocks and number != self._process.pid:
                self._clocks[number] = Clock(path)
        return len(self._clocks) == workers and all(
            c.read() >= FIRST for c in self._clocks.values()
        )

    def _wait(self, is_over: Any) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not is_over():
            if self._pipe.poll(LOOK_SECONDS):
                with contextlib.suppress(EOFError):
                    raise RuntimeError(f"{self.name}: {self._pipe.recv()}")
                raise RuntimeError(f"{self.name}: its process has ended")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} takes no steps for {START_TIMEOUT:.0f} s")

    def _signal(self, number: signal.Signals) -> None:
        for process in (self._process.pid, *self._clocks):
            send_signal(process, number)


def _live(method: Method, problem: RandomData, workers: int, pipe: Any) -> None:
    # The server of forks has interrupts blocked; here one ends the run.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with_parent()
    try:
        run = ours.run_for(method, problem, workers=workers, seconds=DAY_SECONDS)
        pipe.send(f"it has ended: {run.stop}")
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
