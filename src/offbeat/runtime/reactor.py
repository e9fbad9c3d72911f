"""Reactor: a thread that waits for descriptors and runs what is due."""

import select
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

from .waker import Waker


class Reactor:
    """Runs handlers of ready descriptors, calls made from elsewhere, and a tick, one at a time.

    What one of them raises is reported and ends nothing. The thread is no daemon: a program ends
    only after `stop`.

    Args:
        name: of the thread.
        tick: seconds between ticks; those missed during a long handler are not made up for.
        on_tick: told the monotonic time of each tick.
        after_events: called each time after what was ready and due; `waker.wake()` brings it about.
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
        on_error: Callable[[BaseException], None],
        on_end: Callable[[], None],
    ) -> None:
        self._tick, self._on_tick, self._after_events = tick, on_tick, after_events
        self._on_error, self._on_end = on_error, on_end
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._soon: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self.stopping = self._stopped = False
        self.waker = Waker()
        self.watch(self.waker.fd, self.waker.sleep)
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this thread."""
        return threading.current_thread() is self._thread

    def call_soon(self, fn: Callable[[], None]) -> bool:
        """Run `fn` in the thread, in order of the calls; False if it has ended."""
        with self._lock:
            if self._stopped:
                return False
            self._soon.append(fn)
        self.waker.wake()
        return True

    def stop(self) -> None:
        """End the thread, and wait for that unless it is the caller's own."""
        self.stopping = True
        self.waker.wake()
        if not self.is_current:
            self._thread.join()

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
        self.waker.forget()
        self._epoll.close()

    def _run(self) -> None:
        due = time.monotonic() + self._tick
        try:
            while not self.stopping:
                for fd, _ in self._epoll.poll(max(0.0, due - time.monotonic())):
                    # One handler may have ended what another of the same batch was ready for.
                    if (handler := self._handlers.get(fd)) is not None:
                        handler()
                    if self.stopping:
                        return
                for _ in range(len(self._soon)):
                    self.call(self._soon.popleft())
                self.call(self._after_events)
                now = time.monotonic()
                if now >= due:
                    due = now + self._tick
                    self.call(self._on_tick, now)
        except Exception as error:
            self.report(error)
        finally:
            with self._lock:
                self._stopped = True
                self._soon.clear()
            self.call(self._on_end)
            self._epoll.close()
            self.waker.close()
