"""Jobs: `offbeat run` as a command, alone or under torchrun, and what has to hold when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from offbeat.testing.remains import Belongings

from .outcomes import WORKERS

LONG = 24_000
"""Samples of a run that takes seconds."""
EVERY = ("--checkpoint", "0.1")


class Job:
    """A command in a session of its own; what it says is kept in a folder."""

    def __init__(self, line: Sequence[str], folder: Path) -> None:
        folder.mkdir()
        self._said = (folder / "output", folder / "errors")
        self._began = time.monotonic()
        self._ended: float | None = None
        with self._said[0].open("w") as output, self._said[1].open("w") as errors:
            self.process = subprocess.Popen(
                line, stdout=output, stderr=errors, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int | None:
        return self.process.poll()

    @property
    def seconds(self) -> float:
        """Since it began, until it was seen to have ended."""
        return (self._ended or time.monotonic()) - self._began

    def said(self) -> tuple[str, str]:
        """What it has put out, and its errors."""
        output, errors = self._said
        return output.read_text(), errors.read_text()

    def finish(self, codes: set[int], deadline: float) -> list[str]:
        """Wait for it to end as it should: in time, with one of those codes, in one line."""
        try:
            code = self.process.wait(timeout=deadline)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
            return [f"no end after {deadline:g} s"]
        self._ended = time.monotonic()
        _, errors = self.said()
        wrong: list[str] = []
        if code not in codes:
            wrong.append(f"exit code {code}: {errors.strip()[-300:]}")
        if "Traceback" in errors:
            wrong.append(f"a traceback: {errors[errors.index('Traceback') :][:1500]}")
        return wrong

    def close(self) -> None:
        """End it, if it has not ended."""
        if self.code is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()


class Workplace:
    """A folder for jobs to work in, and what was wrong there.

    Args:
        folder: it goes with all that is in it.
        deadline: seconds after which a job counts as hung.
    """

    def __init__(self, folder: Path, deadline: float) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.deadline = deadline
        self.wrong: list[str] = []
        self.jobs: list[Job] = []

    def start(self, line: Sequence[str]) -> Job:
        self.jobs.append(Job(line, self.folder / f"job-{len(self.jobs)}"))
        return self.jobs[-1]

    def finish(self, job: Job, *codes: int) -> None:
        self.wrong += job.finish(set(codes), self.deadline)

    def resume(self, directory: Path, last: int) -> None:
        """Go on from the checkpoint of `last` samples there, or from a later one; 0 is none."""
        job = self.start([sys.executable, "-m", "offbeat", "run", "--resume", str(directory)])
        if last == 0 and not checkpoints(directory):
            self.finish(job, 2)
            return
        self.finish(job, 0)
        if not self.wrong:
            self.wrong += wrong_origin(job.said()[0], last)

    def compare(self, name: str, workers: int) -> None:
        """The run's model has to be that of a run that nobody disturbed, to the bit."""
        whole = self.folder / "whole"
        self.finish(self.start(command(name, whole, LONG, workers)), 0)
        models = [
            (folder / "model.safetensors").read_bytes()
            for folder in (self.run, whole)
            if not self.wrong
        ]
        if models and models[0] != models[1]:
            self.wrong.append("its model is not that of the uninterrupted run")


@contextmanager
def workplace(deadline: float) -> Generator[Workplace]:
    """A folder for jobs; afterwards none of what they held may be there."""
    before = Belongings.now()
    with tempfile.TemporaryDirectory(prefix="offbeat-chaos-", dir="/tmp") as folder:
        place = Workplace(Path(folder), deadline)
        try:
            yield place
        except Exception as error:
            place.wrong.append(f"{type(error).__name__}: {error}")
        finally:
            for job in place.jobs:
                job.close()
    # Processes whose launcher was killed notice that it is gone.
    place.wrong += before.remains(patience=5.0)
    for job in place.jobs:
        place.wrong += [f"folder {path}" for path in Path("/tmp").glob(f"offbeat-{job.pid}-*")]


def command(name: str, directory: Path, samples: int, workers: int = WORKERS) -> list[str]:
    return [sys.executable, "-m", "offbeat", *options(name, directory, samples, workers)]


def options(name: str, directory: Path, samples: int, workers: int = WORKERS) -> list[str]:
    settings = ["--method", name, "--workers", str(workers), "--budget.samples", str(samples)]
    return ["run", *settings, "--out", str(directory)]


def checkpoints(directory: Path) -> list[int]:
    """The numbers of samples of those that are there, in order."""
    found = directory.glob("checkpoints/*")
    return sorted(int(path.name) for path in found if path.name.isdecimal())


def wait_for_checkpoint(job: Job, directory: Path, deadline: float) -> None:
    """Until the first one is there, or the job has ended."""
    while job.code is None and not checkpoints(directory) and job.seconds < deadline:
        time.sleep(0.02)


def wrong_origin(output: str, last: int) -> list[str]:
    """Whether a run that has ended says that it went on from `last` samples at least."""
    lines = [line for line in output.splitlines() if "resumed from" in line]
    if not lines:
        return ["it does not say that it resumed"]
    origin = int(lines[-1].partition("/checkpoints/")[2].partition(",")[0])
    return [f"it resumed from {origin} samples, and had {last}"] if origin < last else []
