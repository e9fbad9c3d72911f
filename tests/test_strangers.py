"""Whoever does not belong to the run is refused, costs little, and disturbs nobody."""

import contextlib
import logging
import os
import random
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offbeat.runtime import acceptor
from offbeat.runtime.addresses import socket_address
from offbeat.runtime.framing import HEADER, MAGIC, VERSION, FrameError, FrameReader, Kind, header
from offbeat.runtime.handshake import NONCE_BYTES, PROOF_BYTES, dial, proof
from offbeat.runtime.mappings import DESCRIPTORS_PER_READ
from offbeat.runtime.outbox import SLOT
from offbeat.runtime.payload import Where, compose, split
from offbeat.runtime.slots import SMALLEST
from offbeat.runtime.transport import Transport

SECRET = b"the run's secret"
PATIENCE = 30.0


class Host:
    """One of two that run undisturbed."""

    def __init__(self, host: int, listen: str) -> None:
        self.changed = threading.Condition()
        self.heard: list[tuple[int, bytes]] = []
        self.lost: list[int] = []
        self.errors: list[str] = []
        self.transport = Transport(
            host,
            listen,
            SECRET,
            lambda source, parts: self._note(self.heard, (source, b"".join(parts))),
            lambda host, graceful: self._note(self.lost, host),
            on_error=lambda error: self._note(self.errors, str(error)),
            tick=0.01,
        )

    def _note(self, where: list, what: object) -> None:
        with self.changed:
            where.append(what)
            self.changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE), (self.heard, self.errors)


@pytest.fixture(params=["unix", "tcp"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Host]]:
    """Two connected hosts; afterwards they still work, and know of nobody else."""
    tcp = request.param == "tcp"
    pair = [Host(i, "tcp:127.0.0.1:0" if tcp else f"unix:{tmp_path}/{i}") for i in (0, 1)]
    addresses = {i: host.transport.address for i, host in enumerate(pair)}
    other = threading.Thread(target=pair[1].transport.connect, args=(addresses, PATIENCE))
    other.start()
    pair[0].transport.connect(addresses, PATIENCE)
    other.join(PATIENCE)
    yield pair
    for i, host in enumerate(pair):
        assert host.transport.send(1 - i, b"undisturbed")
    for i, host in enumerate(pair):
        host.wait(lambda h=host, i=i: (1 - i, b"undisturbed") in h.heard)
        assert 1 - i not in host.lost
    for host in pair:
        host.transport.abort()


def knock(host: Host) -> socket.socket:
    family, target = socket_address(host.transport.address)
    sock = socket.socket(family)
    sock.settimeout(PATIENCE)
    sock.connect(target)
    return sock


def read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return data


def challenge(sock: socket.socket) -> bytes:
    """The acceptor's nonce."""
    return read(sock, HEADER.size + NONCE_BYTES)[HEADER.size :]


