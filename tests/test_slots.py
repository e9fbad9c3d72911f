"""Payloads in shared memory: read in place, by value for all, recycled, never leaked."""

import ctypes
import errno
import fcntl
import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from offbeat.runtime.forks import server_of_forks
from offbeat.runtime.framing import FrameError, Kind
from offbeat.runtime.mappings import PUT_OFF, SLOT_LIMIT, Mappings
from offbeat.runtime.peer import SMALL, Peer
from offbeat.runtime.reactor import Reactor
from offbeat.runtime.slots import SEALS, SHARED_FROM, SMALLEST, Pool, slot_size
from offbeat.runtime.stitching import PAGE
from offbeat.runtime.transport import Transport

SECRET = b"the run's secret"
PATIENCE = 30.0
LARGE = 300_000
"""Elements of a tensor that goes through a slot."""


class Host:
    """A transport that keeps what it received until told to forget it."""

    def __init__(self, host: int, listen: str) -> None:
        self.changed = threading.Condition()
        self.received: list[Tensor] = []
        self.lost: list[int] = []
        self.errors: list[BaseException] = []
        self.transport = Transport(
            host, listen, SECRET, self._on_frame, self._on_lost, on_error=self._on_error
        )

    @property
    def pool(self) -> Pool:
        return self.transport.pool

    def _note(self, where: list, what: object) -> None:
        with self.changed:
            where.append(what)
            self.changed.notify_all()

    def _on_frame(self, source: int, parts: list[memoryview]) -> None:
        self._note(self.received, torch.frombuffer(parts[0], dtype=torch.float32))

    def _on_lost(self, host: int, graceful: bool) -> None:
        self._note(self.lost, host)

    def _on_error(self, error: BaseException) -> None:
        self._note(self.errors, error)

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE), self.errors

    def take(self, count: int) -> list[Tensor]:
        """Wait for so many tensors, and keep none of them."""
        self.wait(lambda: len(self.received) >= count)
        taken, self.received[:] = list(self.received), []
        return taken


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[..., list[Host]]]:
    made: list[Host] = []

    def make(count: int, *, tcp: bool = False) -> list[Host]:
        for i in range(count):
            made.append(Host(i, "tcp:127.0.0.1:0" if tcp else f"unix:{tmp_path}/{i}"))
        addresses = {i: host.transport.address for i, host in enumerate(made)}
        jobs = [
            threading.Thread(target=host.transport.connect, args=(addresses, PATIENCE))
            for host in made
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(PATIENCE)
        return made

    yield make
    for host in made:
        host.transport.abort()


def settle(*transports: Transport) -> None:
    """Let every transport's thread pass on what was released, and take what is passed on to it."""
    for _ in range(3):
        for transport in transports:
            done = threading.Event()
            assert transport.call_soon(done.set)
            assert done.wait(PATIENCE)


def slots_mapped() -> int:
    gc.collect()
    return Path("/proc/self/maps").read_text().count("memfd:offbeat")


def mapped(tensor: Tensor) -> str:
    """The line of /proc/self/maps that a tensor lies in."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(bound, 16) for bound in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return line
    raise AssertionError("mapped nowhere")


def test_what_was_received_and_what_is_one_s_own_are_joined_in_place(hosts) -> None:
    a, b = hosts(2)
    half = 64 * PAGE // 4  # numbers in so many whole pages
    sent = a.pool.tensor(half, torch.float32)
    sent.copy_(torch.arange(half))
    a.transport.send(1, sent)
    (received,) = b.take(1)
    own = b.pool.tensor(half, torch.float32)
    own.copy_(torch.arange(half, 2 * half))
    whole = b.transport.join([received, own])
    assert whole is not None
    assert torch.equal(whole, torch.arange(2 * half, dtype=torch.float32))
    assert "memfd:offbeat" in mapped(whole)
    # Ordinary memory is in no slot, and the same payload is found no more when it is garbage.
    assert b.transport.join([received, torch.zeros(half)]) is None
    # Lent until the whole is garbage, though the payload itself is not referred to.
    del received
    gc.collect()
    settle(a.transport, b.transport)
    assert len(a.pool._loans) == 1
    assert torch.equal(whole[:half], sent)
    del whole
    gc.collect()
    given_back(a)


def test_a_slot_tensor_is_read_in_place_by_all(hosts) -> None:
    a, b, c = hosts(3)
    sent = a.pool.tensor(LARGE, torch.float32)
    sent.copy_(torch.arange(LARGE))
    taken = a.pool.total_bytes
    a.transport.send(1, sent)
    a.transport.send(2, sent[1000:])
    ((at_b,), (at_c,)) = b.take(1), c.take(1)
    assert torch.equal(at_b, sent)
    assert torch.equal(at_c, sent[1000:])
    assert a.pool.total_bytes == taken
    assert b.pool.total_bytes == c.pool.total_bytes == 0
    # The very pages: a write that no sender may do shows with the receivers.
    sent[2000] = -1
    assert at_b[2000] == at_c[1000] == -1


def test_what_a_receiver_writes_is_its_own(hosts) -> None:
    a, b, c = hosts(3)
    sent = a.pool.tensor(LARGE, torch.float32)
    sent.fill_(1)
    for to in (1, 1, 2):
        a.transport.send(to, sent)
    (first, second), (third,) = b.take(2), c.take(1)
    first.fill_(5)
    assert {float(x.sum()) for x in (sent, second, third)} == {LARGE}
    del first, second, third
    # Nor does it shine through when that memory is used again, even if no tensor wrote it.
    settle(b.transport, c.transport, a.transport)
    a.transport.send(1, sent)
    (again,) = b.take(1)
    assert again.sum() == LARGE
    again.numpy()[7] = 9
    del again
    settle(b.transport, a.transport)
    a.transport.send(1, sent)
    assert b.take(1)[0][7] == 1


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.bool])
def test_other_tensors_are_sent_by_value(hosts, tcp: bool, dtype: torch.dtype) -> None:
    a, b = hosts(2, tcp=tcp)
    generator = torch.Generator().manual_seed(0)
    for count in (0, 1, 100, LARGE):
        sent = (torch.randn(count, generator=generator) * 3).to(dtype).view(1, -1)
        raw = sent.view(-1).view(torch.uint8).numpy().tobytes()
        heard: list[bytes] = []
        b.transport._mesh._on_frame = lambda source, parts, h=heard: b._note(h, bytes(parts[0]))
        a.transport.send(1, sent)
        sent.fill_(0)
        b.wait(lambda h=heard: len(h) == 1)
        assert heard == [raw]
    assert a.transport.changed_after_send() is None


@pytest.mark.parametrize("tcp", [False, True])
def test_memory_is_used_again(hosts, tcp: bool) -> None:
    a, b = hosts(2, tcp=tcp)
    for k in range(50):
        made = a.pool.tensor(LARGE, torch.float32)
        made.fill_(k)
        a.transport.send(1, made)
        a.transport.send(1, torch.full((LARGE,), 1000.0 + k))
        del made
        one, two = b.take(2)
        assert (one == k).all()
        assert (two == 1000 + k).all()
        del one, two
        settle(b.transport, a.transport)
    for host in (a, b):
        assert host.pool.total_bytes <= 4 * slot_size(4 * LARGE)


def test_a_slot_waits_for_its_last_reader(hosts) -> None:
    a, b, c = hosts(3)
    sent = a.pool.tensor(LARGE, torch.float32)
    sent.fill_(3)
    address = sent.data_ptr()
    a.transport.send(1, sent)
    a.transport.send(2, sent)
    del sent
    kept, others = b.take(1), c.take(1)
    part = kept[0][5:10]
    del kept, others
    settle(b.transport, c.transport, a.transport)
    assert a.pool.tensor(LARGE, torch.float32).data_ptr() != address
    assert part.tolist() == [3] * 5
    del part
    settle(b.transport, a.transport)
    found = [a.pool.tensor(LARGE, torch.float32) for _ in range(2)]
    assert address in [tensor.data_ptr() for tensor in found]


def test_a_frame_takes_along_what_is_read_no_more(hosts, monkeypatch) -> None:
    a, b = hosts(2)
    pushed = kinds_pushed(monkeypatch)

    def answer(source: int, parts: list[memoryview]) -> None:
        parts.clear()
        b.transport.send(0, torch.ones(LARGE))

    monkeypatch.setattr(b.transport._mesh, "_on_frame", answer)
    a.transport.send(1, torch.ones(LARGE))
    kept = a.take(1)
    assert not a.pool._loans
    # Nobody sends anything now.
    del kept
    given_back(b)
    assert pushed == [Kind.RELEASE]


def test_what_is_dropped_by_who_serves_is_given_back_at_once(hosts) -> None:
    """Also after the last event that it has served, though no tick comes for an hour."""
    a, b = hosts(2)
    for host in (a, b):
        host.transport.call_soon(lambda r=host.transport._mesh.reactor: hourly(r))
    settle(a.transport, b.transport)
    a.transport.send(1, torch.ones(LARGE))

    def dropped() -> bool:
        if not b.received:
            return False
        b.received.clear()
        return True

    assert b.transport.serve(dropped)
    given_back(a)


def test_a_small_loan_that_is_read_no_more_waits_for_the_next_frame_or_tick(
    hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = kinds_pushed(monkeypatch)
    a, b = hosts(2)
    for host in (a, b):
        host.transport.call_soon(lambda r=host.transport._mesh.reactor: hourly(r))
    settle(a.transport, b.transport)
    small = SHARED_FROM // 4
    a.transport.send(1, torch.ones(small))
    del b.take(1)[:]
    settle(b.transport, a.transport)
    assert len(a.pool._loans) == 1
    b.transport.send(0, torch.ones(1))
    a.take(1)
    assert not a.pool._loans
    assert not pushed
    # Of two none waits.
    a.transport.send(1, torch.ones(small))
    a.transport.send(1, torch.ones(small))
    del b.take(2)[:]
    given_back(a)
    assert pushed == [Kind.RELEASE]
    # Nor does one for longer than until the tick.
    a.transport.send(1, torch.ones(small))
    del b.take(1)[:]
    settle(b.transport, a.transport)
    assert len(a.pool._loans) == 1
    reactor = b.transport._mesh.reactor
    reactor._due = 0.0
    reactor.waker.wake()
    given_back(a)


def kinds_pushed(monkeypatch: pytest.MonkeyPatch) -> list[Kind]:
    """Of the frames that peers write beside those with payloads, from now on."""
    pushed: list[Kind] = []
    push = Peer.push

    def noted(peer: Peer, kind: Kind, content: Sequence[bytes | memoryview] = ()) -> bool:
        pushed.append(kind)
        return push(peer, kind, content)

    monkeypatch.setattr(Peer, "push", noted)
    return pushed


def given_back(owner: Host) -> None:
    """Wait until whoever was lent something has said that it reads it no more."""
    deadline = time.monotonic() + PATIENCE
    while owner.pool._loans and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not owner.pool._loans


def hourly(reactor: Reactor) -> None:
    reactor._tick = 3600.0
    reactor._due = time.monotonic() + 3600.0


def test_what_was_lent_to_a_lost_host_stays_as_it_was(hosts) -> None:
    a, b = hosts(2)
    sent = a.pool.tensor(LARGE, torch.float32)
    sent.fill_(3)
    a.transport.send(1, sent)
    (kept,) = b.take(1)
    b.transport.abort()
    a.wait(lambda: a.lost == [1])
    del sent
    for _ in range(3):
        a.pool.tensor(LARGE, torch.float32).fill_(9)
    assert (kept == 3).all()


def test_a_tensor_outlives_its_transport(hosts) -> None:
    a, b = hosts(2)
    own = a.pool.tensor(LARGE, torch.float32).fill_(2)
    a.transport.send(1, own)
    (received,) = b.take(1)
    a.transport.close()
    b.transport.close()
    assert own.sum() == received.sum() == 2 * LARGE
    assert a.pool.tensor(LARGE, torch.float32).fill_(1).sum() == LARGE


@pytest.mark.parametrize("tcp", [False, True])
def test_a_write_after_the_send_is_found_out(hosts, tcp: bool) -> None:
    a, b = hosts(2, tcp=tcp)
    gate = threading.Event()
    b.transport.call_soon(lambda: gate.wait(PATIENCE))
    sent = a.pool.tensor(20 * LARGE, torch.float32).fill_(1)
    sent.add_(1)
    a.transport.send(1, sent[LARGE:])
    assert a.transport.changed_after_send() is None
    sent[:5].zero_()
    told = a.transport.changed_after_send()
    assert told is not None
    assert f"a tensor of shape ({20 * LARGE},) was changed after it was sent to host 1" in told
    gate.set()
    b.take(1)
    settle(b.transport, a.transport)
    # Once nobody reads it any more it may be written.
    assert a.transport.changed_after_send() is None


def test_tensors_of_inference_mode_are_sent(hosts) -> None:
    a, b = hosts(2)
    with torch.inference_mode():
        a.transport.send(1, a.pool.tensor(LARGE, torch.float32).fill_(2))
    assert (b.take(1)[0] == 2).all()
    assert a.transport.changed_after_send() is None


def test_many_tensors_at_once_arrive_whole_and_in_order(hosts) -> None:
    a, b = hosts(2)
    rng = random.Random(3)
    sizes = [rng.choice([10, 9000, 20_000, 40_000]) for _ in range(3 * SLOT_LIMIT)]
    for k, size in enumerate(sizes):
        made = a.pool.tensor(size, torch.float32) if k % 2 else torch.empty(size)
        assert a.transport.send(1, made.fill_(k))
    received = b.take(len(sizes))
    assert [x.numel() for x in received] == sizes
    assert all((x == k).all() for k, x in enumerate(received))
    assert a.errors == b.errors == []


def test_what_was_read_is_made_ready_for_the_next_loan_before_its_host_waits(hosts) -> None:
    a, b = hosts(2)
    a.transport.send(1, torch.ones(SHARED_FROM // 4))
    del b.take(1)[:]
    settle(b.transport)
    mappings = b.transport._mesh.peers[0]._mappings
    (slot,) = mappings._slots.values()
    deadline = time.monotonic() + PATIENCE
    while not slot.idle:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert not mappings._read


@pytest.mark.parametrize("count", [SHARED_FROM // 4, 2 * SMALL // 4], ids=["small", "large"])
def test_what_was_written_takes_up_no_more_memory_though_there_is_never_time(
    hosts, count: int
) -> None:
    a, b = hosts(2)
    for host in (a, b):
        reactor = host.transport._mesh.reactor
        host.transport.call_soon(lambda r=reactor: hourly(r))
        reactor._on_idle = lambda: None
    sent = a.pool.tensor(count, torch.float32).fill_(1)
    for _ in range(20):  # So often the slot is mapped.
        a.transport.send(1, sent)
    del b.take(20)[:]
    settle(b.transport, a.transport)
    mappings = b.transport._mesh.peers[0]._mappings
    for _ in range(10):
        a.transport.send(1, sent)
        b.take(1)[0].add_(1)
        b.transport.send(0, torch.ones(1))  # Which tells that it was read.
        a.take(1)
        settle(b.transport, a.transport)
        assert len(mappings._read) <= PUT_OFF + 1
    if count * 4 > SMALL:
        assert not mappings._read


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_no_descriptor_is_left(hosts) -> None:
    before = descriptors()
    a, b = hosts(2)
    for size in (LARGE, 2 * LARGE):
        a.transport.send(1, torch.ones(size))
        a.transport.send(1, a.pool.tensor(size, torch.float32))
    b.take(4)
    a.transport.close()
    b.transport.close()
    assert descriptors() == before


def test_no_descriptor_is_left_of_a_lost_host_whose_payload_is_dropped_later(hosts) -> None:
    a, b = hosts(2)
    a.transport.send(1, torch.ones(LARGE))
    (kept,) = b.take(1)
    a.transport.abort()
    b.wait(lambda: b.lost == [0])
    settle(b.transport)
    before = descriptors()
    del kept
    settle(b.transport)
    assert descriptors() == before - 2, "the slot's and its mapping's are closed, none is opened"


def files_shared() -> set[str]:
    """Names in shared memory, but for semaphores: other programs come and go with theirs."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.")}


