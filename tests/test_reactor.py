"""The reactor: who serves, and that there is always somebody who does."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from offbeat.runtime import reactor as module
from offbeat.runtime.reactor import Reactor

PATIENCE = 30.0
"""Seconds after which a test that waits fails."""


class Served:
    """A reactor that notes what it does, and in which thread."""

    def __init__(self, tick: float = 1000.0, *, spins: bool = False) -> None:
        self.ticked, self.after, self.ended = (threading.Event() for _ in range(3))
        self.errors: list[BaseException] = []
        self.reactor = Reactor(
            "reactor of a test",
            tick=tick,
            on_tick=lambda now: self.ticked.set(),
            after_events=self.after.set,
            on_idle=lambda: None,
            on_error=self.errors.append,
            on_end=self.ended.set,
        )
        self.reactor.spins = spins
        self.reactor.start()

    def thread_of_call(self) -> int:
        """The thread that serves now, by its number."""
        found: list[int] = []
        known = threading.Event()
        assert self.reactor.call_soon(lambda: (found.append(threading.get_ident()), known.set()))
        assert known.wait(PATIENCE)
        return found[0]

    def serve_in_thread(self, until) -> "Guest":
        return Guest(self.reactor, until)


class Guest(threading.Thread):
    """A thread that serves in the reactor's stead."""

    def __init__(self, reactor: Reactor, until) -> None:
        super().__init__()
        self.reactor, self.until = reactor, until
        self.result: bool | None = None
        self.start()

    def run(self) -> None:
        self.result = self.reactor.serve(self.until)

    def finish(self) -> bool | None:
        self.join(PATIENCE)
        assert not self.is_alive()
        return self.result


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.reactor.stop()
    assert served.ended.is_set()


def test_another_thread_serves_in_its_stead(served: Served) -> None:
    own = served.thread_of_call()
    done = threading.Event()
    guest = served.serve_in_thread(done.is_set)
    while (server := served.thread_of_call()) == own:
        pass
    assert server == guest.ident
    assert all(served.thread_of_call() == guest.ident for _ in range(100))
    done.set()
    served.reactor.waker.wake()
    assert guest.finish() is True


def test_its_own_thread_comes_back_by_itself(served: Served) -> None:
    own = served.thread_of_call()
    for _ in range(3):
        assert served.reactor.serve(lambda: True)
        assert served.thread_of_call() == own


def test_a_wait_that_raises_leaves_the_work_to_its_own_thread(served: Served) -> None:
    own = served.thread_of_call()

    def until() -> bool:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        served.reactor.serve(until)
    assert served.thread_of_call() == own


def test_a_nudge_ends_the_sleep_of_whoever_serves(served: Served) -> None:
    for _ in range(20):
        served.thread_of_call()
        time.sleep(0.01)  # It sleeps now.
        served.after.clear()
        served.reactor.nudge()
        assert served.after.wait(PATIENCE)


