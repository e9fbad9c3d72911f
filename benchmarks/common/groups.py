"""Contestants: processes that are started once and then take turns, a burst of steps at a time."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

from offbeat.runtime.forks import server_of_forks

_PR_SET_PDEATHSIG = 1  # Of <linux/prctl.h>.
START_TIMEOUT = 120.0
"""Seconds in which a contestant has to be ready, and then to end each burst."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process of a contestant stands.

    Args:
        rank, size: which of how many it is.
        port: of this machine's loopback, free for the contestant's own rendezvous.
        folder: empty, shared by its processes, and gone when they are.
    """

    rank: int
    size: int
    port: int
    folder: Path

    def join_gloo(self) -> AbstractContextManager[None]:
        """torch.distributed's default group over gloo, for as long as the block lasts."""
        return _gloo(self)

    def announce(self) -> None:
        """Tell this process who it is, in torchrun's variables."""
        os.environ |= {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.rank),
            "LOCAL_WORLD_SIZE": str(self.size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
        }


Step = Callable[[], None]
Contestant = Callable[..., AbstractContextManager[Step]]
"""Called in each process with its `Place` and the contestant's settings; gives its step."""


class Group:
    """The processes of one contestant, each of one thread, stopped between its turns.

    Their heartbeats too: threads that wake fifty times a second disturb whoever's turn it is.

    Args:
        contestant, settings: what every process is given.
        size: processes.
        beside: a second contestant that lives in the same processes, to be compared with.

    Raises:
        RuntimeError: one of them ended, or said nothing for two minutes.
    """

    def __init__(
        self,
        contestant: Contestant,
        *settings: Any,
        size: int = 2,
        beside: Contestant | None = None,
    ) -> None:
        self.name = f"{contestant.__module__.rpartition('.')[2]}.{contestant.__name__}"
        context = server_of_forks()
        self._folder = tempfile.TemporaryDirectory(prefix="offbeat-benchmark-", dir="/tmp")
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        port = _free_port()
        for rank in range(size):
            place = Place(rank=rank, size=size, port=port, folder=Path(self._folder.name))
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_live, args=(contestant, beside, place, settings, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        try:
            self._answers()
        except BaseException:
            self.close()
            raise
        self._signal(signal.SIGSTOP)

    def burst(self, steps: int, warm: int = 3, *, beside: bool = False) -> list[float]:
        """Seconds of each of so many steps, after some that do not count; of all processes."""
        self._signal(signal.SIGCONT)
        for pipe in self._pipes:
            pipe.send((beside, steps, warm))
        answers = self._answers()
        self._signal(signal.SIGSTOP)
        return [seconds for times in answers for seconds in times]

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            send_signal(process.pid, number)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(15.0)
            if process.is_alive():
                process.kill()
                process.join()
        for pipe in self._pipes:
            pipe.close()
        self._folder.cleanup()

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _answers(self) -> list[Any]:
        answers: list[Any] = []
        for pipe in self._pipes:
            if not pipe.poll(START_TIMEOUT):
                raise RuntimeError(f"{self.name} says nothing for {START_TIMEOUT:.0f} s")
            try:
                answer = pipe.recv()
            except EOFError:
                raise RuntimeError(f"{self.name}: a process has ended") from None
            if isinstance(answer, str):
                raise RuntimeError(f"{self.name}: {answer}")
            answers.append(answer)
        return answers


def send_signal(process: int, number: signal.Signals) -> None:
    """To a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, number)


def die_with_parent() -> None:
    """Who is stopped does not notice that the parent is gone, and the server of forks with it.

    That one goes when nobody holds its pipe any more, of which every process forked has an end.
    """
    server: Any = forkserver._forkserver
    if server._forkserver_alive_fd is not None:
        os.close(server._forkserver_alive_fd)
        server._forkserver_alive_fd = None
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _live(
    contestant: Contestant,
    beside: Contestant | None,
    place: Place,
    settings: tuple[Any, ...],
    pipe: Any,
) -> None:
    # An interrupt reaches the whole terminal; the parent says when it is over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with ExitStack() as stack:
        try:
            lives = [stack.enter_context(contestant(place, *settings))]
            if beside is not None:
                lives.append(stack.enter_context(beside(place)))
            pipe.send([])
            while (asked := pipe.recv()) is not None:
                which, steps, warm = asked
                pipe.send(timed(lives[which], steps, warm))
        except EOFError:
            pass
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")


def timed(step: Step, steps: int, warm: int) -> list[float]:
    """Seconds of each of so many steps, after some that do not count."""
    for _ in range(warm):
        step()
    ends = [time.perf_counter()]
    for _ in range(steps):
        step()
        ends.append(time.perf_counter())
    return [end - begin for begin, end in itertools.pairwise(ends)]


@contextmanager
def _gloo(place: Place) -> Generator[None]:
    import torch.distributed as dist

    # Loopback, as both processes are here.
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    place.announce()
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
