"""Mesh: the connections of one host to all others, served by one thread."""

import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from torch import Tensor

from .acceptor import Acceptor
from .framing import FrameError, Kind
from .peer import Peer
from .reactor import Reactor
from .slots import Place, Pool
from .stitching import Stitcher

STEPS_PER_EVENT = 32
"""Receives from one peer before the others have their turn."""
PAUSE_SECONDS = 1.0
"""If this thread was held up for longer, the others were not silent meanwhile."""


class Mesh:
    """What `Transport` is for its callers, seen from its thread.

    Args:
        host: number of this host.
        on_frame, on_lost, on_joined, on_error, on_tick, tick, patience: as of `Transport`.
        limit: longest frame accepted, in bytes.
    """

    def __init__(
        self,
        host: int,
        *,
        on_frame: Callable[[int, list[memoryview]], None],
        on_lost: Callable[[int, bool], None],
        on_joined: Callable[[int], None],
        on_error: Callable[[BaseException], None],
        on_tick: Callable[[], None],
        tick: float,
        patience: float,
        limit: int,
    ) -> None:
        self._host = host
        self._on_frame, self._on_lost, self._on_joined = on_frame, on_lost, on_joined
        self._on_tick, self._tick, self._patience = on_tick, tick, patience
        self._limit = limit
        self.pool = Pool()
        self._stitcher = Stitcher()
        self.peers: dict[int, Peer] = {}
        """The last connection to each host."""
        self.open: set[Peer] = set()
        self.joined: Counter[int] = Counter()
        """How often each host has joined."""
        self.outbox_bytes = 0
        self.leaving = self.ended = False
        self.changed = threading.Condition()
        """Guards what is above; taken after a peer's lock, never before it."""
        self._releasing: deque[Peer] = deque()
        """Those who are to be told what was released, unless a frame has done so."""
        self._untidy: set[Peer] = set()
        """Those of whose loans something was read, and not made ready for the next."""
        self._ticked = time.monotonic()
        self._acceptor: Acceptor | None = None
        self.reactor = Reactor(
            f"transport of host {host}",
            tick=tick,
            on_tick=self._housekeep,
            after_events=self._give_back,
            on_idle=self._tidy,
            on_error=on_error,
            on_end=self._end,
        )

    # Any thread

    def start(self, acceptor: Acceptor) -> None:
        """Begin to serve; the mesh closes the acceptor."""
        self._acceptor = acceptor
        self.reactor.start()

    def is_live(self, host: int) -> bool:
        """Whether that host is connected, as far as is known."""
        peer = self.peers.get(host)
        return peer is not None and peer.reading

    def join(self, pieces: Sequence[Tensor], *, read_only: bool) -> Tensor | None:
        """Contiguous flat tensors as one, without a copy; None if they do not all lie in slots."""
        places: list[Place] = []
        for piece in pieces:
            found = self.pool.place(piece)
            peers = iter(list(self.peers.values()))
            while found is None and (peer := next(peers, None)) is not None:
                found = peer.place(piece)
            if found is None:
                return None
            places.append(found)
        return self._stitcher.join(pieces, places, read_only=read_only)

    def is_given(self, payload: Tensor) -> bool:
        """Whether its sender, who is not lost, has given a payload to this host."""
        return any(peer.given(payload) is not None for peer in list(self.peers.values()))

    def forget(self) -> None:
        """In a forked child, which has the descriptors but not the thread, let go of them.

        Otherwise a data loader's worker would keep the connections of its killed parent open, and
        nobody would see their end.
        """
        self.ended = True
        # The old locks may be held, for ever, by threads that are not here.
        self.changed = threading.Condition()
        self.reactor.forget()
        self._stitcher = Stitcher()
        if self._acceptor is not None:
            self._acceptor.forget()
        for peer in self.open:
            peer.lock = threading.Lock()
            peer.sendable = False
            peer.forget()

    # The reactor's thread; but a peer is written to in any

    def _serve(self, peer: Peer) -> None:
        if peer.outbox.nbytes:
            with peer.lock:
                peer.flush()
        if peer.reading:
            self._receive(peer)
        else:
            # Its goodbye was read: it is only being flushed.
            self._end_if_done(peer)

    def _serve_pending(self, peer: Peer) -> None:
        if peer.has_more:
            self.reactor.call_soon(lambda: self._serve(peer) if peer.reading else None)

    def _housekeep(self, now: float) -> None:
        pause, self._ticked = now - self._ticked - self._tick, now
        if pause < PAUSE_SECONDS:
            pause = 0.0
        assert self._acceptor is not None
        self._acceptor.tick(now)
        for peer in list(self.open):
            if peer.pulse is not None and peer.reading:
                peer.pulse.excuse(pause)
                peer.pulse.measure(now)
                peer.beat(now)
                if peer.pulse.silence(now) > peer.pulse.deadline:
                    self._lose(peer, graceful=False)
            if peer.released:
                peer.release()
        self._tidy()
        self.reactor.call(self._on_tick)

    def adopt(self, host: int, sock: socket.socket) -> None:
        """Take a connection in, after its handshake, unless there is one to that host."""
        if self.leaving or self.is_live(host):
            sock.close()
            return
        peer = Peer(
            host,
            sock,
            own=self._host,
            reactor=self.reactor,
            on_ready=self._serve,
            pool=self.pool,
            limit=self._limit,
            patience=self._patience,
            on_queued=self._count,
            on_release=self._on_release,
        )
        with self.changed:
            self.peers[host] = peer
            self.open.add(peer)
        self.reactor.call(self._on_joined, host)
        with self.changed:
            self.joined[host] += 1
            self.changed.notify_all()
        self._serve_pending(peer)

    def _receive(self, peer: Peer) -> None:
        try:
            for _ in range(STEPS_PER_EVENT):
                parts = peer.receive()
                if parts is not None:
                    self.reactor.call(self._on_frame, peer.host, parts)
                elif peer.has_left:
                    self._lose(peer, graceful=True)
                    return
                if self.reactor.stopping:
                    return
                if peer.is_drained:
                    return
            self._serve_pending(peer)
        except BlockingIOError:
            return
        except (FrameError, MemoryError) as error:
            text = f"host {self._host} drops the connection to host {peer.host}: {error}"
            self.reactor.report(ConnectionError(text))
            self._lose(peer, graceful=False)
        except (OSError, EOFError):
            self._lose(peer, graceful=False)

    def _on_release(self, peer: Peer, tell: bool) -> None:
        # Called by finalizers, in any thread, whatever lock it holds.
        self._untidy.add(peer)
        if tell:
            self._releasing.append(peer)
            self.reactor.nudge()

    def _give_back(self) -> None:
        """Tell the owners of loans that they are read no more."""
        while self._releasing:
            peer = self._releasing.popleft()
            if peer.released:
                peer.release()
            # Of large ones, or many, what was written takes up much memory.
            peer.tidy()

    def _tidy(self) -> None:
        while self._untidy:
            self._untidy.pop().tidy()

    def _lose(self, peer: Peer, *, graceful: bool) -> None:
        with peer.lock:
            peer.sendable = peer.reading = False
            if not graceful:
                peer.drop()
            peer.watch()
        self.pool.forget(peer.host)
        # One that said goodbye still reads what was queued for it before that.
        self._end_if_done(peer)
        if graceful or not peer.leaving:
            self.reactor.call(self._on_lost, peer.host, graceful)

    def _end_if_done(self, peer: Peer) -> None:
        with peer.lock:
            if peer.outbox:
                return
            peer.close()
        with self.changed:
            self.open.discard(peer)
            self.changed.notify_all()

    def say_goodbye(self) -> None:
        """Send nothing more, but what is queued and a goodbye."""
        assert self._acceptor is not None
        self._acceptor.close()
        for peer in self.open:
            with peer.lock:
                if peer.sendable:
                    peer.sendable, peer.leaving = False, True
                    peer.push(Kind.GOODBYE)
        with self.changed:
            self.leaving = True
            self.changed.notify_all()

    def _count(self, change: int) -> None:
        with self.changed:
            self.outbox_bytes += change
            if change < 0:
                self.changed.notify_all()

    def _end(self) -> None:
        assert self._acceptor is not None
        self._acceptor.close()
        for peer in self.open:
            with peer.lock:
                peer.sendable = False
                peer.drop()
                peer.close()
        with self.changed:
            self.ended = True
            self.changed.notify_all()
        self._stitcher.close()
        self.pool.close()
