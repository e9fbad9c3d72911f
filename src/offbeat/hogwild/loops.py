"""What a thread does, compiled: the paper's algorithm 1 and what it is compared with.

    for each edge e that the thread takes:
        read x_e
        compute the gradient of f_e there
        unless it is 0:
            [lock]
            for v in e:  x_v <- x_v - step * gradient_v
            [unlock]

The schemes differ in what is locked around the update: nothing, the edge's vertices, all of x, or
all of x with the threads taking turns; and in HogWild++ clusters of threads have an x each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .atomics import (
    atomic_add,
    atomic_load,
    atomic_store,
    atomic_swap,
    nanoseconds,
    yield_core,
)
from .compiling import compiled
from .costs import begin, end, fetch, gradient, look, projected, update, width
from .ring import exchange

NOTHING, EDGE, VECTOR, TURNS = 0, 1, 2, 3
"""What is locked around an update."""
AHEAD = 3
"""A thread's edges from that which it works on to that which it fetches."""
SPINS = 256
"""Looks at a lock before its thread lets others have the core."""


class Rules(NamedTuple):
    locked: int
    atomic: bool
    """Whether coordinates are added to in one indivisible step, or read and then written."""
    delay_ns: int
    """Busy waiting after each gradient."""
    most: int
    """Coordinates of the edge that touches most."""
    chunk: int
    """Edges that a thread takes at a time."""


class Shared(NamedTuple):
    """What the threads share beside x."""

    locks: NDArray[np.int32]  # (vertices,) 1 where held; the first is also that of all of x
    taken: NDArray[np.int64]  # (1,) edges that threads have taken in this epoch
    turn: NDArray[np.int64]  # (1,) updates made so far in this epoch
    stop: NDArray[np.int64]  # (1,) not 0 once the threads have to end


class Watch(NamedTuple):
    """What is noted of every update, if it is: this makes the updates several times slower.

    An update is told by a number of its own. Two threads collide in a vertex if one updates it
    between the other's reading and updating it. `counted` is added to just as x is, and loses what
    it loses to the same races; `made` are each thread's own and lose none.
    """

    on: bool
    last: NDArray[np.int64]  # (vertices,) number of the last update
    collisions: NDArray[np.int64]  # (threads, vertices)
    made: NDArray[np.int64]  # (threads, vertices)
    counted: NDArray[np.int64]  # (vertices,)
    finished: NDArray[np.int64]  # (threads, 8) updates, in the first column; a cache line each
    lag: NDArray[np.int64]  # (threads, 2) sum and maximum over a thread's updates


@compiled
def work(
    costs: Any,
    order: Any,
    x: Any,
    step: Any,
    rules: Any,
    shared: Any,
    watch: Any,
    ring: Any,
    thread: int,
) -> None:
    """Go through edges of `order`, as thread number `thread` of those that share it and x.

    Where there are several clusters x is that of the thread's, and the first threads exchange them.
    """
    seen, change = np.empty(rules.most, x.dtype), np.empty(rules.most, x.dtype)
    stamps = np.empty(rules.most if watch.on else 0, np.int64)
    in_turn, threads = rules.locked == TURNS, len(watch.finished)
    j, until = (thread, len(order)) if in_turn else (0, 0)
    stride = threads if in_turn else 1
    clusters = len(ring.x)
    # A cluster's first thread exchanges; with the token it counts the edges since then, from 1.
    leads, held = clusters > 1 and thread < clusters, 0
    while True:
        if j >= until and not in_turn:
            # Whoever is slowed down takes fewer.
            j = atomic_add(shared.taken, 0, rules.chunk)
            until = min(j + rules.chunk, len(order))
        if j >= until or atomic_load(shared.stop, 0) != 0:
            if held > 0:
                atomic_store(ring.token, 0, (thread + 1) % clusters)
            return
        edge, before = order[j], 0
        if j + AHEAD * stride < len(order):
            fetch(costs, order[j + AHEAD * stride], x)
        if watch.on:
            before = total(watch.finished)
            for k in range(begin(costs, edge), end(costs, edge)):
                stamps[k - begin(costs, edge)] = watch.last[costs.vertices[k]]
        look(costs, edge, x, seen)
        # Whoever writes what is there already has the others fetch it again, for nothing.
        moves = gradient(costs, edge, seen, change)
        if rules.delay_ns > 0:
            wait(rules.delay_ns, shared)
        # A call with arrays counts references to them: that is done only where it is needed.
        locks = rules.locked != NOTHING and (moves or in_turn)
        if locks:
            enter(costs, edge, rules, shared, j)
        if not moves:
            pass
        elif watch.on:
            others = total(watch.finished) - before
            watch.lag[thread, 0] += others
            watch.lag[thread, 1] = max(watch.lag[thread, 1], others)
            watched_write(costs, edge, x, change, step, rules, watch, stamps, thread)
            watch.finished[thread, 0] += 1
        elif rules.atomic:
            write_atomically(costs, edge, x, change, step)
        else:
            write(costs, edge, x, change, step)
        if locks:
            leave(costs, edge, rules, shared, j)
        if leads and held == 0:
            if atomic_load(ring.token, 0) == thread:
                exchange(costs, ring, thread)
                held = 1
        elif leads:
            held += 1
            if held > ring.hold:
                atomic_store(ring.token, 0, (thread + 1) % clusters)
                held = 0
        j += stride


