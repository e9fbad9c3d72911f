"""Payloads that are given, not lent: their receiver writes to them, and sends them back."""

import gc
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offbeat.method import Method
from offbeat.node import Node
from offbeat.parameters import joined
from offbeat.runtime.framing import FrameError, Kind
from offbeat.runtime.payload import Where, compose, split
from offbeat.runtime.processes import run_processes
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.slots import Loan, Pool, Return
from offbeat.runtime.stitching import PAGE
from test_replicas import experiment
from test_slots import LARGE, hosts, mapped, settle

__all__ = ["hosts"]


def test_what_was_given_comes_back_without_a_copy(hosts) -> None:
    a, b = hosts(2)
    sent = a.pool.tensor(1000 + LARGE, torch.float32, given=True)[1000:].fill_(1)
    taken = a.pool.total_bytes
    a.transport.send(1, sent)
    (received,) = b.take(1)
    assert b.transport.is_given(received)
    received.mul_(7)
    b.transport.send(0, received)
    (back,) = a.take(1)
    assert back.eq(7).all()
    # The very pages, of the one slot that there is.
    received[3] = -1
    assert back[3] == sent[3] == -1
    assert (a.pool.total_bytes, b.pool.total_bytes) == (taken, 0)
    assert a.transport.changed_after_send() is None
    assert b.transport.changed_after_send() is None


def test_a_given_slot_waits_for_both(hosts) -> None:
    a, b = hosts(2)
    sent = a.pool.tensor(LARGE, torch.float32, given=True).fill_(1)
    address = sent.data_ptr()
    a.transport.send(1, sent)
    del sent
    (received,) = b.take(1)
    b.transport.send(0, received.fill_(2))
    (back,) = a.take(1)
    part = back[5:10]
    del received, back
    settle(b.transport, a.transport)
    assert not a.pool._loans
    # Only this host looks at it now, and only at what was sent back.
    assert a.pool.tensor(LARGE, torch.float32).fill_(9).data_ptr() != address
    assert part.tolist() == [2] * 5
    del part
    gc.collect()
    found = [a.pool.tensor(LARGE, torch.float32) for _ in range(2)]
    assert address in [tensor.data_ptr() for tensor in found]


@pytest.mark.parametrize("in_slot", [False, True])
def test_what_was_not_given_is_sent_back_by_value(hosts, in_slot: bool) -> None:
    a, b = hosts(2)
    sent = a.pool.tensor(LARGE, torch.float32) if in_slot else torch.empty(LARGE)
    a.transport.send(1, sent.fill_(1))
    (received,) = b.take(1)
    assert not b.transport.is_given(received)
    b.transport.send(0, received)
    received.add_(10)
    (back,) = a.take(1)
    assert back.eq(1).all()
    back.zero_()
    assert received.eq(11).all()
    assert sent.eq(1).all()


def test_what_came_back_is_not_given_again(hosts) -> None:
    a, b, c = hosts(3)
    a.transport.send(1, a.pool.tensor(LARGE, torch.float32, given=True).fill_(1))
    (received,) = b.take(1)
    b.transport.send(0, received)
    (back,) = a.take(1)
    for to in (1, 2):
        a.transport.send(to, back)
    ((at_b,), (at_c,)) = b.take(1), c.take(1)
    at_b.fill_(5)
    assert back.eq(1).all()
    assert at_c.eq(1).all()


def test_memory_that_was_given_is_lent_again(hosts) -> None:
    """And what its receiver writes then is its own."""
    a, b = hosts(2)
    for k in range(20):
        made = a.pool.tensor(LARGE, torch.float32, given=k % 2 == 0).fill_(k)
        a.transport.send(1, made)
        (received,) = b.take(1)
        assert b.transport.is_given(received) == (k % 2 == 0)
        assert received.eq(k).all()
        received.fill_(-1)
        assert made.eq(-1 if k % 2 == 0 else k).all()
        del made, received
        settle(b.transport, a.transport)
    assert len(a.pool._by_address) <= 2


