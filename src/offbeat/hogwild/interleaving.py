"""Workers under virtual time, compiled: one access to one vertex after the other.

A worker goes through its edges as a thread does in `loops`, but each of its accesses is an event
with a time of its own. The events of all workers are taken in the order of their times.
"""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiling import compiled, inlined
from .costs import begin, end, gradient, update, width
from .loops import EDGE, NOTHING, TURNS
from .ring import exchange

READ, ENTER, LOAD, STORE, LEAVE, EXCHANGE = 0, 1, 2, 3, 4, 5
"""What a worker does next: read its edge's vertices one by one, take what is locked, then load and
store each vertex, and leave the edge; at once, if the gradient moves nothing. Between two edges the
first of a cluster may exchange its x."""
OF_ALL, TURN = -2, -3
"""What a worker can wait for beside the lock of a vertex: that of all of x, or its turn."""
NEVER = -1.0
"""The time of the next event of a worker that waits or has done."""


class Times(NamedTuple):
    """What accesses take, in seconds; see `simulated.AccessTimes`."""

    read: float
    compute: float
    load: float
    store: float
    transfer: float
    lock: float
    handoff: float
    exchange: float
    delay: float


class Memory(NamedTuple):
    """What is known of each vertex of x, or of those of several x in turn (vertices,) int64."""

    stores: NDArray[np.int64]
    collided: NDArray[np.int64]
    kept: NDArray[np.int64]
    """Updates whose effect is in the vertex now."""
    writer: NDArray[np.int64]
    """The worker that wrote it last; -1 for none."""
    holder: NDArray[np.int64]
    """The worker that holds its lock; -1 for none."""


class Workers(NamedTuple):
    """What each worker is at."""

    order: NDArray[np.int64]  # (|E|,) edges, those of one worker after those of another
    starts: NDArray[np.int64]  # (workers + 1,) where each worker's begin
    slower: NDArray[np.float64]  # (|E|,) how much longer than usual a gradient takes
    place: NDArray[np.int64]  # (workers,) in `order`
    doing: NDArray[np.int64]  # (workers,)
    vertex: NDArray[np.int64]  # (workers,) how many of the edge's vertices that was done to
    seen: NDArray[Any]  # (workers, coordinates of an edge)
    change: NDArray[Any]  # (workers, coordinates of an edge)
    moves: NDArray[np.bool_]  # (workers,) whether the gradient moves anything
    stamps: NDArray[np.int64]  # (workers, vertices of an edge) `stores` when it was read
    register: NDArray[Any]  # (workers, width) what was loaded
    kept: NDArray[np.int64]  # (workers,) `Memory.kept` when it was loaded
    waits_for: NDArray[np.int64]  # (workers,) a lock; -1 if for none
    since: NDArray[np.int64]  # (workers,) counted in waits
    before: NDArray[np.int64]  # (workers,) updates that were finished when the edge was begun
    base: NDArray[np.int64]  # (workers,) where the vertices of the worker's x begin
    held: NDArray[np.int64]  # (workers,) 1 and the edges since it exchanged; 0 without the token


class Counts(NamedTuple):
    """Of the epoch, in arrays of one element, and of the run."""

    finished: NDArray[np.int64]  # (copies of x,) updates
    turns: NDArray[np.int64]  # edges that were left
    waits: NDArray[np.int64]
    holder: NDArray[np.int64]  # (2,) who had the lock of all of x, or the turn, last; and has it
    lag: NDArray[np.int64]  # (3,) sum, maximum and number over all updates of the run


