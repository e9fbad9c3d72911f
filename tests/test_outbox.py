"""The outbox: what a socket takes is what was sent, however much it takes at a time."""

import random
import socket
from collections.abc import Sequence

import pytest

from offbeat.runtime.framing import HEADER, Kind, header
from offbeat.runtime.outbox import JOINED, Outbox


class Socket:
    """Takes some bytes of what it is given, or says that it cannot take any."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.taken = b""

    def sendmsg(self, views: Sequence[memoryview], ancillary: Sequence[object], flags: int) -> int:
        assert flags == socket.MSG_NOSIGNAL
        assert not ancillary
        offered = b"".join(views)
        if self._random.random() < 0.3:
            raise BlockingIOError
        count = self._random.choice([len(offered), self._random.randint(1, len(offered))])
        self.taken += offered[:count]
        return count


@pytest.mark.parametrize("seed", range(20))
def test_frames_come_out_whole_and_in_order(seed: int) -> None:
    drawn = random.Random(seed)
    sock, outbox = Socket(seed), Outbox(host=3)
    expected = b""
    for _ in range(50):
        sizes = [drawn.choice([0, 1, 100, JOINED, 3 * JOINED]) for _ in range(drawn.randint(0, 3))]
        content = [drawn.randbytes(size) for size in sizes]
        expected += header(Kind.DATA, 3, sum(sizes)) + b"".join(content)
        before = len(sock.taken)
        how = drawn.choice(["append", "send", "send", "write"])
        if how == "send":
            assert outbox.send(sock, Kind.DATA, content) == len(sock.taken) - before
        else:
            outbox.append(Kind.DATA, content)
            if how == "write":
                assert outbox.write(sock) == len(sock.taken) - before
        assert outbox.nbytes == len(expected) - len(sock.taken)
        assert bool(outbox) == (outbox.nbytes > 0)
    while outbox:
        outbox.write(sock)
    assert sock.taken == expected
    assert outbox.nbytes == 0


def test_what_is_sent_when_nothing_waits_is_not_queued() -> None:
    class Taker:
        def sendmsg(self, views, ancillary, flags) -> int:
            return sum(map(len, views))

    outbox = Outbox(host=0)
    assert outbox.send(Taker(), Kind.BEAT, ()) == HEADER.size
    assert not outbox
