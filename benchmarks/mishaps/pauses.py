"""Pauses: processes are stopped for moments, as a busy machine or a virtual one does it."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from offbeat.methods import METHODS, SGD
from offbeat.runtime.processes import run_processes
from offbeat.testing.pauses import run_paused

from .outcomes import LONG, Outcome, Settings, experiment, joinable, observed, synchronous

JOIN = 0.3
"""Seconds after which the last worker joins, in every second run of a method that lets it."""


def pauses(settings: Settings) -> Iterator[Outcome]:
    """Processes are paused at random; the result is as if they had not been."""
    names = [name for name, method in METHODS.items() if method is not SGD]
    for name in settings.chosen(names):
        whole = run_processes(experiment(name)).vector if name in synchronous() else None
        for index in range(settings.few):
            seed = f"{settings.seed} {name} {index}"
            late = index % 2 == 1 and name in joinable()
            carry = functools.partial(
                run_paused,
                experiment(name, LONG) if late else experiment(name),
                seed=seed,
                whole=None if late else whole,  # When it joins is up to the machine.
                join=JOIN if late else None,
                deadline=settings.deadline,
            )
            what = f"seed {seed}" + f", a worker joins at {JOIN} s" * late
            yield observed("pauses", name, what, carry)