@compiled
def interleave(
    costs: Any,
    x: Any,
    step: Any,
    locked: int,
    atomic: bool,
    times: Any,
    memory: Any,
    workers: Any,
    counts: Any,
    ring: Any,
    exchanging: bool,
) -> float:
    """Have the workers go through their edges; returns the virtual seconds that this took."""
    taken = 0.0
    heap = [(0.0, w) for w in range(len(workers.place)) if has_edge(workers, w)]
    heapq.heapify(heap)
    after, w = NEVER, 0
    while True:
        if after != NEVER:
            now, w = heapq.heappushpop(heap, (after, w))
        elif len(heap):
            now, w = heapq.heappop(heap)
        else:
            return taken
        doing = workers.doing[w]
        if doing == READ:
            after = read(costs, x, locked, times, memory, workers, counts, w, now)
        elif doing == ENTER:
            after = enter(costs, locked, times, memory, workers, counts, w, now)
        elif doing == LOAD:
            after = load(costs, x, times, memory, workers, counts, w, now)
        elif doing == EXCHANGE:
            after = now + times.exchange * len(ring.x[0])
            swap(costs, memory, workers, ring, w)
            taken = max(taken, after)
            if not has_edge(workers, w):
                after = pass_on(workers, ring, w)
        else:
            after = now
            if doing == STORE:
                after += times.store
                store(costs, x, step, atomic, memory, workers, counts, w)
            if workers.doing[w] == LEAVE:
                taken = max(taken, after)
                leave(costs, locked, memory, workers, counts, w, after, heap)
                if exchanging and w < len(ring.x):
                    attend(workers, ring, w)
                if workers.doing[w] == READ and not has_edge(workers, w):
                    after = pass_on(workers, ring, w)


@compiled
def attend(workers: Any, ring: Any, w: int) -> None:
    """After an edge: exchange when the token comes, and pass it on when its time is over."""
    if workers.held[w] > 0:
        workers.held[w] += 1
        if workers.held[w] > ring.hold:
            pass_on(workers, ring, w)
    elif ring.token[0] == w:
        workers.doing[w] = EXCHANGE


@compiled
def swap(costs: Any, memory: Any, workers: Any, ring: Any, w: int) -> None:
    """Exchange; what both clusters have is in this worker's cache then."""
    exchange(costs, ring, w)
    vertices = len(memory.writer) // len(ring.x)
    for cluster in (w, (w + 1) % len(ring.x)):
        memory.writer[cluster * vertices : (cluster + 1) * vertices] = w
    workers.held[w] = 1
    workers.doing[w] = READ


@compiled
def pass_on(workers: Any, ring: Any, w: int) -> float:
    """The token, if the worker holds it: to the next cluster."""
    if workers.held[w] > 0:
        workers.held[w] = 0
        ring.token[0] = (w + 1) % len(ring.x)
    return NEVER


@inlined
def has_edge(workers: Any, w: int) -> bool:
    return workers.place[w] < workers.starts[w + 1]


@inlined
def read(
    costs: Any,
    x: Any,
    locked: int,
    times: Any,
    memory: Any,
    workers: Any,
    counts: Any,
    w: int,
    now: float,
) -> float:
    """Read a vertex, and after the last one compute the gradient."""
    edge, j, wide = workers.order[workers.place[w]], workers.vertex[w], width(costs)
    first = begin(costs, edge)
    touched = end(costs, edge) - first
    vertex = workers.base[w] + costs.vertices[first + j]
    if j == 0:
        workers.before[w] = counts.finished[w % len(counts.finished)]
    for k in range(wide):
        workers.seen[w, j * wide + k] = x[vertex * wide + k]
    workers.stamps[w, j] = memory.stores[vertex]
    after = now + times.read + times.transfer * far(memory, vertex, w)
    workers.vertex[w] = j + 1
    if j + 1 == touched:
        moves = gradient(costs, edge, workers.seen[w], workers.change[w])
        after += times.compute * touched * workers.slower[workers.place[w]] + times.delay
        workers.vertex[w] = 0
        workers.moves[w] = moves
        if locked == TURNS or (moves and locked != NOTHING):
            workers.doing[w] = ENTER
        else:
            workers.doing[w] = LOAD if moves else LEAVE
    return after


@compiled
def enter(
    costs: Any,
    locked: int,
    times: Any,
    memory: Any,
    workers: Any,
    counts: Any,
    w: int,
    now: float,
) -> float:
    """Take a lock or one's turn, or wait for it."""
    edge, j = workers.order[workers.place[w]], workers.vertex[w]
    first = begin(costs, edge)
    vertex = costs.vertices[first + j]
    if locked == EDGE:
        wanted, free = vertex, memory.holder[vertex] < 0
        after = now + times.lock + times.transfer * far(memory, vertex, w)
    elif locked == TURNS:
        number = (workers.place[w] - workers.starts[w]) * len(workers.place) + w
        wanted, free = TURN, counts.turns[0] == number
        after = now + times.lock + times.handoff * had_by_another(counts, w)
    else:
        wanted, free = OF_ALL, counts.holder[1] < 0
        after = now + times.lock + times.handoff * had_by_another(counts, w)
    if not free:
        counts.waits[0] += 1
        workers.since[w] = counts.waits[0]
        workers.waits_for[w] = wanted
        return NEVER
    if locked == EDGE:
        memory.holder[vertex] = w
        workers.vertex[w] = j + 1
        if j + 1 < end(costs, edge) - first:
            return after
    else:
        counts.holder[:] = w
    workers.vertex[w] = 0
    workers.doing[w] = LOAD if workers.moves[w] else LEAVE
    return after