def _sender(listen: str, other: str) -> None:
    """A process that lends a tensor, and waits to be killed."""
    transport = Transport(0, listen, SECRET, lambda *_: None, lambda *_: None)
    transport.connect({1: other}, PATIENCE)
    transport.send(1, transport.pool.tensor(LARGE, torch.float32).fill_(4))
    signal.pause()


def test_a_killed_sender_leaves_its_payloads_readable_and_nothing_else(hosts, tmp_path) -> None:
    shared, before = files_shared(), slots_mapped()
    receiver = Host(1, f"unix:{tmp_path}/1")
    process = server_of_forks().Process(
        target=_sender, args=(f"unix:{tmp_path}/0", receiver.transport.address)
    )
    process.start()
    try:
        (received,) = receiver.take(1)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        receiver.wait(lambda: receiver.lost == [0])
        assert "memfd:offbeat" in mapped(received)
        assert received.sum() == 4 * LARGE
        del received
        # The transport's thread lets go of what it read last a moment after saying so.
        deadline = time.monotonic() + PATIENCE
        while slots_mapped() != before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert slots_mapped() == before
        assert files_shared() == shared
    finally:
        process.kill()
        process.join(PATIENCE)
        process.close()
        receiver.transport.abort()


@pytest.mark.parametrize("tcp", [False, True])
def test_without_slots_payloads_go_through_the_socket(
    hosts, tcp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    a, b = hosts(2, tcp=tcp)
    monkeypatch.setattr(os, "memfd_create", refuse)
    made = a.pool.tensor(LARGE, torch.float32).fill_(6)
    a.transport.send(1, made)
    a.transport.send(1, torch.full((LARGE,), 7.0))
    one, two = b.take(2)
    assert (one == 6).all()
    assert (two == 7).all()
    assert a.pool.total_bytes == b.pool.total_bytes == 0
    with pytest.raises(OSError, match=f"no shared memory of {SMALLEST} bytes: Too many open files"):
        a.pool.lend(torch.ones(10), host=1)


def sealed(size: int, seals: int = SEALS) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: sealed(SMALLEST), 2 * SMALLEST),
        (lambda: sealed(SMALLEST, fcntl.F_SEAL_GROW), SMALLEST),
        (lambda: sealed(0), 0),
        (lambda: os.open("/dev/null", os.O_RDWR), SMALLEST),
        (lambda: os.pipe()[0], SMALLEST),
    ],
    ids=["size", "unsealed", "empty", "file", "pipe"],
)
def test_what_is_no_slot_is_refused(make: Callable[[], int], size: int) -> None:
    mappings, fd = Mappings(lambda token, length: None), make()
    with pytest.raises(FrameError, match=f"slot 1 is no sealed memory of {size} bytes"):
        mappings.add(1, size, fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_bytes_beyond_a_slot_are_refused() -> None:
    mappings = Mappings(lambda token, length: None)
    mappings.add(1, SMALLEST, sealed(SMALLEST))
    for number, offset, length in [(2, 0, 1), (1, SMALLEST, 1), (1, 1, SMALLEST), (1, 0, 0)]:
        with pytest.raises(FrameError, match=f"{length} bytes at {offset} of slot {number}"):
            mappings.view(number, 0, offset, length)
    with pytest.raises(FrameError, match="slot 1 for the second time"):
        mappings.add(1, SMALLEST, sealed(SMALLEST))
    mappings.close()


def test_a_host_has_only_so_many_slots() -> None:
    mappings = Mappings(lambda token, length: None)
    for number in range(SLOT_LIMIT):
        mappings.add(number, SMALLEST, sealed(SMALLEST))
    with pytest.raises(FrameError, match=f"more than {SLOT_LIMIT}"):
        mappings.add(SLOT_LIMIT, SMALLEST, sealed(SMALLEST))
    mappings.close()


def test_a_loan_is_given_back_by_its_reader_only() -> None:
    pool = Pool()
    loan = pool.lend(torch.ones(LARGE), host=3)
    assert not pool.give_back(loan.token, host=4)
    assert not pool.give_back(loan.token + 1, host=3)
    assert pool.give_back(loan.token, host=3)
    assert not pool.give_back(loan.token, host=3)


def test_sizes_of_slots_waste_little() -> None:
    for size in (1, SMALLEST, SMALLEST + 1, 100_000, 5_000_000, 1 << 27, (1 << 27) + 1):
        rounded = slot_size(size)
        assert size <= rounded <= max(SMALLEST, 1.25 * size)
        assert rounded % os.sysconf("SC_PAGE_SIZE") == 0
        assert slot_size(rounded) == rounded


def test_a_buffer_is_not_touched_before_it_is_written() -> None:
    pool = Pool()
    view = pool.buffer(1 << 30)
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    line = mapped(torch.frombuffer(view, dtype=torch.uint8))
    smaps = Path("/proc/self/smaps").read_text()
    assert address % os.sysconf("SC_PAGE_SIZE") == 0
    assert "Rss:                   0 kB" in smaps[smaps.index(line) :].partition("Pss:")[0]
