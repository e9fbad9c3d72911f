"""Which transfer goes when several wait for the same lines."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offbeat.cluster import Access, Cluster, Outage
from offbeat.messages import codec_of, message


@message
class Parcel:
    number: int
    payload: Tensor


EMPTY = codec_of(Parcel).size(Parcel(0, torch.zeros(0)))


def parcel(number, size):
    """A message of about that many bytes."""
    return Parcel(number, torch.zeros((size - EMPTY) // 4))


def sent_by(script, plan, seed=0, **cluster):
    """Carry out (at, source, to, bytes) for each message; the trace's rows."""
    workers = cluster.setdefault("workers", 4)

    async def worker(node):
        for number, (at, source, to, size) in enumerate(sorted(plan)):
            if source == node.rank:
                if at > node.now:
                    await node.sleep(at - node.now)
                node.send(to, parcel(number, size))
        expected = sum(to == node.rank for _, _, to, _ in plan)
        for _ in range(expected):
            await node.recv(Parcel)

    simulation = script(worker, workers=workers, cluster=Cluster(**cluster), seed=seed)
    assert simulation.result.error is None
    assert simulation.in_flight == []
    return simulation.result.trace.messages


def starts(rows):
    return {(int(row["source"]), int(row["to"])): row["start_ns"] / 1e9 for row in rows}


def test_a_busy_receiver_holds_up_nothing_for_others(script):
    plan = [(0.0, 1, 2, 10_000), (1e-4, 0, 2, 1000), (2e-4, 0, 3, 1000)]
    began = starts(sent_by(script, plan, latency=0.0, bandwidth=1e6))
    # Node 2 is taken by node 1 for 10 ms; node 0's later message to node 3 does not wait for that.
    assert began[0, 3] == pytest.approx(2e-4)
    assert began[0, 2] == pytest.approx(0.01, rel=0.01)


def test_the_oldest_that_can_go_goes_first(script):
    plan = [(0.0, 0, 3, 10_000), (1e-3, 2, 3, 1000), (2e-3, 1, 3, 1000), (2e-3, 1, 0, 1000)]
    began = starts(sent_by(script, plan, latency=0.0, bandwidth=1e6))
    assert began[2, 3] < began[1, 3]
    assert began[1, 0] == pytest.approx(2e-3)


@pytest.mark.parametrize("seed", range(8))
def test_who_comes_when_the_line_is_just_free_does_not_overtake(script, seed):
    size = codec_of(Parcel).size(parcel(0, 10_000))
    plan = [(0.0, 0, 3, 10_000), (1e-3, 1, 3, 1000), (size / 1e6, 2, 3, 1000)]
    began = starts(sent_by(script, plan, seed=seed, latency=0.0, bandwidth=1e6))
    assert began[1, 3] == pytest.approx(size / 1e6)
    assert began[2, 3] > began[1, 3]


def test_everyone_with_both_neighbours_takes_two_transfers(script):
    n, size, bandwidth, latency = 16, 10_000, 1e6, 1e-4
    plan = [(0.0, i, (i + step) % n, size) for i in range(n) for step in (-1, 1)]
    rows = sent_by(script, plan, workers=n, latency=latency, bandwidth=bandwidth)
    assert rows["end_ns"].max() / 1e9 == pytest.approx(2 * size / bandwidth + latency, rel=0.01)


PLANS = st.lists(
    st.tuples(
        st.floats(0, 0.02), st.integers(0, 3), st.integers(0, 3), st.integers(200, 5000)
    ).filter(lambda entry: entry[1] != entry[2]),
    max_size=25,
)
LINES = st.sampled_from(
    [{}, {"access": {0: Access(up=2e5), 2: Access(down=3e5, latency=5e-3)}}],
)


@settings(max_examples=60)
@given(plan=PLANS, lines=LINES)
def test_no_line_is_idle_while_something_could_use_it(plan, lines):
    from conftest import run_script

    cluster = {"latency": 1e-3, "bandwidth": 1e6} | lines
    rows = sent_by(run_script, plan, **cluster)
    access = lines.get("access", {})

    def seconds(size, host, way):
        own = getattr(access.get(host), way, None)
        return size / (own or 1e6)

    # (side, begin, end) of every transfer, in seconds.
    taken = []
    for row in rows:
        begin, size = row["start_ns"] / 1e9, int(row["bytes"])
        taken.append((("out", row["source"]), begin, begin + seconds(size, row["source"], "up")))
        taken.append((("in", row["to"]), begin, begin + seconds(size, row["to"], "down")))
    for row in rows:
        sides = {("out", row["source"]), ("in", row["to"])}
        when, begin = row["sent_ns"] / 1e9, row["start_ns"] / 1e9
        # From its sending to its beginning one of its two sides was always taken.
        while when < begin - 2e-9:
            ends = [end for side, start, end in taken if side in sides and start <= when + 2e-9]
            later = [end for end in ends if end > when + 2e-9]
            assert later, f"idle at {when} although a message waited until {begin}"
            when = min(later)
    for side in {side for side, _, _ in taken}:
        spans = sorted((start, end) for s, start, end in taken if s == side)
        for (_, end), (start, _) in itertools.pairwise(spans):
            assert start >= end - 2e-9, "two transfers at one side"


@settings(max_examples=60)
@given(plan=PLANS)
def test_between_two_nodes_messages_stay_in_order(plan):
    from conftest import run_script

    outages = (Outage(isolated=(1,), at=0.004, until=0.012),)
    rows = sent_by(run_script, plan, latency=1e-3, bandwidth=1e6, outages=outages)
    assert len(rows) == len(plan)
    for source in range(4):
        for to in range(4):
            pair = rows[(rows["source"] == source) & (rows["to"] == to)]
            assert (sorted(pair["sent_ns"]) == pair["sent_ns"]).all()
            assert (pair["start_ns"][1:] >= pair["start_ns"][:-1]).all()
    crossing = rows[(rows["source"] == 1) | (rows["to"] == 1)]
    began = crossing["start_ns"] / 1e9
    assert ((began < 0.004) | (began >= 0.012)).all()