@compiled
def write(costs: Any, edge: int, x: Any, change: Any, step: Any) -> None:
    """x_v <- x_v - step * change_v for all v in e."""
    wide, first = width(costs), np.uint64(begin(costs, edge))
    touched = np.uint64(end(costs, edge)) - first
    if projected(costs):
        for j in range(touched):
            update(costs, x, costs.vertices[first + j] * wide, change, j * wide, step)
    else:
        # Not by `update`: references to what a function is given are counted.
        for j in range(touched):
            for k in range(wide):
                x[costs.vertices[first + j] * wide + k] -= step * change[j * wide + k]


@compiled
def write_atomically(costs: Any, edge: int, x: Any, change: Any, step: Any) -> None:
    """The same, each coordinate in one indivisible step; no costs that are projected have this."""
    wide, first = width(costs), np.uint64(begin(costs, edge))
    for j in range(np.uint64(end(costs, edge)) - first):
        for k in range(wide):
            at = costs.vertices[first + j] * wide + k
            atomic_add(x, at, -step * change[j * wide + k])


@compiled
def watched_write(
    costs: Any,
    edge: int,
    x: Any,
    change: Any,
    step: Any,
    rules: Any,
    watch: Any,
    stamps: Any,
    thread: int,
) -> None:
    """The same, noting what happens."""
    wide, first, threads = width(costs), begin(costs, edge), len(watch.finished)
    number = (watch.finished[thread, 0] + 1) * threads + thread
    for j in range(end(costs, edge) - first):
        vertex = costs.vertices[first + j]
        if watch.last[vertex] != stamps[j]:
            watch.collisions[thread, vertex] += 1
        watch.made[thread, vertex] += 1
        if rules.atomic:
            for k in range(wide):
                atomic_add(x, vertex * wide + k, -step * change[j * wide + k])
            atomic_add(watch.counted, vertex, 1)
        else:
            update(costs, x, vertex * wide, change, j * wide, step)
            watch.counted[vertex] += 1
        watch.last[vertex] = number


@compiled
def enter(costs: Any, edge: int, rules: Any, shared: Any, number: int) -> None:
    """Lock what this scheme locks. `number`: of this update, if threads take turns."""
    if rules.locked == EDGE:
        # In increasing order, so that no two threads wait for each other.
        for k in range(begin(costs, edge), end(costs, edge)):
            acquire(shared.locks, costs.vertices[k])
    elif rules.locked == VECTOR:
        acquire(shared.locks, 0)
    elif rules.locked == TURNS:
        spins = 0
        while atomic_load(shared.turn, 0) != number and atomic_load(shared.stop, 0) == 0:
            spins += 1
            if spins % SPINS == 0:
                yield_core()


@compiled
def leave(costs: Any, edge: int, rules: Any, shared: Any, number: int) -> None:
    """Unlock it."""
    if rules.locked == EDGE:
        for k in range(begin(costs, edge), end(costs, edge)):
            atomic_store(shared.locks, costs.vertices[k], 0)
    elif rules.locked == VECTOR:
        atomic_store(shared.locks, 0, 0)
    elif rules.locked == TURNS:
        atomic_store(shared.turn, 0, number + 1)


@compiled
def acquire(locks: Any, at: int) -> None:
    spins = 0
    while atomic_swap(locks, at, 1) != 0:
        while atomic_load(locks, at) != 0:
            spins += 1
            if spins % SPINS == 0:
                yield_core()


@compiled
def wait(ns: int, shared: Any) -> None:
    until = nanoseconds() + ns
    while nanoseconds() < until and atomic_load(shared.stop, 0) == 0:
        pass


@compiled
def total(finished: Any) -> int:
    """Updates that all threads have finished."""
    made = 0
    for thread in range(len(finished)):
        made += finished[thread, 0]
    return made
