"""Commands: `offbeat run` is interrupted or killed from outside, alone or under torchrun."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from offbeat.testing.remains import descendants

from .jobs import (
    EVERY,
    LONG,
    checkpoints,
    command,
    options,
    wait_for_checkpoint,
    workplace,
    wrong_origin,
)
from .outcomes import WORKERS, Outcome, Settings, survivors, synchronous

RANKS = 2
"""Of a job under torchrun; each takes seconds to start."""


def interrupts(settings: Settings) -> Iterator[Outcome]:
    """Ctrl-C to all processes of a run, as a terminal sends it, at a random time."""
    rng = random.Random(f"{settings.seed} interrupts")
    names = settings.chosen(survivors())
    for index in range(settings.runs if names else 0):
        name, after = names[index % len(names)], rng.uniform(0.0, 8.0)
        with workplace(settings.deadline) as place:
            job = place.start(command(name, place.run, 100_000_000))
            time.sleep(after)
            os.killpg(job.pid, signal.SIGINT)
            place.finish(job, 130, -signal.SIGINT)
            seconds = job.seconds - after
            if seconds > 10:
                place.wrong.append(f"took {seconds:.1f} s to end")
        yield Outcome(
            part="interrupts",
            method=name,
            what=f"after {after:.2f} s",
            done=True,
            seconds=seconds,
            wrong=place.wrong,
        )


def launchers(settings: Settings) -> Iterator[Outcome]:
    """The launcher is killed at a random time; --resume goes on from the last checkpoint."""
    rng = random.Random(f"{settings.seed} launchers")
    names = settings.chosen(["AllReduceSGD", "ADPSGD", "LocalSGD", "AsyncSGD", "SlowMo", "SyncSGD"])
    for index in range(settings.runs if names else 0):
        name, after = names[index % len(names)], rng.uniform(0.0, 2.0)
        with workplace(settings.deadline) as place:
            job = place.start([*command(name, place.run, LONG), *EVERY])
            wait_for_checkpoint(job, place.run, settings.deadline)
            time.sleep(after)
            last = max(checkpoints(place.run), default=0)
            job.process.kill()
            place.finish(job, -signal.SIGKILL, 0)
            done = job.code != 0
            if done:
                place.resume(place.run, last)
            if name in synchronous():
                place.compare(name, WORKERS)
        yield Outcome(
            part="launchers",
            method=name,
            what=f"{after:.2f} s after the first checkpoint",
            done=done,
            seconds=max(job.seconds for job in place.jobs),
            wrong=place.wrong,
        )


def torchruns(settings: Settings) -> Iterator[Outcome]:
    """One rank under torchrun is killed; all are started anew, and go on."""
    rng = random.Random(f"{settings.seed} torchruns")
    names = settings.chosen(["AllReduceSGD", "LocalSGD", "ADPSGD"])
    for index in range(settings.few if names else 0):
        name, after, rank = names[index % len(names)], rng.uniform(0.0, 1.0), rng.randrange(RANKS)
        with workplace(settings.deadline) as place:
            job = place.start(_under_torchrun([*options(name, place.run, LONG, RANKS), *EVERY]))
            wait_for_checkpoint(job, place.run, settings.deadline)
            time.sleep(after)
            last = max(checkpoints(place.run), default=0)
            done = _kill_rank(rank)
            place.finish(job, 0)
            if done and not place.wrong:
                place.wrong += wrong_origin(job.said()[0], last)
            if name in synchronous():
                place.compare(name, RANKS)
            seconds = job.seconds
        yield Outcome(
            part="torchruns",
            method=name,
            what=f"rank {rank}, {after:.2f} s after the first checkpoint",
            done=done,
            seconds=seconds,
            wrong=place.wrong,
        )


def _under_torchrun(line: list[str]) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*start, "--max-restarts", "2", "--nproc-per-node", str(RANKS), "-m", "offbeat", *line]


def _kill_rank(rank: int) -> bool:
    """Kill the process that torchrun has started as that rank; False if there is none."""
    ours = descendants()
    for pid in sorted(ours):
        try:
            settings = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            started = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # Not what the rank has started itself, which has its environment too.
        if f"RANK={rank}".encode() in settings and b"offbeat" in started:
            os.kill(pid, signal.SIGKILL)
            return True
    return False
