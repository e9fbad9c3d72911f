"""Tickets: a count that processes share, bounded or not."""

import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from offbeat.runtime import tickets as module
from offbeat.runtime.forks import server_of_forks
from offbeat.runtime.tickets import Tickets

PATIENCE = 60.0


def _take(tickets: Tickets, most: int, taken) -> None:
    count = 0
    while count < most and tickets.take():
        count += 1
    taken.send(count)
    signal.pause()


@contextmanager
def processes(tickets: Tickets, count: int, most: int) -> Iterator[list[int]]:
    """So many have taken what they could, and then are killed; yields what each has taken."""
    context = server_of_forks()
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    started = [context.Process(target=_take, args=(tickets, most, pipe[1])) for pipe in pipes]
    for process in started:
        process.start()
    try:
        assert all(ours.poll(PATIENCE) for ours, _ in pipes)
        yield [ours.recv() for ours, _ in pipes]
    finally:
        for process in started:
            process.kill()
            process.join(PATIENCE)
            process.close()


def test_of_a_bounded_number_each_is_taken_once() -> None:
    tickets = Tickets(3000, taken=100)
    with processes(tickets, 3, most=10**9) as taken:
        assert sum(taken) == 2900
        assert tickets.spent
    assert not tickets.take()
    tickets.set(2999)
    assert tickets.take()
    assert not tickets.take()
    assert tickets.taken == 3000
    tickets.close()


def test_without_a_bound_none_is_lost_though_takers_are_killed() -> None:
    tickets = Tickets(math.inf, taken=7)
    for _ in range(2):
        with processes(tickets, 2, most=5000) as taken:
            assert taken == [5000, 5000]
            assert tickets.taken == 10_007
        assert not tickets.spent
        assert tickets.take()
        assert tickets.taken == 10_008
        tickets.set(7)
        assert tickets.taken == 7
    tickets.close()


class _Duplicate:
    def __init__(self, tickets: Tickets) -> None:
        self._fd = os.dup(tickets._fd)

    def detach(self) -> int:
        return self._fd


def test_who_comes_when_all_cells_are_had_shares_one() -> None:
    first = Tickets(math.inf)
    others = [module._attach(_Duplicate(first), math.inf) for _ in range(module._CELLS)]
    for tickets in (first, *others):
        assert tickets.take()
    assert first.taken == 1 + len(others)
    for tickets in (*others, first):
        tickets.close()