def assert_refused(sock: socket.socket, most: int = HEADER.size) -> None:
    """It is closed at the other end, and says no more than that a number is taken."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(4096):
            received += chunk
    assert len(received) <= most


def answer(nonce: bytes, *, secret: bytes = SECRET, role="dial", host: int = 7, to: int = 0):
    mine = bytes(NONCE_BYTES)
    claimed = proof(secret, role, dialer=host, acceptor=to, dialer_nonce=mine, acceptor_nonce=nonce)
    return header(Kind.ANSWER, host, NONCE_BYTES + PROOF_BYTES) + mine + claimed


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda nonce: answer(nonce, secret=b"a guess"), "wrong secret"),
        (lambda nonce: answer(nonce, role="accept"), "wrong secret"),
        (lambda nonce: answer(nonce, to=1), "wrong secret"),
        (lambda nonce: answer(bytes(NONCE_BYTES)), "wrong secret"),
        (lambda nonce: answer(nonce, host=1), "there is a host 1 already"),
        (lambda nonce: answer(nonce, host=0), "there is a host 0 already"),
        (lambda nonce: answer(nonce)[: HEADER.size + 9], None),
        (lambda nonce: header(Kind.ANSWER, 7, 1 << 40), "the limit is 128"),
        (lambda nonce: header(Kind.DATA, 7, 3) + b"abc", "expected an answer"),
        (lambda nonce: HEADER.pack(MAGIC, VERSION + 1, Kind.ANSWER, 7, 64), "frame of version"),
        (lambda nonce: b"GET / HTTP/1.1\r\nHost: offbeat\r\n\r\n", "expected a frame"),
    ],
    ids=[
        "secret",
        "role",
        "other",
        "replayed",
        "taken",
        "own",
        "half",
        "long",
        "data",
        "version",
        "http",
    ],
)
def test_bad_answers_are_refused_and_logged(run, make, reason, caplog, monkeypatch) -> None:
    caplog.set_level(logging.WARNING)
    if reason is None:
        monkeypatch.setattr(acceptor, "HANDSHAKE_SECONDS", 0.05)
        reason = "no answer to the challenge in time"
    with knock(run[0]) as sock:
        sock.sendall(make(challenge(sock)))
        assert_refused(sock)
    assert reason in caplog.text
    assert run[0].errors == []


def test_what_was_overheard_opens_nothing(run) -> None:
    """A whole handshake, recorded and played again."""
    with knock(run[0]) as first:
        recorded = answer(challenge(first))
        first.sendall(recorded)
        assert HEADER.unpack(read(first, HEADER.size))[2] == Kind.WELCOME
    run[0].wait(lambda: run[0].lost == [7])
    with knock(run[0]) as again:
        challenge(again)
        again.sendall(recorded)
        assert_refused(again)


def memory() -> int:
    """Bytes that this process takes up now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def test_hundreds_of_half_open_connections_cost_little(run, monkeypatch) -> None:
    monkeypatch.setattr(acceptor, "HANDSHAKE_SECONDS", 0.5)
    before, files = memory(), len(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(knock(run[0])) for _ in range(150)]
        for sock in strangers:
            challenge(sock)
            sock.send(header(Kind.ANSWER, 7, 64)[: len(strangers) % HEADER.size])
        # A host that belongs comes in all the same.
        dial(run[0].transport.address, host=9, to=0, secret=SECRET, timeout=PATIENCE).close()
        run[0].wait(lambda: run[0].lost == [9])
        assert memory() - before < 64 << 20
        for sock in strangers:
            assert_refused(sock)
    done = threading.Event()
    run[0].transport.call_soon(done.set)
    assert done.wait(PATIENCE)
    assert len(os.listdir("/proc/self/fd")) == files


def test_only_so_many_are_let_in_at_once(run, monkeypatch) -> None:
    monkeypatch.setattr(acceptor, "HANDSHAKE_SECONDS", 0.3)
    monkeypatch.setattr(acceptor, "STRANGERS", 5)
    with contextlib.ExitStack() as stack:
        files = len(os.listdir("/proc/self/fd"))
        strangers = [stack.enter_context(knock(run[0])) for _ in range(20)]
        for sock in strangers[:5]:
            challenge(sock)
        assert len(os.listdir("/proc/self/fd")) <= files + len(strangers) + 5
        # The others, and one that belongs, have their turn when these have run out of time.
        dial(run[0].transport.address, host=9, to=0, secret=SECRET, timeout=PATIENCE).close()
        run[0].wait(lambda: run[0].lost == [9])


def test_one_who_speaks_byte_by_byte_runs_out_of_time(run, monkeypatch) -> None:
    monkeypatch.setattr(acceptor, "HANDSHAKE_SECONDS", 0.3)
    with knock(run[0]) as sock:
        said = answer(challenge(sock))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(10_000):
                for byte in said[:-1]:
                    sock.send(bytes([byte]))
                    if threading.Event().wait(0.02):
                        break
            pytest.fail("it was borne")
        assert_refused(sock)


def member(host: Host, number: int = 7) -> socket.socket:
    """The connection of one that knows the secret, but does not keep to the rules."""
    address = host.transport.address
    return dial(address, host=number, to=host.transport.host, secret=SECRET, timeout=PATIENCE)


def data(*parts: bytes, **change: int) -> bytes:
    content = b"".join(compose([memoryview(part) for part in parts]))
    return header(Kind.DATA, 7, change.get("length", len(content))) + content


