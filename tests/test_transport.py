"""The transport over real sockets: order, integrity, losses, refusals, nothing left behind."""

import contextlib
import ctypes
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from offbeat.runtime import acceptor, handshake, liveness, peer
from offbeat.runtime.addresses import socket_address
from offbeat.runtime.forks import server_of_forks
from offbeat.runtime.framing import HEADER, MAGIC, VERSION, Kind, header
from offbeat.runtime.handshake import dial
from offbeat.runtime.payload import compose
from offbeat.runtime.transport import Transport

SECRET = b"the run's secret"
PATIENCE = 30.0
"""Seconds after which a test that waits fails."""


class Host:
    """A transport that notes what it is told, and lets a test wait for it."""

    def __init__(
        self, host: int, listen: str | list[str], secret: bytes = SECRET, **options
    ) -> None:
        self.changed = threading.Condition()
        self.events: list[tuple] = []
        self.joined: list[int] = []
        self.errors: list[BaseException] = []
        self.transport = Transport(
            host,
            listen,
            secret,
            self._on_frame,
            self._on_lost,
            on_error=self._on_error,
            on_joined=self._on_joined,
            **options,
        )

    def _note(self, where: list, what) -> None:
        with self.changed:
            where.append(what)
            self.changed.notify_all()

    def _on_frame(self, source: int, parts: list[memoryview]) -> None:
        self._note(self.events, ("frame", source, b"".join(parts)))

    def _on_joined(self, host: int) -> None:
        self._note(self.joined, host)

    def _on_lost(self, host: int, graceful: bool) -> None:
        self._note(self.events, ("lost", host, graceful))

    def _on_error(self, error: BaseException) -> None:
        self._note(self.errors, error)

    def wait(self, condition: Callable[[], bool], timeout: float = PATIENCE) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout), self.summary()

    def frames(self, source: int) -> list[bytes]:
        return [e[2] for e in self.events if e[:2] == ("frame", source)]

    def lost(self) -> list[tuple[int, bool]]:
        return [e[1:] for e in self.events if e[0] == "lost"]

    def summary(self) -> str:
        return f"{[e[:2] for e in self.events[-5:]]} of {len(self.events)}, errors {self.errors}"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[..., list[Host]]]:
    """Makes meshes of hosts over Unix sockets or TCP, and ends them."""
    made: list[Host] = []

    def make(count: int, *, tcp: bool = False, connect: bool = True, **options) -> list[Host]:
        new: list[Host] = []
        for i in range(count):
            listen = "tcp:127.0.0.1:0" if tcp else f"unix:{tmp_path}/{i}.sock"
            new.append(Host(i, listen, **options))
            made.append(new[-1])
        if connect:
            join_all([lambda h=h: h.transport.connect(addresses(new), PATIENCE) for h in new])
        return new

    yield make
    for host in made:
        host.transport.abort()


def addresses(hosts: list[Host]) -> dict[int, str]:
    return {h.transport.host: h.transport.address for h in hosts}


