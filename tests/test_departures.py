"""`recv(departures=True)`: a wait that whoever departs ends."""

import pytest
import torch
from torch import Tensor

from offbeat.cluster import Cluster, Fault
from offbeat.messages import message
from offbeat.suspensions import PeerLost


@message
class Word:
    number: Tensor


def heard(script, *, departures, faults, from_two_at=10.0):
    """What worker 0 meets, and when: workers 1 and 2 say a word at 1 s and later."""
    met = []

    async def worker(node):
        if node.rank:
            await node.sleep(1.0 if node.rank == 1 else from_two_at)
            node.send(0, Word(torch.tensor([float(node.rank)])))
            await node.sleep(100)
            return
        while node.now < 20:
            try:
                source, _ = await node.recv(Word, departures=departures)
                met.append((source, "word", round(node.now)))
            except PeerLost as lost:
                met.append((lost.peer, "lost", round(node.now)))
            if len(met) >= 3:
                return

    cluster = Cluster(workers=3, faults=faults)
    script(worker, workers=3, cluster=cluster)
    return met


@pytest.mark.parametrize("departures", [True, False])
def test_a_wait_for_anybody_is_ended_by_a_departure_only_if_asked(script, departures):
    crash = Fault(kind="crash", rank=1, at=5.0)
    met = heard(script, departures=departures, faults=(crash,))
    words = [(1, "word", 1), (2, "word", 10)]
    assert met == ([words[0], (1, "lost", 5), words[1]] if departures else words)


def test_what_a_departed_peer_has_sent_is_read_first(script):
    seen = []

    async def worker(node):
        if node.rank:
            node.send(0, Word(torch.tensor([1.0])))
            return
        await node.sleep(8.0)
        seen.append((await node.recv(Word, departures=True))[0])

    script(worker, cluster=Cluster(workers=2, faults=(Fault(kind="crash", rank=1, at=5.0),)))
    assert seen == [1]
