"""Signals: what interrupts the user's thread while it does the transport's work waits a moment."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import offbeat
from loop_ranks import rank_and_size, run_ranks
from offbeat.methods import DPSGD, AllReduceSGD
from offbeat.runtime import signals
from offbeat.runtime.host import Host
from offbeat.runtime.signals import DeferredSignals


class Alarm(Exception):
    pass


@pytest.fixture
def handled():
    """What handlers of two signals were called with; they are put back afterwards."""
    called: list[int] = []
    numbers = (signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.signal(n, lambda number, frame: called.append(number)) for n in numbers]
    yield called
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_handlers_are_read_without_a_search_for_their_names():
    # It would take a hundred microseconds of every step that waits.
    assert inspect.isbuiltin(signals._handler_of)
    assert inspect.isbuiltin(signals._set_handler)


def test_handlers_run_after_the_block_and_are_told_of_at_once(handled: list[int]):
    own = signal.getsignal(signal.SIGUSR1)
    told: list[int] = []
    with DeferredSignals(lambda: told.append(1)) as arrived:
        for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        assert handled == []
        assert arrived == {signal.SIGUSR1, signal.SIGUSR2}
        assert len(told) == 3
    # In the order of their numbers, and one that came twice once.
    assert handled == [signal.SIGUSR1, signal.SIGUSR2]
    assert signal.getsignal(signal.SIGUSR1) is own


def test_a_handler_that_raises_does_so_after_the_block(handled: list[int]):
    def give_up(number, frame):
        raise Alarm

    signal.signal(signal.SIGUSR1, give_up)
    reached = False

    def block():
        nonlocal reached
        with DeferredSignals(lambda: None):
            os.kill(os.getpid(), signal.SIGUSR1)
            reached = True

    with pytest.raises(Alarm):
        block()
    assert reached
    assert signal.getsignal(signal.SIGUSR1) is give_up


def test_the_others_are_called_although_one_raises(handled: list[int]):
    def give_up(number, frame):
        raise Alarm

    signal.signal(signal.SIGUSR1, give_up)

    def block():
        with DeferredSignals(lambda: None):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR2)

    with pytest.raises(Alarm):
        block()
    assert handled == [signal.SIGUSR2]


def test_a_handler_that_another_put_in_its_place_is_called(handled: list[int]):
    called: list[str] = []

    def first(number, frame):
        called.append("first")
        signal.signal(number, lambda number, frame: called.append("second"))

    signal.signal(signal.SIGUSR1, first)
    for _ in range(2):
        with DeferredSignals(lambda: None):
            os.kill(os.getpid(), signal.SIGUSR1)
    assert called == ["first", "second"]


def test_a_child_forked_in_the_block_has_its_own_handlers(handled: list[int]):
    signal.signal(signal.SIGUSR1, lambda number, frame: os._exit(42))
    with DeferredSignals(lambda: None):
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
            os._exit(7)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 42


def test_nothing_that_a_signal_interrupted_is_kept(handled: list[int]):
    class Large:
        pass

    def block():
        large = Large()
        with DeferredSignals(lambda: None):
            os.kill(os.getpid(), signal.SIGUSR1)
        return weakref.ref(large)

    gc.disable()
    try:
        assert block()() is None
    finally:
        gc.enable()


def test_handlers_are_back_when_the_block_fails(handled: list[int]):
    own = signal.getsignal(signal.SIGUSR1)

    def block():
        with DeferredSignals(lambda: None):
            os.kill(os.getpid(), signal.SIGUSR1)
            raise ZeroDivisionError

    # As anywhere: the signal's handler has been called in between.
    with pytest.raises(ZeroDivisionError):
        block()
    assert handled == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is own


def test_in_another_thread_nothing_is_deferred(handled: list[int]):
    found: list[object] = []

    def work():
        with DeferredSignals(lambda: None):
            found.append(signal.getsignal(signal.SIGUSR1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGUSR1)]


# The user's loop


def train(
    method, steps: int, rest: float = 0.0, begun: Callable[[], object] = lambda: None
) -> torch.Tensor:
    """So many steps, of which rank 1 begins each after a rest; `begun` is called before them."""
    rank, _ = rank_and_size()
    torch.manual_seed(0)
    model = nn.Linear(300, 200)  # 240 kB: it travels in slots.
    inputs = torch.randn(64, 300, generator=torch.Generator().manual_seed(rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with offbeat.distribute(model, optimizer, method=method) as optimizer:
        begun()
        for _ in range(steps):
            time.sleep(rest * rank)
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
    return model.weight.detach()


def shower(out: Path, every: float) -> None:
    """Trains while signals rain on it, whose handlers are the user's."""
    rank, _ = rank_and_size()
    caught = 0

    def note(number, frame):
        nonlocal caught
        caught += 1

    signal.signal(signal.SIGALRM, note)
    signal.setitimer(signal.ITIMER_REAL, every, every)
    weight = train(DPSGD(), steps=300)
    signal.setitimer(signal.ITIMER_REAL, 0)
    torch.save((weight, caught), out / f"{every}-{rank}.pt")