def join_all(jobs: list[Callable[[], object]]) -> None:
    """Run the jobs at once; fail as the first that fails."""
    errors: list[BaseException] = []

    def run(job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def random_frames(seed: int, sizes: list[int]) -> list[bytes]:
    generator = random.Random(seed)
    return [generator.randbytes(size) for size in sizes]


@pytest.mark.parametrize("tcp", [False, True])
def test_frames_of_all_sizes_both_ways_at_once_arrive_in_order_and_intact(hosts, tcp: bool) -> None:
    generator = random.Random(1)
    sizes = [0, 1, HEADER.size, 20_000_000, 0, 65_536, 3_000_001]
    sizes += [int(10 ** generator.uniform(0, 5)) for _ in range(200)]
    sent = [random_frames(seed, generator.sample(sizes, len(sizes))) for seed in (2, 3)]
    pair = hosts(2, tcp=tcp)

    def send_all(i: int) -> None:
        for k, frame in enumerate(sent[i]):
            view, cut = memoryview(frame), k % 5 * len(frame) // 4
            assert pair[i].transport.send(1 - i, view[:cut], view[cut:])

    join_all([lambda i=i: send_all(i) for i in (0, 1)])
    for i in (0, 1):
        pair[i].wait(lambda i=i: len(pair[i].events) >= len(sizes))
        assert pair[i].frames(1 - i) == sent[1 - i]
        assert pair[i].transport.wait_outbox(1, PATIENCE)
        assert pair[i].transport.outbox_bytes == 0
        assert pair[i].errors == []


def test_full_mesh_of_four(hosts) -> None:
    mesh = hosts(4)
    for a in range(4):
        for b in set(range(4)) - {a}:
            for k in range(20):
                assert mesh[a].transport.send(b, bytes([a, b, k]))
    for b in range(4):
        mesh[b].wait(lambda b=b: len(mesh[b].events) == 60)
        for a in set(range(4)) - {b}:
            assert mesh[b].frames(a) == [bytes([a, b, k]) for k in range(20)]


@pytest.mark.parametrize("tcp", [False, True])
def test_partial_writes(hosts, tcp: bool) -> None:
    a, b = hosts(2, tcp=tcp, socket_buffer_bytes=4096)
    # More buffers than one write takes, and none of them aligned with what the socket takes.
    parts = random_frames(4, [1 + k % 3000 for k in range(0, 30_000, 97)])
    assert sum(map(len, parts)) > 100 * 4096
    for _ in range(3):
        assert a.transport.send(1, *parts)
    b.wait(lambda: len(b.events) == 3)
    assert b.frames(0) == [b"".join(parts)] * 3


def test_send_never_blocks_and_the_outbox_tells_what_is_queued(hosts) -> None:
    a, b = hosts(2)
    gate = threading.Event()
    b.transport.call_soon(lambda: gate.wait(PATIENCE))
    size = 10_000_000
    started = time.monotonic()
    for _ in range(3):
        assert a.transport.send(1, bytes(size))
    assert time.monotonic() - started < PATIENCE / 2
    assert 2 * size < a.transport.outbox_bytes <= 3 * (size + HEADER.size + 64)
    assert not a.transport.wait_outbox(2 * size, 0.01)
    gate.set()
    assert a.transport.wait_outbox(1, PATIENCE)
    b.wait(lambda: len(b.events) == 3)


@pytest.mark.parametrize("tcp", [False, True])
def test_frames_that_were_received_together_all_arrive(hosts, tcp: bool) -> None:
    """Also those that the socket gave up with the first, of which no event tells."""
    a, b = hosts(2, tcp=tcp)
    busy = threading.Event()
    b.transport.call_soon(lambda: None if busy.wait(PATIENCE) else pytest.fail("never released"))
    sent = [b"%d" % number for number in range(150)]
    for content in sent:
        a.transport.send(1, content)
    busy.set()
    b.wait(lambda: len(b.frames(0)) == len(sent))
    assert b.frames(0) == sent


def test_parts_of_any_item_size_and_shape(hosts) -> None:
    a, b = hosts(2, socket_buffer_bytes=4096)
    matrix = memoryview(random.Random(5).randbytes(800_000)).cast("d", (100, 1000))
    assert a.transport.send(1, matrix, memoryview((ctypes.c_double * 0)()))
    b.wait(lambda: bool(b.events))
    assert b.frames(0) == [matrix.tobytes()]


def test_two_threads_interleave_whole_frames(hosts) -> None:
    a, b = hosts(2, socket_buffer_bytes=8192)
    count = 300

    def send_all(letter: bytes) -> None:
        generator = random.Random(letter[0])
        for k in range(count):
            body = letter * generator.randrange(20_000)
            assert a.transport.send(1, k.to_bytes(4), body, letter)

    join_all([lambda: send_all(b"x"), lambda: send_all(b"y")])
    b.wait(lambda: len(b.events) == 2 * count)
    for letter in (b"x", b"y"):
        mine = [f for f in b.frames(0) if f.endswith(letter)]
        assert [int.from_bytes(f[:4]) for f in mine] == list(range(count))
        assert all(set(f[4:]) == set(letter) for f in mine)


def _peer_with_child(listen: str, other: str, count: int) -> None:
    """A process that forks as a data loader does, sends, and waits to be killed."""
    started = threading.Event()
    transport = Transport(0, listen, SECRET, lambda *_: started.set(), lambda *_: None)
    transport.connect({1: other}, PATIENCE)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        signal.pause()
    transport.send(1, child.to_bytes(4))
    started.wait(PATIENCE)
    for k in range(count):
        transport.send(1, k.to_bytes(4), bytes(100_000))
    transport.wait_outbox(1, PATIENCE)
    transport.send(1, b"last")
    signal.pause()


def test_a_killed_peer_is_lost_after_its_last_frame(hosts, tmp_path: Path) -> None:
    survivor = hosts(2, connect=False)[1]
    listen = f"unix:{tmp_path}/killed.sock"
    context = server_of_forks()
    process = context.Process(
        target=_peer_with_child, args=(listen, survivor.transport.address, 50)
    )
    process.start()
    grandchild = None
    try:
        survivor.wait(lambda: bool(survivor.events))
        grandchild = int.from_bytes(survivor.frames(0)[0])
        survivor.transport.send(0, b"go")
        survivor.wait(lambda: survivor.frames(0)[-1:] == [b"last"])
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        survivor.wait(lambda: bool(survivor.lost()), timeout=1.0)
        # The forked child lives on, and must not have kept the connection open.
        os.kill(grandchild, 0)
        assert survivor.events[-1] == ("lost", 0, False)
        assert [f[:4] for f in survivor.frames(0)[1:-1]] == [k.to_bytes(4) for k in range(50)]
        assert survivor.transport.send(0, b"too late") is False
        assert survivor.errors == []
    finally:
        if grandchild is not None:
            os.kill(grandchild, signal.SIGKILL)
        process.kill()
        process.join(PATIENCE)
        process.close()


def test_frames_sent_before_an_abort_are_delivered_before_the_loss(hosts) -> None:
    a, b = hosts(2)
    gate = threading.Event()
    b.transport.call_soon(lambda: gate.wait(PATIENCE))
    for k in range(20):
        a.transport.send(1, bytes([k]))
    assert a.transport.outbox_bytes == 0
    a.transport.abort()
    # The broken connection is noticed by sending before the frames are read.
    assert b.transport.send(0, b"to nobody") is False
    gate.set()
    b.wait(lambda: bool(b.lost()))
    assert b.events == [*(("frame", 0, bytes([k])) for k in range(20)), ("lost", 0, False)]
    assert a.lost() == []


@pytest.mark.parametrize("tcp", [False, True])
def test_graceful_close_delivers_everything_first(hosts, tcp: bool) -> None:
    a, b = hosts(2, tcp=tcp)
    sent = random_frames(6, [15_000_000, 10, 0, 3_000_000])
    gate = threading.Event()
    for host in (a, b):
        host.transport.call_soon(lambda: gate.wait(PATIENCE))
    for frame in sent:
        a.transport.send(1, frame)
        b.transport.send(0, frame)
    assert a.transport.outbox_bytes > 0
    assert b.transport.outbox_bytes > 0
    gate.set()
    assert a.transport.close(PATIENCE)
    b.wait(lambda: bool(b.lost()))
    assert b.frames(0) == sent
    assert b.events[-1] == ("lost", 0, True)
    # What was under way to the leaver reached it, and the one left behind was told once.
    assert a.frames(1) == sent
    assert b.transport.close(PATIENCE)
    assert b.lost() == [(0, True)]


def test_all_closing_at_once_lose_nothing(hosts) -> None:
    mesh = hosts(3)
    frame = random.Random(7).randbytes(2_000_000)
    gate = threading.Event()
    for host in mesh:
        host.transport.call_soon(lambda: gate.wait(PATIENCE))
        for other in {0, 1, 2} - {host.transport.host}:
            assert host.transport.send(other, frame)
        assert host.transport.outbox_bytes > 0
    gate.set()

    def leave(host: Host) -> None:
        assert host.transport.close(PATIENCE)

    join_all([lambda h=h: leave(h) for h in mesh])
    for host in mesh:
        for other in {0, 1, 2} - {host.transport.host}:
            assert host.frames(other) == [frame]
        assert host.errors == []
        assert all(graceful for _, graceful in host.lost())


def test_close_gives_up_on_a_peer_that_does_not_read(hosts) -> None:
    a, b = hosts(2)
    gate = threading.Event()
    b.transport.call_soon(lambda: gate.wait(PATIENCE))
    a.transport.send(1, bytes(10_000_000))
    started = time.monotonic()
    assert a.transport.close(0.1) is False
    assert time.monotonic() - started < PATIENCE / 2
    gate.set()
    b.wait(lambda: bool(b.lost()))
    assert b.events == [("lost", 0, False)]


@pytest.mark.parametrize("end", ["close", "abort"])
def test_nothing_is_left_behind(hosts, tmp_path: Path, end: str) -> None:
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    mesh = hosts(3)
    assert len(set(threading.enumerate()) - threads) == 3
    assert len(list(tmp_path.iterdir())) == 3
    for host in mesh:
        getattr(host.transport, end)()
    assert set(threading.enumerate()) == threads
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == files
    assert mesh[0].transport.send(1, b"after the end") is False
    assert mesh[0].transport.call_soon(print) is False
    for host in mesh:  # a second end is harmless
        host.transport.close()
        host.transport.abort()


def test_leaving_a_with_block_closes_or_aborts(hosts) -> None:
    for fails in (False, True):
        a, b = hosts(2)
        with contextlib.suppress(ZeroDivisionError), a.transport:
            assert fails or a.transport.send(1, b"x")
            if fails:
                raise ZeroDivisionError
        b.wait(lambda b=b: bool(b.lost()))
        assert b.lost() == [(0, not fails)]
        b.transport.close()


def raw_socket(address: str) -> socket.socket:
    family, target = socket_address(address)
    sock = socket.socket(family)
    sock.settimeout(PATIENCE)
    sock.connect(target)
    return sock


def assert_dropped(sock: socket.socket) -> None:
    """The other end closes, after nothing more than its challenge."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(4096):
            received += chunk
    assert len(received) <= HEADER.size + handshake.NONCE_BYTES


def assert_works(mesh: list[Host]) -> None:
    for source in mesh:
        lost = source.lost()
        for target in mesh:
            if source is not target:
                before = len(target.frames(source.transport.host))
                assert source.transport.send(target.transport.host, b"still here")
                target.wait(
                    lambda s=source, t=target, n=before: len(t.frames(s.transport.host)) == n + 1
                )
        assert source.errors == []
        assert source.lost() == lost


def test_a_stranger_with_the_wrong_secret_is_refused(
    hosts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mesh = hosts(2, connect=False)
    join_all([lambda h=h: h.transport.connect(addresses(mesh), PATIENCE) for h in mesh])
    address = mesh[1].transport.address
    stranger = Host(0, f"unix:{tmp_path}/stranger.sock", secret=b"a guess")
    try:
        with pytest.raises(ConnectionError, match=f"host 0 cannot .* host 1 at {address}: refused"):
            stranger.transport.connect({1: address}, PATIENCE)
        assert "wrong secret from one who says to be host 0" in caplog.text
        # Nor is an acceptor believed that cannot prove it knows the secret.
        with raw_socket(stranger.transport.address) as sock:
            sock.sendall(header(Kind.ANSWER, 0, 64) + bytes(64))
            assert_dropped(sock)
    finally:
        stranger.transport.abort()
    assert_works(mesh)


def test_an_acceptor_without_the_secret_is_not_believed(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/impostor.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/impostor.sock")
        listener.listen()

        def impostor() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.sendall(header(Kind.CHALLENGE, 1, 32) + bytes(32))
                answer = sock.recv(4096)
                sock.sendall(header(Kind.WELCOME, 1, 32) + answer[-32:])  # reflected
                sock.recv(1)

        def dialer() -> None:
            with pytest.raises(ConnectionError, match=r"host 0 .* host 1 .*: wrong secret"):
                dial(address, host=0, to=1, secret=SECRET, timeout=PATIENCE)

        join_all([impostor, dialer])


def frame_bytes(**change: int | bytes) -> bytes:
    content = b"".join(compose([memoryview(b"abc")]))
    fields = {"magic": MAGIC, "version": VERSION, "kind": Kind.DATA, "source": 0}
    return HEADER.pack(*(fields | {"length": len(content)} | change).values()) + content


GARBAGE = {
    "noise": (random.Random(8).randbytes(500), "expected a frame"),
    "magic": (frame_bytes(magic=b"HTTP"), "expected a frame"),
    "version": (frame_bytes(version=9), "version 9"),
    "kind": (frame_bytes(kind=77), "unknown kind 77"),
    "length": (frame_bytes(length=1 << 60), "the limit is"),
    "source": (frame_bytes(source=5), "in the name of host 5"),
    "order": (frame_bytes(kind=Kind.ANSWER), "ANSWER"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_from_a_stranger_is_refused(hosts, name: str) -> None:
    mesh = hosts(2)
    with raw_socket(mesh[0].transport.address) as sock:
        sock.sendall(GARBAGE[name][0])
        assert_dropped(sock)
    assert_works(mesh)


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_from_a_peer_loses_it_with_an_error(hosts, name: str) -> None:
    garbage, reason = GARBAGE[name]
    (host,) = (h for h in hosts(2, connect=False) if h.transport.host == 1)
    sock = dial(host.transport.address, host=0, to=1, secret=SECRET, timeout=PATIENCE)
    with sock:
        sock.sendall(frame_bytes() + garbage)
        host.wait(lambda: bool(host.lost()))
    assert host.events == [("frame", 0, b"abc"), ("lost", 0, False)]
    (error,) = host.errors
    assert isinstance(error, ConnectionError)
    assert "host 1 drops the connection to host 0" in str(error)
    assert reason in str(error)


def test_a_silent_stranger_holds_nobody_up_and_is_dropped(
    hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "HANDSHAKE_SECONDS", 0.05)
    mesh = hosts(2, connect=False, tick=0.01)
    with raw_socket(mesh[1].transport.address) as sock:
        join_all([lambda h=h: h.transport.connect(addresses(mesh), PATIENCE) for h in mesh])
        assert_works(mesh)
        assert_dropped(sock)


def test_a_host_number_is_used_once(hosts) -> None:
    a, b = hosts(2)
    with pytest.raises(ConnectionError, match="there is a host 0 already"):
        dial(b.transport.address, host=0, to=1, secret=SECRET, timeout=PATIENCE)
    assert_works([a, b])


def test_one_who_dials_while_connect_looks_around_is_not_awaited_again(hosts, monkeypatch) -> None:
    a, b = hosts(2, connect=False)
    is_live = b.transport._mesh.is_live
    dialling = threading.Thread(target=a.transport.connect, args=(addresses([a, b]), PATIENCE))

    def look(host: int) -> bool:
        seen = is_live(host)
        if not dialling.ident and threading.current_thread() is threading.main_thread():
            dialling.start()
            b.wait(lambda: b.joined == [0])
            dialling.join(PATIENCE)
        return seen

    monkeypatch.setattr(b.transport._mesh, "is_live", look)
    b.transport.connect(addresses([a, b]), PATIENCE)
    assert_works([a, b])


def test_connect_names_the_host_it_cannot_reach(hosts, tmp_path: Path) -> None:
    one = hosts(2, connect=False)[1].transport
    with pytest.raises(ConnectionError, match=f"host 1 .* host 2 at unix:{tmp_path}/nobody"):
        one.connect({2: f"unix:{tmp_path}/nobody"}, PATIENCE)
    with pytest.raises(ConnectionError, match="host 0 at unix:/there: did not connect"):
        one.connect({0: "unix:/there"}, 0.05)
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(f"{tmp_path}/mute")
        mute.listen()
        with pytest.raises(ConnectionError, match=r"host 2 at .*/mute: no answer within 0\.05 s"):
            one.connect({2: f"unix:{tmp_path}/mute"}, 0.05)
    with pytest.raises(ConnectionError, match="host 0 answers there"):
        one.connect({3: f"unix:{tmp_path}/0.sock"}, PATIENCE)


def test_one_host_is_reached_at_several_addresses(hosts, tmp_path: Path) -> None:
    listen = [f"unix:{tmp_path}/both", "tcp:127.0.0.1:0", "tcp:[::1]:0"]
    both = Host(3, listen[: 3 if has_ipv6() else 2])
    try:
        assert both.transport.address == both.transport.addresses[0] == listen[0]
        for host, address in zip(hosts(3, connect=False), both.transport.addresses, strict=False):
            host.transport.connect({3: address}, PATIENCE)
            assert host.transport.send(3, address.encode())
            both.wait(lambda h=host: len(both.frames(h.transport.host)) == 1)
            assert both.frames(host.transport.host) == [address.encode()]
        assert set(both.transport.silences()) == set(both.joined) - {0}
    finally:
        both.transport.abort()
    assert not (tmp_path / "both").exists()


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


def test_nothing_stays_open_if_one_of_several_addresses_is_unusable(tmp_path: Path) -> None:
    files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ValueError, match="neither"):
        Host(0, [f"unix:{tmp_path}/good", "bad"])
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize("late", [0, 2])
def test_a_host_that_comes_late_dials_all_others(hosts, late: int) -> None:
    mesh = hosts(3, connect=False)
    others = [host for host in mesh if host.transport.host != late]
    join_all([lambda h=h: h.transport.connect(addresses(others), PATIENCE) for h in others])
    mesh[late].transport.connect(addresses(others), PATIENCE, dial_all=True)
    for host in others:
        host.wait(lambda h=host: late in h.joined)
    assert_works(mesh)


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("number", [0, 2])
def test_a_lost_host_can_come_back_and_be_lost_again(
    hosts, tmp_path: Path, tcp: bool, number: int
) -> None:
    mesh = hosts(3, tcp=tcp)
    others = [host for host in mesh if host.transport.host != number]
    mesh[number].transport.abort()
    for turn in (1, 2):
        for host in others:
            host.wait(lambda h=host, t=turn: h.lost() == [(number, False)] * t)
            assert host.transport.send(number, b"lost") is False
        back = Host(number, "tcp:127.0.0.1:0" if tcp else f"unix:{tmp_path}/back-{turn}")
        try:
            back.transport.connect(addresses(others), PATIENCE, dial_all=True)
            assert sorted(back.joined) == sorted(addresses(others))
            for host in others:
                host.wait(lambda h=host, t=turn: h.joined.count(number) == 1 + t)
                assert back.transport.send(host.transport.host, b"back", torch.ones(50_000))
                assert host.transport.send(number, b"welcome", torch.ones(50_000))
            for host in others:
                host.wait(lambda h=host, t=turn: len(h.frames(number)) == t)
                back.wait(lambda h=host, b=back: len(b.frames(h.transport.host)) == 1)
        finally:
            back.transport.abort()
    for host in others:
        host.wait(lambda h=host: h.lost() == [(number, False)] * 3)
        assert host.errors == []


def test_one_who_comes_back_waits_until_its_end_is_noticed(hosts, tmp_path: Path) -> None:
    a, b = hosts(2)
    gate = threading.Event()
    a.transport.call_soon(lambda: gate.wait(PATIENCE))
    b.transport.abort()
    back = Host(1, f"unix:{tmp_path}/back")
    try:
        threading.Timer(0.0, gate.set).start()
        back.transport.connect({0: a.transport.address}, PATIENCE, dial_all=True)
        a.wait(lambda: a.joined == [1, 1])
        # A third of that number finds the place taken, and is told so.
        third = Host(1, f"unix:{tmp_path}/third")
        try:
            with pytest.raises(ConnectionError, match="there is a host 1 already"):
                third.transport.connect({0: a.transport.address}, 0.01, dial_all=True)
        finally:
            third.transport.abort()
        assert back.transport.send(0, b"back")
        a.wait(lambda: a.frames(1) == [b"back"])
    finally:
        back.transport.abort()


@pytest.mark.parametrize(
    ("listen", "text"),
    [
        ("unix:/" + "x" * 107, "108 bytes, the system allows 107"),
        ("unix:", "neither"),
        ("tcp:127.0.0.1", "neither"),
        ("tcp:localhost:0", "localhost"),
        ("tcp:0.0.0.0:0", "name one interface"),
        ("pigeon:1", "neither"),
    ],
)
def test_unusable_addresses(listen: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Host(0, listen)


def test_an_address_in_use(hosts, tmp_path: Path) -> None:
    hosts(1, connect=False)
    with pytest.raises(OSError, match=f"cannot listen at unix:{tmp_path}/0.sock: Address already"):
        Host(0, f"unix:{tmp_path}/0.sock")
    assert (tmp_path / "0.sock").exists()


def test_exceptions_of_callbacks_reach_the_owner_and_do_not_stop_the_thread(tmp_path: Path) -> None:
    errors: list[str] = []
    done = threading.Event()

    def fail(text: str) -> None:
        raise SystemExit(text)  # worse than Exception: it would end the thread in silence

    def on_error(error: BaseException) -> None:
        errors.append(str(error))

    a = Transport(0, f"unix:{tmp_path}/a", SECRET, lambda *_: None, lambda *_: None)
    b = Transport(
        1,
        f"unix:{tmp_path}/b",
        SECRET,
        on_frame=lambda source, parts: fail(f"frame {bytes(parts[0]).decode()}"),
        on_lost=lambda host, graceful: fail(f"lost {host}"),
        on_error=on_error,
    )
    try:
        a.connect({1: b.address}, PATIENCE)
        b.call_soon(lambda: fail("soon"))
        a.send(1, b"1")
        a.send(1, b"2")
        a.close(PATIENCE)
        b.close(PATIENCE)
        b.call_soon(done.set)
    finally:
        a.abort()
        b.abort()
    assert sorted(errors) == ["frame 1", "frame 2", "lost 0", "soon"]


def test_ticks_and_calls_run_in_order_in_the_transport_thread(hosts) -> None:
    ticks: list[threading.Thread] = []
    enough = threading.Event()

    def on_tick() -> None:
        ticks.append(threading.current_thread())
        if len(ticks) == 3:
            enough.set()

    (host,) = hosts(1, on_tick=on_tick, tick=0.01)
    assert enough.wait(PATIENCE)
    assert {thread.name for thread in ticks} == {"transport of host 0"}
    order: list[int] = []
    for k in range(100):
        host.transport.call_soon(lambda k=k: order.append(k))
    host.transport.close()
    assert order == list(range(100))


def test_abort_in_a_callback_ends_and_close_there_is_refused(hosts) -> None:
    a, b = hosts(2)
    thread = next(t for t in threading.enumerate() if t.name == "transport of host 0")
    a.transport.call_soon(a.transport.close)
    a.wait(lambda: bool(a.errors))
    assert "would wait for its own thread" in str(a.errors[0])
    a.transport.call_soon(a.transport.abort)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    b.wait(lambda: b.lost() == [(0, False)])


def test_bad_arguments(hosts, tmp_path: Path) -> None:
    a, _ = hosts(2, max_frame_bytes=10)
    with pytest.raises(ValueError, match="host 0 is not connected to host 7"):
        a.transport.send(7, b"")
    with pytest.raises(ValueError, match="11 bytes for host 1, the limit is 10"):
        a.transport.send(1, bytes(5), bytes(6))
    with pytest.raises(ValueError, match="below = 0"):
        a.transport.wait_outbox(0, 1.0)
    with pytest.raises(ValueError, match="secret is empty"):
        Host(0, f"unix:{tmp_path}/x", secret=b"")


def test_a_silent_machine_is_lost_and_a_beating_one_is_not(
    hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer, "BEAT_SECONDS", 0.01)
    a, b = hosts(2, tcp=True, tick=0.01, patience=3.0)
    with dial(b.transport.address, host=5, to=1, secret=SECRET, timeout=PATIENCE) as silent:
        b.wait(lambda: bool(b.lost()))
        assert b.lost() == [(5, False)]
        beats = silent.recv(4096)
        assert len(beats) >= 2 * HEADER.size
        assert beats[: HEADER.size] == header(Kind.BEAT, 1, 0)
    assert_works([a, b])
    assert set(b.transport.silences()) == {0}
    assert b.transport.silences()[0] < PATIENCE


def test_a_host_of_this_machine_may_be_silent(hosts) -> None:
    a, b = hosts(2, tick=0.01, patience=0.01)
    ticks = threading.Semaphore(0)
    for _ in range(5):
        a.transport.call_soon(ticks.release)
        assert ticks.acquire(timeout=PATIENCE)
    assert a.transport.silences() == {}
    assert_works([a, b])


class TestPulse:
    """The rule by which a machine is given up, with a line that is told what is on it."""

    @pytest.fixture
    def line(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        on_the_way = [0]
        monkeypatch.setattr(liveness, "_unacknowledged", lambda sock: on_the_way[0])
        return on_the_way

    @pytest.fixture
    def pulse(self, line: list[int]) -> liveness.Pulse:
        return liveness.Pulse(socket.socket.__new__(socket.socket), 100.0, 30.0)

    def test_silence_counts_from_the_last_byte(self, pulse) -> None:
        assert pulse.silence(107.0) == 7
        pulse.heard = 106.0
        assert pulse.silence(107.0) == 1
        pulse.excuse(5.0)
        assert pulse.silence(107.0) == 0
        assert pulse.deadline == 30

    def test_the_deadline_follows_from_what_is_on_the_way_and_the_bandwidth(
        self, pulse, line
    ) -> None:
        pulse.wrote(10_000, 100.0)
        line[0] = 9_000
        pulse.measure(101.0)
        assert pulse.bandwidth == 1000
        assert pulse.deadline == 30 + 2 * 9
        line[0] = 6_000
        pulse.measure(102.0)
        assert pulse.bandwidth == 1000 + liveness.SMOOTHING * 2000
        # An outage says nothing about the bandwidth, and does not prolong itself.
        before = pulse.deadline
        for second in range(103, 120):
            pulse.measure(float(second))
        assert pulse.deadline == before
        assert pulse.silence(119.0) == 19
