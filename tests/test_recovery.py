"""Recovery of real runs: checkpoints, processes in the place of lost ones, late workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from offbeat.cli import main
from offbeat.cluster import Fault
from offbeat.experiment import Budget
from offbeat.method import Method
from offbeat.methods import (
    ADPSGD,
    METHODS,
    AllReduceSGD,
    AsyncSGD,
    BackupSyncSGD,
    LocalSGD,
    StochasticGradientPush,
    SyncSGD,
)
from offbeat.runtime.checkpoint import CheckpointError, latest_checkpoint
from offbeat.runtime.placement import Gathering
from offbeat.runtime.processes import run_processes
from offbeat.runtime.tickets import LeasedTickets
from test_processes import assert_replays, experiment, nothing_left_behind

__all__ = ["nothing_left_behind"]
SYNCHRONOUS = [
    name for name, method in METHODS.items() if method.synchronous and name != "RingAllReduceSGD"
]


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_a_resumed_synchronous_run_equals_the_uninterrupted_one(name: str, tmp_path: Path):
    whole = run_processes(experiment(METHODS[name](), samples=4800))
    # Held after the first gradients, and then ended by a smaller budget, as if interrupted.
    first = run_processes(
        experiment(METHODS[name](), samples=3200), tmp_path, checkpoint_every=0.003
    )
    assert first.error is None
    checkpoint, notes = latest_checkpoint(tmp_path)
    assert not notes
    second = run_processes(experiment(METHODS[name](), samples=4800), tmp_path, resume=checkpoint)
    assert second.error is None
    assert torch.equal(second.vector, whole.vector)
    assert second.metrics[0] == first.metrics[0]
    assert second.metrics[-1].samples == whole.metrics[-1].samples
    assert_replays(second, tmp_path)


@pytest.mark.parametrize(
    ("method", "workers", "samples"),
    [
        (AsyncSGD(), 2, 1600),
        (ADPSGD(), 2, 1600),
        # Whoever waits for the second gradient at the end cannot be held: longer than till one is.
        (BackupSyncSGD(), 3, 8000),
    ],
)
def test_an_asynchronous_run_goes_on_with_what_it_had(
    method: Method, workers: int, samples: int, tmp_path: Path
):
    first = experiment(method, workers, samples=samples)
    run_processes(first, tmp_path, checkpoint_every=0.01)
    checkpoint, _ = latest_checkpoint(tmp_path)
    assert checkpoint.samples <= samples
    further = experiment(method, workers, samples=2 * samples)
    run = run_processes(further, tmp_path, resume=checkpoint)
    assert run.error is None
    assert run.metrics[-1].samples == 2 * samples
    assert run.metrics[-1].loss < checkpoint.metrics[-1].loss
    assert any("resumed from" in note for note in run.notes)
    assert_replays(run, tmp_path)


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path):
    run_processes(experiment(AllReduceSGD()), tmp_path, checkpoint_every=60.0)
    checkpoint, _ = latest_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="method is AllReduceSGD there and LocalSGD here"):
        run_processes(experiment(LocalSGD()), tmp_path, resume=checkpoint)


@pytest.mark.parametrize("method", [AllReduceSGD(), SyncSGD()], ids=["worker", "server"])
def test_a_needed_process_that_is_killed_comes_back(method: Method, tmp_path: Path):
    whole = run_processes(experiment(method, samples=32_000))
    crash = Fault(kind="crash", rank=2 if method.server_count else 1, at=0.1)
    run = run_processes(
        experiment(method, samples=32_000, faults=(crash,)), tmp_path, checkpoint_every=0.02
    )
    assert run.error is None
    assert any("was killed by SIGKILL" in note for note in run.notes)
    assert any("all went back to where they were at" in note for note in run.notes)
    # What was lost was computed again, to the bit.
    assert torch.equal(run.vector, whole.vector)
    assert_replays(run, tmp_path)


def test_an_asynchronous_server_comes_back_from_its_checkpoint(tmp_path: Path):
    crash = Fault(kind="crash", rank=2, at=0.1)
    run = run_processes(
        experiment(AsyncSGD(), samples=32_000, faults=(crash,)), tmp_path, checkpoint_every=0.02
    )
    assert run.error is None
    assert run.metrics[-1].samples == 32_000
    assert run.metrics[-1].accuracy > 0.9
    assert_replays(run, tmp_path)


@pytest.mark.parametrize(
    "method", [AsyncSGD(), ADPSGD(), StochasticGradientPush(), BackupSyncSGD()]
)
def test_a_worker_joins_late_with_the_present_model(method: Method, tmp_path: Path):
    join = Fault(kind="join", rank=1, at=0.3)
    # Long enough for a process to start on a machine that has other things to do.
    planned = experiment(method, 3, budget=Budget(seconds=4.0), faults=(join,))
    run = run_processes(planned, tmp_path)
    assert run.error is None
    assert any("node 1 (worker) joined at" in note for note in run.notes)
    computed = run.trace.gradients["node"] == 1
    assert computed.any()
    assert run.trace.gradients["start_ns"][computed].min() > 0.3e9
    assert_replays(run, tmp_path)


def test_a_killed_worker_comes_back_by_a_late_join(tmp_path: Path):
    faults = (Fault(kind="crash", rank=1, at=0.2), Fault(kind="join", rank=1, at=0.4))
    planned = experiment(AsyncSGD(), 3, budget=Budget(samples=160_000), faults=faults)
    run = run_processes(planned, tmp_path)
    assert run.error is None
    assert [("killed" in note, "joined" in note) for note in run.notes] == [
        (True, False),
        (False, True),
    ]
    assert_replays(run, tmp_path)


def gathering(slots: int) -> Gathering:
    """Of this machine alone; as over several, its processes hold gradients in store."""
    return Gathering(
        listen="tcp:127.0.0.1:0", slots=slots, secret=b"0123456789abcdef", patience=20.0
    )


@pytest.mark.parametrize("slots", [None, 3], ids=["alone", "with slots for the others"])
def test_a_worker_that_joined_before_the_checkpoint_is_there_after_it(
    slots: int | None, tmp_path: Path
):
    run_processes(experiment(AsyncSGD(), 3), tmp_path, checkpoint_every=60.0)
    checkpoint, _ = latest_checkpoint(tmp_path)
    assert 1 in checkpoint.nodes
    joined = Fault(kind="join", rank=1, at=checkpoint.seconds / 2)
    planned = experiment(AsyncSGD(), 3, samples=8000, faults=(joined,))
    others = None if slots is None else gathering(slots)
    run = run_processes(planned, tmp_path, gathering=others, resume=checkpoint)
    assert run.error is None
    assert not any("node 1 (worker) joined at" in note for note in run.notes)
    assert (run.trace.gradients["node"] == 1).any()
    assert_replays(run, tmp_path)


def test_a_join_that_a_checkpoint_came_before_is_brought_about_after_it(tmp_path: Path):
    late = experiment(AsyncSGD(), 3, faults=(Fault(kind="join", rank=1, at=600.0),))
    run_processes(late, tmp_path, checkpoint_every=60.0)
    checkpoint, _ = latest_checkpoint(tmp_path)
    assert 1 not in checkpoint.nodes
    # As when its process was still starting.
    due = Fault(kind="join", rank=1, at=checkpoint.seconds / 2)
    planned = experiment(AsyncSGD(), 3, samples=96_000, faults=(due,))
    run = run_processes(planned, tmp_path, resume=checkpoint)
    assert run.error is None
    assert any("node 1 (worker) joined at" in note for note in run.notes)
    assert_replays(run, tmp_path)


def test_gradients_in_store_at_a_checkpoint_are_computed_after_it(tmp_path: Path):
    first = experiment(ADPSGD(), budget=Budget(seconds=0.5))
    run_processes(first, tmp_path, gathering=gathering(2), checkpoint_every=60.0)
    checkpoint, _ = latest_checkpoint(tmp_path)
    assert checkpoint.tickets == checkpoint.samples // 16 > 0
    further = experiment(ADPSGD(), samples=checkpoint.samples + 3200)
    run = run_processes(further, tmp_path, gathering=gathering(2), resume=checkpoint)
    assert run.error is None
    assert run.metrics[-1].samples == checkpoint.samples + 3200


def test_gradients_in_store_when_a_worker_joins_are_computed(tmp_path: Path):
    join = Fault(kind="join", rank=1, at=0.3)
    planned = experiment(AsyncSGD(), 3, samples=96_000, faults=(join,))
    run = run_processes(planned, tmp_path, gathering=gathering(4))
    assert run.error is None
    assert any("node 1 (worker) joined at" in note for note in run.notes)
    assert run.metrics[-1].samples == 96_000


def test_gradients_refused_before_the_count_of_them_went_back_are_asked_for_again():
    tickets = LeasedTickets(lambda count: asked.append(count), lambda: None)
    asked: list[int] = []
    tickets.granted(1, last=True)
    assert tickets.take()
    assert not tickets.take()
    tickets.reset()
    tickets.granted(1, last=False)
    assert tickets.take()
    assert asked


def offbeat(*options: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "offbeat", *options]
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def test_a_run_whose_launcher_is_killed_is_resumed_to_the_bit(tmp_path: Path):
    options = ["--method", "AllReduceSGD", "--budget.samples", "48000"]
    options += ["--optimizer.momentum", "0.9", "--optimizer.lr", "0.01"]
    out = tmp_path / "run"
    job = offbeat("run", *options, "--checkpoint", "0.1", "--out", str(out))
    deadline = time.monotonic() + 60
    while not list(out.glob("checkpoints/[0-9]*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGKILL)
    job.communicate(timeout=60)
    resumed = offbeat("run", "--resume", str(out))
    output, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    assert "resumed from" in output
    whole = offbeat("run", *options, "--out", str(tmp_path / "whole"))
    whole.communicate(timeout=120)
    assert whole.returncode == 0
    models = [(tmp_path / d / "model.safetensors").read_bytes() for d in ("run", "whole")]
    assert models[0] == models[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--resume", "nowhere"], "--resume nowhere: there is no such directory"),
        (["--resume", "."], ". has no checkpoint to resume from"),
        (
            ["--resume", ".", "--out", "x"],
            "--resume . goes on in that directory: leave --out x out",
        ),
        (
            ["--method", "SGD", "--checkpoint", "0"],
            "--checkpoint is 0 seconds; it must be positive",
        ),
    ],
)
def test_bad_options_are_one_line(
    options: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert main(["run", *options]) == 2
    assert capsys.readouterr().err == f"offbeat: {text}\n"
    assert not list(tmp_path.iterdir())
