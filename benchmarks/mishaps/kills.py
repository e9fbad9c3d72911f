"""Kills: a process ends by its own hand at a random await, in runs that are started from here."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from offbeat.methods import METHODS
from offbeat.runtime.processes import run_processes
from offbeat.testing.chaos import Saboteur
from offbeat.testing.kills import KilledRun, draw_kills, run_killed
from offbeat.testing.recoveries import run_recovering, run_rejoining

from .outcomes import (
    LONG,
    WORKERS,
    Outcome,
    Settings,
    experiment,
    joinable,
    lossless,
    observed,
    survivors,
    synchronous,
    with_servers,
)

JOIN = 0.7
"""Seconds after which a worker that was killed joins again."""
EARLY = 1_600
"""Samples of the part of a run in which the kill comes."""


def workers(settings: Settings) -> Iterator[Outcome]:
    """A worker is killed; the others finish."""
    for name in settings.chosen(survivors()):
        yield from _killed("workers", name, range(WORKERS), settings.runs, settings)


def servers(settings: Settings) -> Iterator[Outcome]:
    """A server is killed; the run ends with an error that names it."""
    for name in settings.chosen(with_servers()):
        yield from _killed("servers", name, _servers(name), settings.few, settings)


def without(settings: Settings) -> Iterator[Outcome]:
    """A worker that the others cannot do without is killed; the error names it."""
    for name in settings.chosen(lossless()):
        yield from _killed("lossless", name, range(WORKERS), settings.few, settings)


def recoveries(settings: Settings) -> Iterator[Outcome]:
    """With checkpoints: whichever process is killed, the run goes on to the end."""
    for name in settings.chosen(dict.fromkeys([*with_servers(), *synchronous()])):
        planned = experiment(name)
        whole = run_processes(planned).vector if name in synchronous() else None
        count = settings.few
        kills = draw_kills(planned, range(WORKERS), count, settings.seed)
        if METHODS[name]().server_count:
            of_servers = draw_kills(planned, _servers(name), count, settings.seed)
            kills = [kill for pair in zip(of_servers, kills, strict=True) for kill in pair][:count]
        for where in kills:
            carry = functools.partial(_recover, name, whole, settings.deadline, where)
            yield observed("recoveries", name, str(where), carry)


def joins(settings: Settings) -> Iterator[Outcome]:
    """A worker is killed, and joins again while the others go on."""
    for name in settings.chosen(joinable()):
        planned = experiment(name, LONG)
        for where in draw_kills(
            experiment(name, EARLY), range(WORKERS), settings.few, settings.seed
        ):
            carry = functools.partial(
                run_rejoining, planned, where, at=JOIN, deadline=settings.deadline
            )
            yield observed("joins", name, str(where), carry)


def _killed(
    part: str, name: str, ranks: range, count: int, settings: Settings
) -> Iterator[Outcome]:
    planned = experiment(name)
    for where in draw_kills(planned, ranks, count, settings.seed):
        carry = functools.partial(run_killed, planned, where, deadline=settings.deadline)
        yield observed(part, name, str(where), carry)


def _recover(
    name: str, whole: Tensor | None, deadline: float, where: Saboteur, folder: Path
) -> KilledRun:
    return run_recovering(experiment(name), where, folder, whole, deadline)


def _servers(name: str) -> range:
    return range(WORKERS, WORKERS + METHODS[name]().server_count)