@inlined
def load(
    costs: Any, x: Any, times: Any, memory: Any, workers: Any, counts: Any, w: int, now: float
) -> float:
    """Load a vertex, to add to it."""
    edge, j, wide = workers.order[workers.place[w]], workers.vertex[w], width(costs)
    vertex = workers.base[w] + costs.vertices[begin(costs, edge) + j]
    if j == 0:
        others = counts.finished[w % len(counts.finished)] - workers.before[w]
        counts.lag[0] += others
        counts.lag[1] = max(counts.lag[1], others)
        counts.lag[2] += 1
    for k in range(wide):
        workers.register[w, k] = x[vertex * wide + k]
    workers.kept[w] = memory.kept[vertex]
    workers.doing[w] = STORE
    return now + times.load + times.transfer * far(memory, vertex, w)


@inlined
def store(
    costs: Any,
    x: Any,
    step: Any,
    atomic: bool,
    memory: Any,
    workers: Any,
    counts: Any,
    w: int,
) -> None:
    """Store what was loaded and added to; the edge's last vertex finishes the update."""
    edge, j, wide = workers.order[workers.place[w]], workers.vertex[w], width(costs)
    first = begin(costs, edge)
    vertex = workers.base[w] + costs.vertices[first + j]
    if memory.stores[vertex] != workers.stamps[w, j]:
        memory.collided[vertex] += 1
    if atomic:
        workers.kept[w] = memory.kept[vertex]
    else:
        for k in range(wide):
            x[vertex * wide + k] = workers.register[w, k]
    update(costs, x, vertex * wide, workers.change[w], j * wide, step)
    memory.kept[vertex] = workers.kept[w] + 1
    memory.stores[vertex] += 1
    memory.writer[vertex] = w
    workers.vertex[w] = j + 1
    workers.doing[w] = LOAD
    if j + 1 == end(costs, edge) - first:
        counts.finished[w % len(counts.finished)] += 1
        workers.doing[w] = LEAVE


@compiled
def leave(
    costs: Any,
    locked: int,
    memory: Any,
    workers: Any,
    counts: Any,
    w: int,
    now: float,
    heap: Any,
) -> None:
    """The edge is done with: unlock what is locked, and go on to the next one."""
    counts.turns[0] += 1
    edge = workers.order[workers.place[w]]
    if locked == TURNS:
        wake_one(workers, counts.turns[0] % len(workers.place), now, heap)
    elif not workers.moves[w]:
        # Nothing was locked.
        pass
    elif locked == EDGE:
        for k in range(begin(costs, edge), end(costs, edge)):
            memory.holder[costs.vertices[k]] = -1
            wake(workers, costs.vertices[k], now, heap)
    elif locked != NOTHING:
        counts.holder[1] = -1
        wake(workers, OF_ALL, now, heap)
    workers.place[w] += 1
    workers.vertex[w] = 0
    workers.doing[w] = READ


@compiled
def wake(workers: Any, lock: int, now: float, heap: Any) -> None:
    """The worker that has waited longest for that lock tries again."""
    longest = -1
    for w in range(len(workers.place)):
        earlier = longest < 0 or workers.since[w] < workers.since[longest]
        if workers.waits_for[w] == lock and earlier:
            longest = w
    if longest >= 0:
        wake_one(workers, longest, now, heap)


@compiled
def wake_one(workers: Any, w: int, now: float, heap: Any) -> None:
    """A worker tries again, if it waits."""
    if workers.waits_for[w] != -1:
        workers.waits_for[w] = -1
        heapq.heappush(heap, (now, w))


@compiled
def had_by_another(counts: Any, w: int) -> bool:
    """Whether another worker had the lock of all of x, or the turn, last."""
    return counts.holder[0] >= 0 and counts.holder[0] != w


@inlined
def far(memory: Any, vertex: int, w: int) -> bool:
    """Whether another worker wrote the vertex last."""
    return memory.writer[vertex] >= 0 and memory.writer[vertex] != w