def test_signals_at_any_moment_change_nothing(tmp_path: Path):
    for every in (0.0, 0.0003):
        for ended in run_ranks(shower, 2, tmp_path, every):
            assert ended.returncode == 0, ended.output
    for rank in range(2):
        (quiet, none), (showered, many) = (
            torch.load(tmp_path / f"{every}-{rank}.pt") for every in (0.0, 0.0003)
        )
        assert none == 0
        assert many > 300
        assert torch.equal(quiet, showered)


def interrupted(out: Path) -> None:
    """Rank 0 is told to stop while it waits for the other."""
    rank, _ = rank_and_size()
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    began: list[float] = []

    def begun() -> None:
        began.append(time.monotonic())
        if rank == 0:
            timer.start()

    try:
        train(AllReduceSGD(), steps=3, rest=6.0, begun=begun)
    except KeyboardInterrupt:
        print(f"interrupted after {time.monotonic() - began[0]:.1f} s", flush=True)


def test_an_interrupt_ends_a_wait_at_once(tmp_path: Path):
    began = time.monotonic()
    first, second = run_ranks(interrupted, 2, tmp_path)
    assert first.returncode == 0, first.output
    assert "interrupted after" in first.output
    assert float(first.output.split("interrupted after ")[1].split()[0]) < 4.0
    assert second.returncode == 1
    assert "RunError" in second.output
    assert time.monotonic() - began < 60.0


def struck(out: Path) -> None:
    """Rank 0 gets a signal in the middle of receiving, whose handler raises."""
    rank, _ = rank_and_size()
    receive = Host._on_frame

    def receive_and_strike(self, host, parts):
        if threading.current_thread() is threading.main_thread():
            os.kill(os.getpid(), signal.SIGUSR1)
        receive(self, host, parts)

    def give_up(number, frame):
        raise Alarm

    if rank == 0:
        signal.signal(signal.SIGUSR1, give_up)
        Host._on_frame = receive_and_strike
    try:
        train(AllReduceSGD(), steps=50, rest=0.01)
    except Alarm:
        print("Alarm out of step()", flush=True)


def test_a_handler_strikes_no_frame(tmp_path: Path):
    first, second = run_ranks(struck, 2, tmp_path)
    assert first.returncode == 0, first.output
    assert "Alarm out of step()" in first.output
    assert second.returncode == 1
    assert "rank 0 is gone" in second.output or "worker 0 is gone" in second.output


def stuffed(out: Path) -> None:
    """Rank 0 waits for room in its outbox, which never comes."""
    rank, _ = rank_and_size()

    def give_up(number, frame):
        raise Alarm

    if rank == 0:
        Host._is_full = lambda self: True
        signal.signal(signal.SIGALRM, give_up)
        signal.setitimer(signal.ITIMER_REAL, 3.0)
    began = time.monotonic()
    try:
        train(AllReduceSGD(), steps=3)
    except Alarm:
        print(f"Alarm after {time.monotonic() - began:.1f} s", flush=True)


def test_a_signal_ends_the_wait_for_room(tmp_path: Path):
    first, second = run_ranks(stuffed, 2, tmp_path)
    assert first.returncode == 0, first.output
    assert "Alarm after" in first.output
    assert float(first.output.split("Alarm after ")[1].split()[0]) < 10.0
    assert second.returncode == 1
