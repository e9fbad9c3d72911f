"""Point-to-point transport: whole frames between hosts, over a full mesh of stream sockets."""

import functools
import os
import time
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from torch import Tensor

from .acceptor import Acceptor
from .handshake import HostTaken, dial
from .liveness import PATIENCE_SECONDS
from .mesh import Mesh
from .peer import Part
from .tls import TLS

RETRY_SECONDS = 0.1
"""How long one who comes back waits before it knocks again."""


class Transport:
    """One host's connections to all others, and the thread that serves them.

    All callbacks run in that thread, one at a time and with no lock held; while one runs, nothing
    is received, and until it returns `close` and `abort` wait. They may come before `connect`
    returns (a peer can be faster) and until `close` returns. The thread is no daemon: a program
    ends only after `close` or `abort`, which leaving a `with` block calls.

    A host that was lost may connect again, as may one that was never there: see `connect`.

    Args:
        host: number of this host.
        listen: one or more of "unix:/path" (a new file) and "tcp:ip:port" ("tcp:[ip]:port" for
            IPv6) where port 0 lets the system choose.
        secret: what all hosts of the run know and nobody else does.
        on_frame: called with source host and the frame's parts, per source in the order sent. They
            are the callee's own, writable memory, which is recycled when nothing refers to it.
        on_lost: called with a host and whether it closed gracefully, once for each time that it
            joined, after its last frame. Not called for hosts that this one leaves by `close` or
            `abort`.
        on_error: called with what a callback raised, or a `ConnectionError` for what a peer sent
            and a host may not send; default: print it. Strangers refused are only logged.
        on_joined: called with a host that is connected now, before its first frame.
        on_tick: called every `tick` seconds.
        tick: seconds; also how often handshakes and silences are looked at.
        patience: seconds of silence after which a host on another machine is lost, more if its line
            is slow (`liveness.py` has the rule).
        max_frame_bytes: longest frame sent or accepted.
        socket_buffer_bytes: size of the sockets' buffers, the system's default if None.
        tls: certificates by which TCP connections are made private; all hosts of a run must agree.

    Raises:
        ValueError: no usable address, or an empty secret.
        OSError: the address is taken, or not of this machine.
    """

    def __init__(
        self,
        host: int,
        listen: str | Sequence[str],
        secret: bytes,
        on_frame: Callable[[int, list[memoryview]], None],
        on_lost: Callable[[int, bool], None],
        *,
        on_error: Callable[[BaseException], None] = traceback.print_exception,
        on_joined: Callable[[int], None] = lambda host: None,
        on_tick: Callable[[], None] = lambda: None,
        tick: float = 0.1,
        patience: float = PATIENCE_SECONDS,
        max_frame_bytes: int = 1 << 32,
        socket_buffer_bytes: int | None = None,
        tls: TLS | None = None,
    ) -> None:
        if not secret:
            raise ValueError(f"host {host}: the secret is empty")
        self.host = host
        self._secret = secret
        self._max_frame_bytes = max_frame_bytes
        self._buffer_bytes = socket_buffer_bytes
        self._tls = None if tls is None else tls.context(server=False)
        self._mesh = mesh = Mesh(
            host,
            on_frame=on_frame,
            on_lost=on_lost,
            on_joined=on_joined,
            on_error=on_error,
            on_tick=on_tick,
            tick=tick,
            patience=patience,
            limit=max_frame_bytes,
        )
        self.pool = mesh.pool
        """Tensors of its slots are sent to hosts of this machine without a copy."""
        try:
            acceptor = Acceptor(
                [listen] if isinstance(listen, str) else listen,
                host=host,
                secret=secret,
                reactor=mesh.reactor,
                may_join=lambda other: other != host and not mesh.is_live(other),
                on_host=mesh.adopt,
                buffer_bytes=socket_buffer_bytes,
                tls=None if tls is None else tls.context(server=True),
            )
        except BaseException:
            mesh.reactor.forget()
            raise
        self.addresses = acceptor.addresses
        """Where other hosts reach this one, in the order of `listen`."""
        os.register_at_fork(
            after_in_child=functools.partial(_forget_in_child, weakref.ref(mesh)),
        )
        mesh.start(acceptor)

    @property
    def address(self) -> str:
        """The first of `addresses`."""
        return self.addresses[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def connect(
        self, addresses: Mapping[int, str], timeout: float, *, dial_all: bool = False
    ) -> None:
        """Connect to all hosts of `addresses`, within `timeout` seconds.

        Of two hosts the one with the lower number dials, so both must call this. One that comes
        late, or back, dials all others itself (`dial_all`), and those do nothing. Hosts that are
        connected, and this one, are skipped; calling again adds hosts.

        Raises:
            ConnectionError: naming host and address, if one refuses or does not come in time.
        """
        self._forbid_in_thread("connect")
        deadline = time.monotonic() + timeout
        # Read first: whoever joins from now on is connected, even if it is gone again by then.
        joined_before = {host: self._mesh.joined[host] for host in addresses}
        wanted = [h for h in sorted(addresses) if h != self.host and not self._mesh.is_live(h)]
        for host in wanted:
            if dial_all or host > self.host:
                self._dial(host, addresses[host], deadline, patient=dial_all)

        def missing() -> list[int]:
            return [host for host in wanted if self._mesh.joined[host] == joined_before[host]]

        with self._mesh.changed:
            self._mesh.changed.wait_for(
                lambda: self._mesh.ended or self._mesh.leaving or not missing(),
                deadline - time.monotonic(),
            )
            if absent := missing():
                why = (
                    "this host closed"
                    if self._mesh.leaving or self._mesh.ended
                    else "did not connect"
                )
                names = ", ".join(f"host {h} at {addresses[h]}" for h in absent)
                raise ConnectionError(f"host {self.host}, within {timeout} s: {names}: {why}")

    def _dial(self, host: int, address: str, deadline: float, *, patient: bool) -> None:
        while True:
            try:
                sock = dial(
                    address,
                    host=self.host,
                    to=host,
                    secret=self._secret,
                    timeout=max(0.0, deadline - time.monotonic()),
                    buffer_bytes=self._buffer_bytes,
                    tls=self._tls,
                )
                break
            except HostTaken:
                # It may not have noticed yet that the one before us is gone.
                if not patient or time.monotonic() + RETRY_SECONDS > deadline:
                    raise
                time.sleep(RETRY_SECONDS)
        if not self.call_soon(functools.partial(self._mesh.adopt, host, sock)):
            sock.close()

    def send(self, to: int, *parts: Part) -> bool:
        """Send the parts as one frame; never blocks, from any thread.

        A part is bytes or a contiguous tensor on the CPU. Bytes belong to the transport afterwards:
        do not write to them. A tensor in a slot of `pool` is read where it lies: do not write to
        it either, `changed_after_send` finds out; nor to one that `is_given` back. Any other tensor
        is copied.

        Returns:
            False if the frame was dropped because that host is lost or this one is closing. True
            says that it was written or queued, not that it arrived.

        Raises:
            ValueError: no such host was ever connected, or the frame is too long.
        """
        peer = self._mesh.peers.get(to)
        if peer is None:
            raise ValueError(f"host {self.host} is not connected to host {to}: connect() first")
        length = 0
        for part in parts:
            length += len(part) if isinstance(part, (bytes, bytearray)) else part.nbytes
        if length > self._max_frame_bytes:
            raise ValueError(
                f"host {self.host}: a frame of {length} bytes for host {to}, "
                f"the limit is {self._max_frame_bytes}"
            )
        return peer.send(parts)

    def changed_after_send(self) -> str | None:
        """One line on a tensor that was written while its receiver may read it, else None.

        It looks at tensors of `pool` that were sent and are not released by their receivers yet.
        """
        return self.pool.changed_after_send()

    def join(self, pieces: Sequence[Tensor], *, read_only: bool = False) -> Tensor | None:
        """Flat tensors of one dtype, one after the other, without a copy.

        Each is whole: a payload that was received in a slot, or lies in one of `pool`. It must
        begin, in its slot, as far into a page as it will in the whole (`stitching.padding`). The
        tensor returned is the caller's own to write, unless it is `read_only`, which saves a look
        at its pages afterwards; the pieces are kept while it lives.

        Returns:
            None where that cannot be.
        """
        return self._mesh.join(pieces, read_only=read_only)

    def is_given(self, tensor: Tensor) -> bool:
        """Whether it is a received payload that this host may write to, and send back.

        It was made by `pool.tensor(given=True)`. As a whole it is sent back without a copy, and
        then both hosts have the same memory, which neither may write any more.
        """
        return self._mesh.is_given(tensor)

    @property
    def outbox_bytes(self) -> int:
        """Bytes queued for all peers together: sent by the caller, not yet taken by the system."""
        return self._mesh.outbox_bytes

    def wait_outbox(self, below: int, timeout: float) -> bool:
        """Wait until fewer than `below` bytes are queued; False if `timeout` seconds passed."""
        self._forbid_in_thread("wait_outbox")
        self.hand_over()
        if below < 1:
            raise ValueError(f"below = {below}: the outbox never holds less than 0 bytes")
        with self._mesh.changed:
            return self._mesh.changed.wait_for(lambda: self._mesh.outbox_bytes < below, timeout)

    def silences(self) -> dict[int, float]:
        """For each host connected by TCP, the seconds since its last sign of life."""
        now = time.monotonic()
        live = [peer for peer in list(self._mesh.peers.values()) if peer.reading]
        return {peer.host: peer.pulse.silence(now) for peer in live if peer.pulse is not None}

    def call_soon(self, fn: Callable[[], None]) -> bool:
        """Run `fn` in the transport's thread, in order of the calls; False if it has ended.

        `close` first runs what was called before it, `abort` does not.
        """
        return self._mesh.reactor.call_soon(fn)

    def serve(self, until: Callable[[], object]) -> bool:
        """Do the transport's work in the calling thread until `until()`; False if it has ended.

        For a thread that waits for what a frame brings: it then wakes no other. `until` is asked
        after every event, every tick and every `wake`. Afterwards the transport's own thread takes
        over after some hundredths of a second, or at once upon `hand_over`.
        """
        self._forbid_in_thread("serve")
        return self._mesh.reactor.serve(until)

    @property
    def spins(self) -> bool:
        """Whether `serve` may keep its core awake for what is likely to come soon; not at first."""
        return self._mesh.reactor.spins

    @spins.setter
    def spins(self, may: bool) -> None:
        self._mesh.reactor.spins = may

    def stand_by(self) -> None:
        """Leave what arrives to the caller, who will `serve` soon; until then look at times."""
        self._mesh.reactor.stand_by()

    def hand_over(self) -> None:
        """Let the transport's own thread work, if another one did until now."""
        self._mesh.reactor.hand_over()

    def wake(self) -> None:
        """Let whoever serves ask again whether to go on."""
        self._mesh.reactor.waker.wake()

    def close(self, timeout: float = 5.0) -> bool:
        """Leave gracefully: send what is queued and a goodbye, then wait for the peers' ends.

        Frames that peers had queued for this host are still delivered, so if all close at once,
        nothing is lost.

        Returns:
            Whether all that was done within `timeout` seconds; if not, it ends as by `abort`.
        """
        self._forbid_in_thread("close")
        self.hand_over()
        self.call_soon(self._mesh.say_goodbye)
        with self._mesh.changed:
            self._mesh.changed.wait_for(
                lambda: self._mesh.ended or (self._mesh.leaving and not self._mesh.open), timeout
            )
            done = self._mesh.leaving and not self._mesh.open
        self.abort()
        return done

    def abort(self) -> None:
        """Close at once; what is queued is dropped and to the peers this host is lost."""
        self._mesh.reactor.stop()

    def _forbid_in_thread(self, name: str) -> None:
        if self._mesh.reactor.is_current:
            raise RuntimeError(f"{name}() in a callback would wait for its own thread")


def _forget_in_child(mesh: "weakref.ref[Mesh]") -> None:
    if (alive := mesh()) is not None:
        alive.forget()