def test_what_came_back_is_joined_in_place(hosts) -> None:
    a, b = hosts(2)
    half = 64 * PAGE // 4
    sent = a.pool.tensor(half, torch.float32, given=True).fill_(1)
    a.transport.send(1, sent)
    (received,) = b.take(1)
    b.transport.send(0, received.fill_(2))
    (back,) = a.take(1)
    own = a.pool.tensor(half, torch.float32).fill_(3)
    for host, pieces in ((a, [back, own]), (b, [received])):
        whole = host.transport.join(pieces)
        assert whole is not None
        assert "memfd:offbeat" in mapped(whole)
        assert torch.equal(whole, torch.cat(pieces))
        # To write to the whole is nobody else's affair.
        whole.zero_()
        assert back.eq(2).all()


def test_a_part_of_it_or_over_tcp_it_is_sent_as_anything_else(hosts) -> None:
    a, b = hosts(2)
    a.transport.send(1, a.pool.tensor(2 * LARGE, torch.float32, given=True).fill_(1))
    (received,) = b.take(1)
    for part in (received[:LARGE], received[LARGE:]):
        assert not b.transport.is_given(part)
        b.transport.send(0, part)
        part.fill_(5)
    assert all(back.eq(1).all() for back in a.take(2))


def test_over_tcp_nothing_is_given(hosts) -> None:
    a, b = hosts(2, tcp=True)
    a.transport.send(1, a.pool.tensor(LARGE, torch.float32, given=True).fill_(1))
    (received,) = b.take(1)
    assert not b.transport.is_given(received)
    b.transport.send(0, received)
    (back,) = a.take(1)
    assert back.eq(1).all()


@pytest.mark.parametrize("leaver", [0, 1])
def test_either_may_be_lost(hosts, leaver: int) -> None:
    a, b = pair = hosts(2)
    a.transport.send(1, a.pool.tensor(LARGE, torch.float32, given=True).fill_(1))
    (received,) = b.take(1)
    b.transport.send(0, received.fill_(2))
    (back,) = a.take(1)
    pair[leaver].transport.abort()
    pair[1 - leaver].wait(lambda: pair[1 - leaver].lost == [leaver])
    for _ in range(3):
        a.pool.tensor(LARGE, torch.float32).fill_(9)
    assert back.eq(2).all()
    assert received.eq(2).all()


def test_what_was_received_from_elsewhere_is_passed_on_to_be_read_only() -> None:
    """It may be passed on to several, in memory that was given before."""
    pool = Pool()
    loan = pool.lend(pool.tensor(LARGE, torch.float32, given=True), host=3)
    address = loan.slot.address
    pool.give_back(loan.token, 3)
    gc.collect()
    received = torch.frombuffer(pool.buffer(4 * LARGE), dtype=torch.float32)
    assert received.data_ptr() == address
    assert not pool.lend(received, host=4).given


def test_only_what_was_given_is_taken_back() -> None:
    pool = Pool()
    tensor = pool.tensor(LARGE, torch.float32, given=True)
    loan = pool.lend(tensor[100:200], host=3)
    found = pool.returned(loan.token, 3, loan.offset, loan.length)
    assert found is not None
    assert found.nbytes == 400
    for token, host, offset, length in (
        (loan.token + 1, 3, loan.offset, loan.length),
        (loan.token, 4, loan.offset, loan.length),
        (loan.token, 3, loan.offset - 1, 1),
        (loan.token, 3, loan.offset, loan.length + 1),
        (loan.token, 3, loan.offset + 1, loan.length),
        (loan.token, 3, loan.offset, 0),
    ):
        assert pool.returned(token, host, offset, length) is None
    pool.give_back(loan.token, 3)
    assert pool.returned(loan.token, 3, loan.offset, loan.length) is None
    lent = pool.lend(pool.tensor(LARGE, torch.float32), host=3)
    assert pool.returned(lent.token, 3, lent.offset, lent.length) is None


