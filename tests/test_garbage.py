"""Calls that come when an object is garbage."""

import gc
import threading

from offbeat.runtime import garbage
from offbeat.runtime.garbage import when_garbage


class Target:
    pass


def test_it_is_called_once_with_its_arguments_and_forgotten() -> None:
    waiting = len(garbage._WAITING)
    called: list[tuple[int, str]] = []
    target, other = Target(), Target()
    when_garbage(target, lambda *said: called.append(said), 1, "a")
    when_garbage(other, lambda *said: called.append(said), 2, "b")
    assert called == []
    del target
    assert called == [(1, "a")]
    gc.collect()
    assert called == [(1, "a")]
    assert len(garbage._WAITING) == waiting + 1
    del other
    assert called == [(1, "a"), (2, "b")]
    assert len(garbage._WAITING) == waiting


def test_it_is_called_of_a_cycle_and_in_any_thread() -> None:
    called: list[int] = []
    target = Target()
    target.itself = target  # pyright: ignore[reportAttributeAccessIssue]
    when_garbage(target, lambda: called.append(threading.get_ident()))
    holder = [target]
    del target
    collecting = threading.Thread(target=lambda: (holder.clear(), gc.collect()))
    collecting.start()
    collecting.join()
    assert called == [collecting.ident]
