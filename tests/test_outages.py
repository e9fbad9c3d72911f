"""Machines apart, in network namespaces: a line that is down for a while ends nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from machines import Machines
from namespaces import Network, NetworkHost, left_over, skip_reason
from offbeat.runs import load_run
from outage_job import STEPS

pytestmark = pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))

JOB = Path(__file__).parent / "outage_job.py"
OUTAGE = 3.0
"""Seconds."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[NetworkHost]]:
    with Network(hosts=2, rate="100mbit") as network:
        yield network.hosts
    assert left_over() == []


@pytest.fixture(scope="module")
def machines(hosts: list[NetworkHost]) -> Iterator[Machines]:
    with Machines(hosts) as machines:
        yield machines


@pytest.fixture(scope="module")
def ranks(hosts: list[NetworkHost]) -> Iterator[list[subprocess.Popen[str]]]:
    """One rank on each host, as torchrun would start them; they carry out one job after another."""
    with contextlib.ExitStack() as stack:
        started: list[subprocess.Popen[str]] = []
        for rank, host in enumerate(hosts):
            settings = {
                "RANK": str(rank),
                "WORLD_SIZE": str(len(hosts)),
                "MASTER_ADDR": hosts[0].address,
                "MASTER_PORT": "29500",
            }
            command = [sys.executable, str(JOB)]
            said = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT}
            process = host.start(command, env=os.environ | settings, **said)
            started.append(stack.enter_context(process))
            stack.callback(process.kill)
        yield started


def read_until(process: subprocess.Popen[str], wanted: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.strip())
        if lines[-1] == wanted:
            return lines
    raise AssertionError(f"no {wanted!r} in {lines[-5:]}")


@pytest.mark.parametrize("method", ["StochasticGradientPush", "ADPSGD", "AsyncSGD"])
def test_a_line_that_was_down_for_seconds_ends_nothing(
    method: str, hosts: list[NetworkHost], ranks: list[subprocess.Popen[str]]
):
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write(f"{method}\n")
        rank.stdin.flush()
    said = [read_until(rank, "step 20") for rank in ranks]
    hosts[1].down()
    time.sleep(OUTAGE)
    hosts[1].up()
    for lines, rank in zip(said, ranks, strict=True):
        lines += read_until(rank, "ended")
    for lines in said:
        assert lines.count(f"step {STEPS - 1}") == 1
        figures = [float(line.split()[1]) for line in lines if line.startswith(("loss", "longest"))]
        before, longest, after = figures
        assert after < before / 100
        if lines is said[1]:
            # Cut off it waited for the other, or for the server that lives there.
            assert longest > OUTAGE / 2
    # All ranks end with the common model.
    assert said[0][-2:] == said[1][-2:]


def wait_for_traffic(host: NetworkHost, size: int) -> None:
    """Until the host has received so many bytes more: its nodes are at work."""
    command = ["cat", "/sys/class/net/eth0/statistics/rx_bytes"]
    deadline = time.monotonic() + 120
    least = int(host.run(command).stdout) + size
    while int(host.run(command).stdout) < least:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("method", ["StochasticGradientPush", "ADPSGD", "AsyncSGD"])
def test_a_run_over_machines_rides_out_an_outage(
    method: str, hosts: list[NetworkHost], machines: Machines, tmp_path: Path
):
    # Of AsyncSGD the first machine has both workers, and the second the server.
    slots = "2" if method == "AsyncSGD" else "1"
    options = ["--method", method, "--workers", "2", "--slots", slots]
    machines.begin([*options, "--budget.samples", "40000"], tmp_path / "run")
    try:
        wait_for_traffic(hosts[1], 1_000_000)
        hosts[1].down()
        time.sleep(OUTAGE)
    finally:
        hosts[1].up()
        machines.finish()
    run = load_run(tmp_path / "run")
    assert (run.error, run.notes, run.stop) == (None, [], "samples")
    ends = np.sort(run.trace.gradients["end_ns"]) / 1e9
    # Everyone waited for the other machine, and all went on.
    assert OUTAGE / 2 < np.diff(ends).max() < run.seconds
    assert run.metrics[-1].samples == 40_000