def referring(where: int, slot: int, token: int, offset: int, length: int) -> bytes:
    content = struct.pack("!IIBIQQQ", 1, 0, where, slot, token, offset, length)
    return header(Kind.DATA, 7, len(content)) + content


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (header(Kind.DATA, 7, 1 << 50), "the limit is"),
        (header(Kind.DATA, 7, 0), "payload of 0 bytes"),
        (header(Kind.DATA, 7, 8) + b"\xff" * 4 + bytes(4), "table of 4294967295 parts and 0"),
        (header(Kind.DATA, 7, 8) + bytes(4) + b"\xff" * 4, "0 parts and 4294967295 loans"),
        (header(Kind.DATA, 7, 16) + struct.pack("!IIQ", 0, 1, 3), "release of loan 3, which it"),
        (data(b"abc", length=66), "payload of 66 bytes with a part up to 67"),
        (data(b"abc", length=68) + b"x", "payload of 68 bytes of which 67 are parts"),
        (data(b"abc") + bytes(HEADER.size), "expected a frame"),
        (referring(Where.LENT, 1, 1, 0, 10), "of slot 1"),
        (referring(Where.GIVEN, 1, 1, 0, 10), "of slot 1"),
        (referring(Where.RETURNED, 1, 5, 0, 10), "of loan 5, which it was not given"),
        (referring(9, 1, 5, 0, 10), "a part in place 9, which there is not"),
        (header(Kind.SLOT, 7, SLOT.size) + SLOT.pack(1, SMALLEST), "slot without its descriptor"),
        (header(Kind.RELEASE, 7, 8) + bytes(8), "release of loan 0, which it has not"),
        (header(Kind.RELEASE, 7, 7) + bytes(7), "RELEASE of 7 bytes"),
        (header(Kind.WELCOME, 7, 32) + bytes(32), "WELCOME after the handshake"),
        (header(Kind.DATA, 1, 0), "in the name of host 1"),
    ],
    ids=[
        "long",
        "empty",
        "table",
        "tokens in table",
        "release",
        "cut",
        "more",
        "after",
        "slot",
        "gift",
        "return",
        "place",
        "handover",
        "loan",
        "tokens",
        "kind",
        "name",
    ],
)
def test_a_member_that_breaks_the_rules_is_dropped_with_a_reason(run, sent, reason) -> None:
    before = memory()
    with member(run[0]) as sock:
        sock.sendall(sent)
        run[0].wait(lambda: run[0].lost == [7])
    (told,) = run[0].errors
    assert told.startswith("host 0 drops the connection to host 7: ")
    assert reason in told
    assert memory() - before < 64 << 20


def test_a_long_frame_takes_up_memory_only_as_it_comes(run) -> None:
    before = memory()
    with member(run[0]) as sock:
        sock.sendall(header(Kind.DATA, 7, 4 << 30) + bytes(100_000))
        run[0].transport.call_soon(lambda: None)
        assert memory() - before < 64 << 20
    run[0].wait(lambda: run[0].lost == [7])


@pytest.mark.parametrize("run", ["unix"], indirect=True)
@pytest.mark.parametrize("count", [1, DESCRIPTORS_PER_READ + 1, 100])
def test_descriptors_that_do_not_belong_are_closed(run, count: int) -> None:
    with contextlib.ExitStack() as stack:
        files = len(os.listdir("/proc/self/fd"))
        descriptors = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
        for fd in descriptors:
            stack.callback(os.close, fd)
        with knock(run[0]) as outside, member(run[0]) as inside:
            # Before the handshake nothing is taken in at all.
            socket.send_fds(outside, [b"x"], descriptors)
            content = SLOT.pack(1, SMALLEST)
            frame = header(Kind.SLOT, 7, len(content)) + content
            socket.send_fds(inside, [frame], descriptors)
            run[0].wait(lambda: run[0].lost == [7])
            too_many = count > DESCRIPTORS_PER_READ
            reason = "more descriptors than may be" if too_many else "no sealed memory"
            assert reason in run[0].errors[0]
            outside.shutdown(socket.SHUT_WR)
            assert_refused(outside, HEADER.size + NONCE_BYTES)
    assert len(os.listdir("/proc/self/fd")) == files


