"""Gradient requests of a real run's host, and the wait for one."""

import threading
import time

import pytest

from offbeat.methods import SGD
from test_snapshots import begun

__all__ = ["begun"]


def withdraw_at_the_end_of_a_wait(host):
    """The budget is spent just when the request has ended the wait for it; the waits so far."""
    waits, serve = [], host.transport.serve
    (held,) = host.requests
    host.requests.clear()

    def withdrawing(until):
        waits.append(time.monotonic())
        if len(waits) > 1:
            return serve(until)
        host.requests.append(held)
        assert until()
        host.stop()
        return True

    host.transport.serve = withdrawing
    return waits


def test_a_withdrawn_request_does_not_end_the_wait_for_the_next(begun):
    host, _, _ = begun(SGD())
    waits, given = withdraw_at_the_end_of_a_wait(host), []
    thread = threading.Thread(target=lambda: given.append(host.serve_request()))
    thread.start()
    deadline = time.monotonic() + 10
    while len(waits) < 2 and not given and time.monotonic() < deadline:
        time.sleep(0.001)
    # The worker is still there: no gradient is wanted, but others may want something of it.
    assert len(waits) == 2
    assert not given
    host.finish()
    thread.join(10)
    assert given == [None]


def test_a_wait_of_so_many_seconds_ends_then_although_its_request_was_withdrawn(begun):
    host, _, _ = begun(SGD())
    waits = withdraw_at_the_end_of_a_wait(host)
    assert host.serve_request(timeout=0.05) is None
    assert len(waits) == 2
    assert 0.04 < time.monotonic() - waits[0] < 5


@pytest.mark.parametrize(("cores", "keeps_awake"), [(1, False), (2, True)])
def test_a_core_is_kept_awake_only_where_each_process_has_one(
    begun, monkeypatch: pytest.MonkeyPatch, cores, keeps_awake
):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(cores))
    other, _, _ = begun(SGD())
    host, _, _ = begun(SGD(), rank=1, hosts=2, meet=[other])
    assert host.transport.spins == keeps_awake
    # They may be on other machines, which is learnt later.
    host.locate([0, 1])
    assert host.transport.spins
