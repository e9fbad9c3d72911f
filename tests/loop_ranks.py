"""Ranks of a job, as torchrun would start them, forked from a process that has imported torch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from offbeat.runtime.errors import RunError
from offbeat.runtime.forks import server_of_forks

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class Ended:
    """How a rank ended."""

    returncode: int
    output: str
    """What it printed and, if it failed, the traceback."""


def run_ranks(job: Callable[..., None], size: int, out: Path, *args: object) -> list[Ended]:
    """Run `job(out, *args)`, a function of some module, on every rank, and wait."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    context = server_of_forks()
    outputs = [out / f"output-{rank}.txt" for rank in range(size)]
    ranks = [
        context.Process(target=_rank, args=(rank, size, port, outputs[rank], job, out, *args))
        for rank in range(size)
    ]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(300)
        codes = [rank.exitcode for rank in ranks]
        texts = [output.read_text() if output.exists() else "" for output in outputs]
        assert None not in codes, f"a rank hangs: {texts}"
        return [Ended(code, text) for code, text in zip(codes, texts, strict=True)]
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


def _rank(
    rank: int, size: int, port: str, output: Path, job: Callable[..., None], *args: object
) -> None:
    values = (str(rank), str(size), str(rank), "127.0.0.1", port)
    os.environ.update(zip(VARIABLES, values, strict=True))
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(fd, stream)
    import torch

    # The server of forks blocks interrupts, and whoever started it may have ignored them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # What a rank starts itself is forked, as in any other program.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    try:
        job(*args)
    except RunError as error:
        # multiprocessing prints the traceback of others.
        print(f"RunError: {error}", flush=True)
        sys.exit(1)


def rank_and_size() -> tuple[int, int]:
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def assert_fine(ended: list[Ended]) -> None:
    for rank in ended:
        assert rank.returncode == 0, rank.output
