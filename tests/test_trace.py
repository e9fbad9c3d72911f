"""The typed record of a run, as it grows and as it is read."""

import sys

import numpy as np
import pytest

from offbeat.trace import PACKED, TABLES, Rows, Trace


def rows(count: int, first: int = 0) -> list[tuple[float, ...]]:
    return [(k % 3, 10 * k, 10 * k + 7, k / 8) for k in range(first, first + count)]


@pytest.mark.parametrize("count", [0, 1, PACKED - 1, PACKED, PACKED + 1, 3 * PACKED + 5])
def test_rows_are_read_as_they_were_appended_however_often_one_looks(count: int) -> None:
    table, expected = Rows(TABLES["gradients"]), rows(count)
    for number, row in enumerate(expected):
        if number % 1000 == 999:
            assert table.last == expected[number - 1]
            assert len(table.table()) == number == len(table)
        table.append(row)
    assert list(table) == expected
    assert table.table().tolist() == expected
    assert table.table().dtype == np.dtype(TABLES["gradients"])
    assert table.last == (expected[-1] if expected else None)
    assert bool(table) == bool(expected)


def test_what_is_read_cannot_be_written_and_does_not_change() -> None:
    table = Rows(TABLES["gradients"])
    table.append((0, 1, 2, 0.5))
    read = table.table()
    with pytest.raises(ValueError, match="read-only"):
        read["node"] = 7
    table.append((1, 2, 3, 0.5))
    assert len(read) == 1
    assert len(table.table()) == 2


def test_rows_that_wait_to_be_read_take_little_memory() -> None:
    table = Rows(TABLES["messages"])
    for k in range(10 * PACKED):
        table.append((0, 1, 0, 1000 + k, k, k, k, 0))
    held = sum(sys.getsizeof(piece) for piece in table._packed)
    # Eight numbers, and the tuples that they come in would be ten times as large.
    assert held < 50 * 10 * PACKED
    assert len(table._latest) < PACKED


def test_another_host_s_messages_keep_their_kinds() -> None:
    here, there = Trace(), Trace()
    for trace, kinds in ((here, ["Push", "Pull"]), (there, ["Pull", "Offer"])):
        for source, kind in enumerate(kinds):
            trace.rows["messages"].append((source, 9, trace.kind(kind), 8, 0, 0, 1, 0))
        trace.rows["gradients"].append((len(kinds), 0, 1, 0.5))
    here.merge(there)
    assert [here.kinds[number] for number in here.messages["kind"]] == [
        "Push",
        "Pull",
        "Pull",
        "Offer",
    ]
    assert [there.kinds[number] for number in there.messages["kind"]] == ["Pull", "Offer"]
    assert len(here.gradients) == 2
    sent = Trace.of_columns(here.columns(), here.kinds)
    assert sent.hash() == here.hash()