def test_a_nudge_while_nobody_sleeps_is_heard_before_anybody_does(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the midst of a handler: after that.
    after: list[bool] = []
    done = threading.Event()

    def nudging() -> None:
        served.after.clear()
        served.reactor.nudge()
        after.append(served.after.is_set())
        done.set()

    served.reactor.call_soon(nudging)
    assert done.wait(PATIENCE)
    assert after == [False]
    assert served.after.wait(PATIENCE)
    # Between two turns: at the beginning of the next, which sleeps only then.
    monkeypatch.setattr(module, "GRACE_SECONDS", 1000.0)
    assert served.reactor.serve(lambda: True)
    woken: list[None] = []
    monkeypatch.setattr(served.reactor.waker, "wake", lambda: woken.append(None))
    served.after.clear()
    served.reactor.nudge()
    assert not served.after.wait(0.1)
    assert served.reactor.serve(served.after.is_set)
    assert not woken
    monkeypatch.undo()
    served.reactor.hand_over()


def test_between_two_turns_of_another_thread_nobody_is_woken(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = served.thread_of_call()
    monkeypatch.setattr(module, "GRACE_SECONDS", 1000.0)
    assert served.reactor.serve(lambda: True)
    assert_left_to_the_caller(served, own)


def assert_left_to_the_caller(served: Served, own: int) -> None:
    """What is to be done waits for this thread to serve, until it hands over."""
    called = threading.Event()
    served.reactor.call_soon(called.set)
    assert not called.wait(0.2)
    assert served.reactor.serve(called.is_set)
    served.reactor.hand_over()
    assert served.thread_of_call() == own


def test_who_stands_by_is_left_what_arrives(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = served.thread_of_call()
    monkeypatch.setattr(module, "GRACE_SECONDS", 1000.0)
    served.reactor.stand_by()
    # Its own thread may have been waiting for what comes next.
    served.reactor.call_soon(lambda: None)
    time.sleep(0.05)
    assert_left_to_the_caller(served, own)


def test_who_stands_by_for_ever_is_not_waited_for() -> None:
    served = Served(tick=0.01)
    called = threading.Event()
    served.reactor.stand_by()
    served.reactor.call_soon(called.set)
    deadline = time.monotonic() + PATIENCE
    for event in (called, served.ticked, served.ticked, served.ticked):
        while not event.is_set():
            served.reactor.stand_by()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        event.clear()
    served.reactor.stop()


def test_what_is_read_in_another_thread_is_read_once(served: Served) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    got: list[tuple[int, bytes]] = []
    served.reactor.watch(reading, lambda: got.append((threading.get_ident(), os.read(reading, 1))))
    for number in range(200):
        os.write(writing, bytes([number]))
        assert served.reactor.serve(lambda wanted=number + 1: len(got) >= wanted)
    assert [content for _, content in got] == [bytes([number]) for number in range(200)]
    # The reactor's own thread may have been in the middle of it when the first byte came.
    assert [thread for thread, _ in got[1:]] == [threading.get_ident()] * 199
    served.reactor.stop()
    os.close(reading)
    os.close(writing)


class Waits:
    """A reactor's waits by any thread, as the seconds that each was to last at most."""

    def __init__(self, reactor: Reactor, *, spins: bool) -> None:
        self._epoll, reactor._epoll = reactor._epoll, self
        self._wait, reactor._wait = reactor._wait, self.wait
        self._reactor, self.spins, self._waiting = reactor, spins, False
        self.of: dict[int, list[float]] = {}

    def wait(self, *times: float) -> list[tuple[int, int]]:
        self._waiting = True
        try:
            return self._wait(*times)
        finally:
            self._waiting = False

    def poll(self, patience: float) -> list[tuple[int, int]]:
        if self._waiting:
            self.of.setdefault(threading.get_ident(), []).append(patience)
        return self._epoll.poll(patience)

    def __getattr__(self, name: str):
        return getattr(self._epoll, name)

    def until_called(self, after: float = 0.0) -> list[float]:
        """Those of this thread while it serves until a call that comes so many seconds later."""
        self.of.clear()
        called = threading.Event()
        timer = threading.Timer(after, self._reactor.call_soon, [called.set])
        timer.start()
        assert self._reactor.serve(called.is_set)
        timer.join()
        return self.of.get(threading.get_ident(), [])


@pytest.fixture(params=[True, False], ids=["spins", "does not"])
def streak(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Of a reactor that may spin, or may not, after short waits."""
    served = Served(spins=request.param)
    waits = Waits(served.reactor, spins=request.param)
    monkeypatch.setattr(module, "SPIN_SECONDS", PATIENCE)
    monkeypatch.setattr(module, "BRISK_SECONDS", PATIENCE)
    # Its own thread would come in between.
    monkeypatch.setattr(module, "GRACE_SECONDS", 1000.0)
    try:
        assert served.reactor.serve(lambda: True)
        for _ in range(module.STREAK):
            waits.until_called()
        yield waits
    finally:
        served.reactor.stop()


def test_after_short_waits_a_core_is_kept_awake_for_the_next(streak: Waits) -> None:
    waits = streak.until_called(0.05)
    if streak.spins:
        assert len(waits) > 10
        assert not any(waits)
    else:
        assert len(waits) <= 3
        assert all(waits)


def test_a_core_is_not_kept_awake_for_what_does_not_come(
    streak: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPIN_SECONDS", 0.02)
    *spun, last = streak.until_called(0.2)
    assert last > 0
    assert any(wait == 0 for wait in spun) == streak.spins
    # It takes as many short waits as at first until it is tried again.
    assert all(streak.until_called(0.05))


def test_no_core_is_kept_awake_between_long_gradients(
    streak: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BRISK_SECONDS", 0.01)
    time.sleep(0.02)
    assert all(streak.until_called(0.05))


def test_its_own_thread_keeps_no_core_awake(streak: Waits) -> None:
    streak.of.clear()
    streak._reactor.hand_over()
    called = threading.Event()
    timer = threading.Timer(0.05, streak._reactor.call_soon, [called.set])
    timer.start()
    assert called.wait(PATIENCE)
    timer.join()
    (waits,) = streak.of.values()
    assert all(waits)


def test_what_is_put_off_is_done_before_it_waits_and_not_before_what_is_ready(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    # Its own thread stands by until the end.
    monkeypatch.setattr(module, "GRACE_SECONDS", 1000.0)
    assert served.reactor.serve(lambda: True)
    served.reactor._on_idle = lambda: done.append("idle")
    for name in ("first", "second"):
        served.reactor.call_soon(lambda name=name: done.append(name))
    served.reactor.nudge()
    served.reactor.serve(lambda: "second" in done)
    assert done == ["first", "second"]
    assert served.after.is_set()
    timer = threading.Timer(0.05, served.reactor.call_soon, [lambda: done.append("third")])
    timer.start()
    served.reactor.serve(lambda: "third" in done)
    timer.join()
    assert done[2:] == ["idle", "third"]


def test_ticks_go_on_whoever_serves() -> None:
    served = Served(tick=0.01)
    served.reactor.serve(lambda: True)
    for _ in range(3):
        served.ticked.clear()
        assert served.reactor.serve(served.ticked.is_set)
    served.reactor.stop()


def test_to_stop_ends_whoever_serves(served: Served) -> None:
    guest = served.serve_in_thread(lambda: False)
    while served.thread_of_call() != guest.ident:
        pass
    served.reactor.stop()
    assert served.ended.is_set()
    assert guest.finish() is False
    assert served.reactor.serve(lambda: False) is False
    assert not served.reactor.call_soon(lambda: None)


def test_a_handler_may_stop_it_in_another_thread(served: Served) -> None:
    served.reactor.serve(lambda: True)
    served.reactor.call_soon(served.reactor.stop)
    assert served.reactor.serve(lambda: False) is False
    assert served.ended.wait(PATIENCE)


def test_a_handler_that_fails_in_another_thread_ends_it_with_a_report(served: Served) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    reading, writing = os.pipe()
    served.reactor.serve(lambda: True)
    served.reactor.watch(reading, fail)
    os.write(writing, b"x")
    assert served.reactor.serve(lambda: False) is False
    assert served.ended.wait(PATIENCE)
    assert [type(error) for error in served.errors] == [ZeroDivisionError]
    os.close(reading)
    os.close(writing)


class Alarm(Exception):
    pass


def test_a_signal_s_exception_in_who_hands_over_leaves_nothing_locked() -> None:
    def strike(number: int, frame: object) -> None:
        raise Alarm

    served = Served()
    struck = 0
    before = signal.signal(signal.SIGALRM, strike)
    ends = time.monotonic() + PATIENCE
    try:
        while struck < 100 and time.monotonic() < ends:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.00001 * (struck % 10))
                while True:
                    served.reactor._left = 1.0  # As if another thread had just served.
                    served.reactor.hand_over()
            except Alarm:
                struck += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert struck == 100
    stopping = threading.Thread(target=served.reactor.stop, daemon=True)
    stopping.start()
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    assert served.ended.is_set()
