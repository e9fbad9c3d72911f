"""Disks: the run directory is on a small one, which becomes full."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .jobs import EVERY, LONG, Job, Workplace, checkpoints, command, workplace
from .outcomes import Outcome, Settings

SIZES = ("100k", "600k", "1200k", "2m", "4300k")
"""Those at which different parts of a run no longer fit: its journals, then its results."""
SIZES_WITH_CHECKPOINTS = ("4180k", "4250k", "4330k")
"""Those at which no checkpoint fits beside four journals, or some do."""


def disk(settings: Settings) -> Iterator[Outcome]:
    """A run directory on a disk that becomes full, in a mount namespace of the command's own."""
    if not _may_mount():
        print("disk: skipped, for mounting a small disk needs root", flush=True)
        return
    for size in SIZES:
        for name in settings.chosen(["ADPSGD", "AsyncSGD"]):
            with workplace(settings.deadline) as place:
                small = place.folder / "disk"
                small.mkdir()
                line = command(name, small / "run", 200_000)
                job = place.start(_on_small_disk(small, size, line))
                place.finish(job, 0, 1, 2)
            yield Outcome(
                part="disk",
                method=name,
                what=size,
                done=job.code != 0,
                seconds=job.seconds,
                wrong=place.wrong,
            )
    for size in SIZES_WITH_CHECKPOINTS:
        for name in settings.chosen(["ADPSGD", "AllReduceSGD"]):
            yield _with_checkpoints(name, size, settings.deadline)


def _with_checkpoints(name: str, size: str, deadline: float) -> Outcome:
    """Checkpoints that were written are there when the disk is full, and are gone on from."""
    with workplace(deadline) as place:
        small = place.folder / "disk"
        small.mkdir()
        line = [*command(name, small / "run", LONG), *EVERY]
        job = place.start(_on_small_disk(small, size, line))
        seen = _follow(job, small, place)
        place.finish(job, 0, 1, 2)
        full = job.code != 0 or "cannot be written" in "".join(job.said())
        if seen:
            place.resume(place.folder / "saved", seen[-1])
    return Outcome(
        part="disk",
        method=name,
        what=f"{size}, with checkpoints, the last of {seen[-1] if seen else 0} samples",
        done=full,
        seconds=job.seconds,
        wrong=place.wrong,
    )


def _follow(job: Job, small: Path, place: Workplace) -> list[int]:
    """Watch the checkpoints come; what is on that disk at the end is then in `saved`."""
    seen: list[int] = []
    held: int | None = None
    try:
        while job.code is None and job.seconds < place.deadline:
            if held is None:
                held = _hold(Path(f"/proc/{job.pid}/root{small}"), small)
            else:
                seen = checkpoints(Path(f"/proc/self/fd/{held}/run")) or seen
            time.sleep(0.02)
        if held is not None and seen:
            shutil.copytree(f"/proc/self/fd/{held}/run", place.folder / "saved")
    finally:
        if held is not None:
            os.close(held)
    return seen


def _hold(seen: Path, empty: Path) -> int | None:
    """The disk as the command sees it, which stays while it is held; None until it is there."""
    try:
        folder = os.open(seen, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    if os.fstat(folder).st_dev != empty.stat().st_dev:
        return folder
    os.close(folder)
    return None


def _may_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        line = _on_small_disk(Path(folder), "64k", ["true"])
        return subprocess.run(line, capture_output=True, check=False).returncode == 0


def _on_small_disk(folder: Path, size: str, line: list[str]) -> list[str]:
    mount = 'mount -t tmpfs -o "size=$0" offbeat "$1" && shift && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, size, str(folder), *line]
