"""A process that goes on for a while gets its memory in huge pages."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from offbeat.runtime import huge_pages
from offbeat.runtime.huge_pages import HugePages, move

SCRIPT = """
from pathlib import Path
from offbeat.runtime.huge_pages import move

def huge():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))

# In pieces as Python's own objects are, not in one mapping.
held = [bytes([i % 251]) * 400 for i in range(100_000)]
before = huge()
moved = move(60.0)
assert all(piece == bytes([i % 251]) * 400 for i, piece in enumerate(held))
print(moved, huge() - before)
"""


def test_memory_is_moved_and_stays_what_it_was() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=True, timeout=120, capture_output=True, text=True
    )
    moved, kilobytes = map(int, ended.stdout.split())
    if not moved:
        pytest.skip("this system has no huge pages, or cannot move to them")
    # 43 MB are held at least, of which the edges of every mapping stay where they are.
    assert moved >= 8
    assert kilobytes > 0


SPARSE = """
import mmap
from offbeat.runtime.huge_pages import move

def used():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE

SIZE, HUGE = 256 << 20, 2 << 20
memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for first in range(0, SIZE, HUGE):
    memory[first] = 1
before = used()
move(60.0)
print(used() - before)
"""


def test_memory_that_is_hardly_used_takes_no_more_of_it() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SPARSE], check=True, timeout=120, capture_output=True, text=True
    )
    assert int(ended.stdout) < 64 << 20


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"enabled": "always madvise [never]\n", "hpage_pmd_size": "2097152\n"},
        {"enabled": "always [madvise] never\n", "hpage_pmd_size": "none\n"},
    ],
    ids=["unknown to the system", "forbidden", "of no known size"],
)
def test_nothing_is_moved_where_it_may_not_be(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(huge_pages, "_SYSTEM", tmp_path)
    assert move(60.0) == 0


def test_it_takes_no_longer_than_it_may() -> None:
    assert move(0.0) <= 1


def test_memory_is_moved_once_the_process_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[float] = []
    monkeypatch.setattr(huge_pages, "move", allowed.append)
    pages = HugePages()
    pages.tick()
    assert allowed == []
    settled = time.monotonic() + huge_pages.SETTLED_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: settled)
    for _ in range(3):
        pages.tick()
    assert allowed == [huge_pages.MOST_SECONDS]


def test_processes_that_share_cores_share_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    assert HugePages.of_one_of(3) is not None
    assert HugePages.of_one_of(4) is None