def test_nobody_listens_beyond_this_machine_unasked(run) -> None:
    for host in run:
        for address in host.transport.addresses:
            assert address.startswith(("unix:", "tcp:127.0.0.1:"))


class Replay:
    """A socket that gives what it was told, in pieces."""

    def __init__(self, content: bytes, sizes: list[int]) -> None:
        self.content, self.sizes = content, sizes

    def recv_into(self, buffer: memoryview) -> int:
        most = min(len(buffer), self.sizes.pop() if self.sizes else 1 << 20)
        piece, self.content = self.content[:most], self.content[most:]
        buffer[: len(piece)] = piece
        return len(piece)


frames = st.one_of(
    st.binary(max_size=60),
    st.builds(
        lambda kind, source, content: (
            HEADER.pack(MAGIC, VERSION, kind, source, len(content)) + content
        ),
        st.integers(0, 255),
        st.integers(0, 2**32 - 1),
        st.binary(max_size=60),
    ),
)


@settings(max_examples=300)
@given(st.lists(frames, max_size=5), st.lists(st.integers(1, 70)), st.sampled_from([0, 100]))
def test_any_bytes_are_frames_or_an_error(
    pieces: list[bytes], sizes: list[int], ahead: int
) -> None:
    reader, sock = FrameReader(50, ahead=ahead), Replay(b"".join(pieces), sizes)
    with contextlib.suppress(FrameError, EOFError):
        while True:
            frame = reader.step(sock)  # pyright: ignore[reportArgumentType]
            assert frame is None or frame.payload.nbytes <= 50


@settings(max_examples=300)
@given(
    st.lists(st.binary(max_size=60), max_size=6),
    st.lists(st.integers(1, 70)),
    st.sampled_from([0, 30, 100]),
)
def test_frames_come_whole_and_in_order_however_they_arrive(
    contents: list[bytes], sizes: list[int], ahead: int
) -> None:
    sent = b"".join(header(Kind.DATA, 7, len(content)) + content for content in contents)
    reader, sock = FrameReader(60, ahead=ahead), Replay(sent, sizes)
    received: list[memoryview] = []
    with contextlib.suppress(EOFError):
        while True:
            staged, left = reader.has_staged, len(sock.content)
            frame = reader.step(sock)  # pyright: ignore[reportArgumentType]
            assert not staged or len(sock.content) == left
            assert ahead or not reader.has_staged
            if frame is not None:
                received.append(frame.payload)
    # Looked at in the end: nobody has written to them since.
    assert [bytes(payload) for payload in received] == contents


def refuse(where: Where, slot: int, token: int, offset: int, length: int) -> memoryview:
    raise FrameError("no slots here")


def no_loan(token: int) -> None:
    raise FrameError("no loans here")


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_parts_come_back_as_they_were_composed(parts: list[bytes]) -> None:
    payload = bytearray(b"".join(compose([memoryview(part) for part in parts])))
    assert [bytes(part) for part in split(memoryview(payload), refuse, no_loan)] == parts


@settings(max_examples=300)
@given(
    st.lists(st.binary(max_size=200), max_size=6),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    st.integers(-80, 80),
)
def test_damaged_payloads_are_parts_within_or_an_error(parts, damage, change) -> None:
    payload = bytearray(b"".join(compose([memoryview(part) for part in parts])))
    for place, value in damage:
        payload[place % min(len(payload), 200)] = value
    payload = payload[:change] if change < 0 else payload + bytes(change)
    with contextlib.suppress(FrameError):
        found = split(memoryview(payload), refuse, no_loan)
        assert sum(map(len, found)) <= len(payload)


def test_noise_never_opens_a_door(run) -> None:
    noise = random.Random(0)
    for _ in range(20):
        with knock(run[0]) as sock:
            with contextlib.suppress(OSError):  # It may be refused before the last byte.
                sock.sendall(noise.randbytes(noise.randrange(1, 300)))
                sock.shutdown(socket.SHUT_WR)
            assert_refused(sock, HEADER.size + NONCE_BYTES)
