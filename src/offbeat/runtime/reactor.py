"""Reactor: waits for descriptors and runs what is due.

It has a thread of its own; another one that has nothing else to do may `serve` in its stead, and
then what arrives for it wakes nobody but itself.
"""

import contextlib
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

from .waker import Waker

GRACE_SECONDS = 0.02
"""After another thread has served, its own thread stands by for so long: that one may come back."""
SPIN_SECONDS = 200e-6
"""Waits as short as this may be spent awake: to wake a core takes a quarter of it."""
STREAK = 8
"""Short waits in a row, after which the next is likely to be short."""
BRISK_SECONDS = 1e-3
"""Longest time between two waits of such a row. Others may compute as long as this process does, on
a core that may be the other half of this one."""


class Reactor:
    """Runs handlers of ready descriptors, calls made from elsewhere, and a tick, one at a time.

    What one of them raises is reported and ends nothing. The thread is no daemon: a program ends
    only after `stop`.

    Args:
        name: of the thread.
        tick: seconds between ticks; those missed during a long handler are not made up for.
        on_tick: told the monotonic time of each tick.
        after_events: called soon after a `nudge`, after what was ready and due.
        on_idle: called when nothing is ready, before it waits.
        on_error: told what was raised.
        on_end: called last.
    """

    def __init__(
        self,
        name: str,
        *,
        tick: float,
        on_tick: Callable[[float], None],
        after_events: Callable[[], None],
        on_idle: Callable[[], None],
        on_error: Callable[[BaseException], None],
        on_end: Callable[[], None],
    ) -> None:
        self._tick, self._on_tick = tick, on_tick
        self._after_events, self._on_idle = after_events, on_idle
        self._on_error, self._on_end = on_error, on_end
        self.spins = False
        """Another thread that serves may keep its core awake for what is likely to come soon."""
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._soon: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self.stopping = self._stopped = False
        self.waker = Waker()
        self.watch(self.waker.fd, self.waker.sleep)
        self._due = time.monotonic() + tick
        self._turn = threading.Lock()
        """Held by the thread that serves."""
        self._server: int | None = None
        """That thread, if it is another than its own."""
        self._wanted = self._polling = False
        """Another thread serves or is about to; its own thread is in the middle of it."""
        self._left = self._announced = -GRACE_SECONDS
        """When another thread has served last, and when it has said that it will."""
        self._short = 0
        """Waits in a row that were short."""
        self._waited = 0.0
        """When the last wait was over."""
        self._asleep = self._nudged = False
        """Somebody waits for events, or is about to; `after_events` is to be called."""
        self._called = threading.Lock()
        """Released when its own thread is to serve, or to end, at once.

        A lock, for an exception out of a signal's handler may strike whoever calls, and would leave
        an Event locked inside."""
        self._called.acquire()
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether the caller is a handler, or its own thread."""
        return threading.get_ident() in (self._thread.ident, self._server)

    def call_soon(self, fn: Callable[[], None]) -> bool:
        """Run `fn` as a handler, in order of the calls; False if the reactor has ended."""
        with self._lock:
            if self._stopped:
                return False
            self._soon.append(fn)
        self.waker.wake()
        return True

    def nudge(self) -> None:
        """Have `after_events` called soon; in any thread, even by a finalizer, whatever it holds.

        If nobody serves just now, that is when somebody does.
        """
        self._nudged = True
        if self._asleep:
            self.waker.wake()

    def stop(self) -> None:
        """End the thread, and wait for that unless it is the caller's own."""
        self.stopping = True
        self.waker.wake()
        self._call_own()
        if not self.is_current:
            self._thread.join()

    def serve(self, until: Callable[[], object]) -> bool:
        """Serve in the calling thread until `until()`, asked after everything that happens.

        Afterwards nobody serves for up to twice `GRACE_SECONDS`, unless somebody calls `hand_over`.

        Returns:
            False if the reactor has been stopped.
        """
        self._wanted = True
        if self._polling:
            self.waker.wake()
        with self._turn:
            self._server = threading.get_ident()
            try:
                while not self.stopping and not until():
                    self._serve_once()
            finally:
                self._server = None
                self._left = time.monotonic()
                self._wanted = False
        return not self.stopping

    def stand_by(self) -> None:
        """Leave what arrives to the caller, who will serve soon.

        Its own thread does not wait for it then: every `GRACE_SECONDS` it looks what is there, and
        stands by again.
        """
        self._announced = time.monotonic()

    def hand_over(self) -> None:
        """Let its own thread serve at once, after another one did."""
        if self._left > 0 or self._announced > 0:
            self._left = self._announced = -GRACE_SECONDS
            self._call_own()

    def _call_own(self) -> None:
        with contextlib.suppress(RuntimeError):  # It has been called already.
            self._called.release()

    def watch(
        self,
        target: int | socket.socket,
        handler: Callable[[], None],
        events: int = select.EPOLLIN,
    ) -> None:
        """Call `handler` whenever the descriptor is ready for one of the events, or broken."""
        fd = target if isinstance(target, int) else target.fileno()
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def expect(self, target: socket.socket, events: int) -> None:
        """Change the events that a watched descriptor is watched for; any thread may call."""
        self._epoll.modify(target, events)

    def unwatch(self, target: socket.socket) -> None:
        del self._handlers[target.fileno()]
        self._epoll.unregister(target)

    def call(self, fn: Callable[..., None], *args: object) -> None:
        """Call `fn`, and report what it raises."""
        try:
            fn(*args)
        except BaseException as error:
            self.report(error)

    def report(self, error: BaseException) -> None:
        try:
            self._on_error(error)
        except BaseException as second:
            traceback.print_exception(second, file=sys.stderr)

    def forget(self) -> None:
        """In a forked child, which has the descriptors but not the thread, close them."""
        self.stopping = self._stopped = True
        # The old lock may be held, for ever, by a thread that is not here.
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self.waker.forget()
        self._epoll.close()

    def _run(self) -> None:
        while not self.stopping:
            self._stand_by()
            with self._turn:
                self._polling = True
                # Asked after it has been said, so that one of the two sees the other.
                if not self._wanted:
                    looks = time.monotonic() - self._announced < GRACE_SECONDS
                    self._serve_once(waits=not looks)
                    if looks and self._announced > 0:  # It has not been handed over meanwhile.
                        self._left = time.monotonic()
                self._polling = False
        with self._turn:
            with self._lock:
                self._stopped = True
                self._soon.clear()
            self.call(self._on_end)
            self._epoll.close()
            self.waker.close()

    def _stand_by(self) -> None:
        """Wait while another thread serves, or may soon serve again."""
        while not self.stopping and (self._wanted or time.monotonic() - self._left < GRACE_SECONDS):
            self._called.acquire(timeout=GRACE_SECONDS)

    def _poll(self, until: float) -> list[tuple[int, int]]:
        """What is ready, or will be before that time. With the turn."""
        began = time.monotonic()
        if began - self._waited > BRISK_SECONDS:
            self._short = 0
        ready = self._epoll.poll(0.0)
        if ready or until <= began:
            self._waited = began
        else:
            self.call(self._on_idle)
            ready = self._wait(began, until)
            self._waited = time.monotonic()
        if self._waited - began >= SPIN_SECONDS:
            self._short = 0
        elif ready:
            self._short += 1
        return ready

    def _wait(self, began: float, until: float) -> list[tuple[int, int]]:
        # Its own thread would disturb one that computes.
        if self.spins and self._server is not None and self._short >= STREAK:
            while time.monotonic() < min(began + SPIN_SECONDS, until):
                if ready := self._epoll.poll(0.0):
                    return ready
                os.sched_yield()
        return self._epoll.poll(max(0.0, until - time.monotonic()))

    def _serve_once(self, *, waits: bool = True) -> None:
        """Wait for what is next, or take what is there, and do it. With the turn."""
        if self.stopping:
            return
        try:
            self._asleep = True
            # Asked after it has been said, so that one of the two sees the other.
            waits = waits and not self._nudged
            ready = self._poll(self._due if waits else 0.0)
            self._asleep = False
            for fd, _ in ready:
                # One handler may have ended what another of the same batch was ready for.
                if (handler := self._handlers.get(fd)) is not None:
                    handler()
                if self.stopping:
                    return
            for _ in range(len(self._soon)):
                self.call(self._soon.popleft())
            if self._nudged:
                self._nudged = False
                self.call(self._after_events)
            now = time.monotonic()
            if now >= self._due:
                self._due = now + self._tick
                self.call(self._on_tick, now)
        except Exception as error:
            self.report(error)
            self.stopping = True