def test_who_returns_what_it_was_not_given_is_dropped(hosts) -> None:
    a, b = hosts(2)
    a.transport.send(1, a.pool.tensor(LARGE, torch.float32).fill_(1))
    kept = b.take(1)
    (loan,) = a.pool._loans.values()
    forged = Return(slot=loan.slot.number, token=loan.token, offset=0, length=loan.length)
    peer = b.transport._mesh.peers[0]
    with peer.lock:
        peer.push(Kind.DATA, compose([forged]))
    a.wait(lambda: a.lost == [1])
    (error,) = a.errors
    assert kept[0].eq(1).all()
    assert f"of loan {loan.token}, which it was not given" in str(error)


wheres = st.sampled_from([where for where in Where if where is not Where.IN_FRAME])
numbers = st.integers(0, 2**32 - 1)


@given(
    st.lists(st.one_of(st.binary(max_size=100), st.tuples(wheres, *[numbers] * 4)), max_size=6),
    st.lists(numbers, max_size=6),
)
def test_a_payload_says_of_each_part_where_it_is_and_what_is_released(parts, tokens) -> None:
    pool = Pool()
    asked: list[tuple[int, ...]] = []

    def borrow(*place: int) -> memoryview:
        asked.append(place)
        return memoryview(b"borrowed")

    def written(part):
        if isinstance(part, bytes):
            return memoryview(part)
        where, slot, token, offset, length = part
        if where is Where.RETURNED:
            return Return(slot=slot, token=token, offset=offset, length=length)
        made = type("Slot", (), {"number": slot})()
        given = where is Where.GIVEN
        return Loan(slot=made, token=token, host=0, offset=offset, length=length, given=given)

    composed = compose([written(part) for part in parts], tokens)
    taken: list[int] = []
    payload = memoryview(bytearray(b"".join(composed)))
    found = [bytes(part) for part in split(payload, borrow, taken.append)]
    assert taken == tokens
    assert found == [part if isinstance(part, bytes) else b"borrowed" for part in parts]
    assert asked == [part for part in parts if not isinstance(part, bytes)]
    pool.close()


def test_a_part_in_no_known_place_is_refused() -> None:
    payload = bytearray(b"".join(compose([memoryview(b"abc")])))
    payload[8] = len(Where)
    with pytest.raises(FrameError, match=f"a part in place {len(Where)}, which there is not"):
        split(memoryview(payload), lambda *place: memoryview(b""), lambda token: None)


@dataclass(frozen=True, kw_only=True)
class Means(Method):
    """Takes means of what lies in pieces, in ordinary memory and in a slot, and writes to them."""

    synchronous: ClassVar[bool] = True

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        ordinary, ready = node.parameters + node.rank, node.scaled(1.0 + node.rank)
        values = [gradient.dense, ordinary, ready]
        before = [joined(value).clone() for value in values]
        means = [await node.all_reduce(value) for value in (gradient, ordinary, ready)]
        seen = [mean.clone() for mean in means]
        for mean in means:
            mean.mul_(-1)  # Nobody else's.
        await node.barrier()
        for value, kept in zip(values, before, strict=True):
            assert torch.equal(joined(value), kept)
        torch.testing.assert_close(seen[1], node.parameters + (len(node.workers) - 1) / 2)
        for mean in seen:
            node.apply(mean, taken_at=gradient.version)
        assert all(map(torch.equal, means, (-mean for mean in seen)))


@pytest.mark.parametrize("workers", [2, 3])
def test_means_have_the_simulator_s_bits_and_change_nothing_else(workers: int) -> None:
    same = experiment(Means(), workers=workers, steps=8, threads=1)
    run = run_processes(same)
    assert run.error is None
    assert torch.equal(run.vector, Simulation(same).run().vector)
