"""Real processes: every method runs, replays to the bit, and faults are met as promised."""

from __future__ import annotations

import functools
import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import offbeat
from offbeat.cluster import Cluster, Fault, Outage
from offbeat.experiment import Budget, Experiment
from offbeat.messages import message
from offbeat.method import Method
from offbeat.methods import ADPSGD, METHODS, SGD, AllReduceSGD, AsyncSGD, StochasticGradientPush
from offbeat.node import Node
from offbeat.problems import Digits, Split, Supervised
from offbeat.runs import Run
from offbeat.runtime import coordinator
from offbeat.runtime.errors import RunError
from offbeat.runtime.journal import JournalError
from offbeat.runtime.line import Line
from offbeat.runtime.processes import run_processes
from offbeat.runtime.replay import replay_run
from offbeat.runtime.seats import Seat, require_heartbeats
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World, require_same_layout


def experiment(
    method: Method, workers: int = 2, *, samples: int = 1600, lr: float = 0.1, **kwargs
) -> Experiment:
    cluster = Cluster(workers=workers, faults=kwargs.pop("faults", ()))
    return Experiment(
        method=method,
        problem=Digits(),
        cluster=cluster,
        optimizer=functools.partial(torch.optim.SGD, lr=lr, momentum=0.5),
        budget=kwargs.pop("budget", Budget(samples=samples)),
        **kwargs,
    )


def assert_replays(run: Run, directory: Path) -> Run:
    replayed = replay_run(run.experiment, directory / "journals")
    assert torch.equal(replayed.vector, run.vector)
    return replayed


@pytest.fixture(autouse=True)
def nothing_left_behind():
    yield
    assert not list(Path("/tmp").glob(f"offbeat-{os.getpid()}-*"))
    # Only the server that children are forked from stays, and it has none left.
    servers = [pid for pid, parent in parents().items() if parent == os.getpid()]
    assert not [pid for pid, parent in parents().items() if parent in servers]


def parents() -> dict[int, int]:
    """Parent of every process of this machine."""
    found: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = stat.read_text().rsplit(")", 1)[1].split()
            if state != "Z":
                found[int(stat.parent.name)] = int(parent)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.shares_parameters])
def test_every_method_runs_and_replays_to_the_bit(name: str, workers: int, tmp_path: Path):
    # At so small a rate also gradients that a busy machine has made very stale do not do harm.
    run = run_processes(experiment(METHODS[name](), workers, lr=0.02), tmp_path)
    assert run.error is None
    assert run.stop == "samples"
    assert run.metrics[-1].samples == 1600
    assert run.metrics[-1].loss < run.metrics[0].loss
    replayed = assert_replays(run, tmp_path)
    assert sorted(replayed.staleness) == sorted(run.staleness)


@pytest.mark.parametrize(
    "method", [AsyncSGD(servers=2), AsyncSGD(servers=2, colocated=True)], ids=["apart", "colocated"]
)
def test_sharded_servers_run_and_replay(method: AsyncSGD, tmp_path: Path):
    run = run_processes(experiment(method), tmp_path)
    assert run.error is None
    assert len(run.staleness) == 2 * 100
    assert_replays(run, tmp_path)


@pytest.mark.parametrize("name", ["AllReduceSGD", "LocalSGD", "StochasticGradientPush", "SlowMo"])
def test_synchronous_methods_give_the_simulator_s_bits(name: str):
    # Their result depends on no timing, so the simulator predicts it exactly.
    planned = experiment(METHODS[name](), evaluator="serial")
    assert torch.equal(run_processes(planned).vector, Simulation(planned).run().vector)


@pytest.mark.parametrize("method", [AsyncSGD(), ADPSGD(), StochasticGradientPush()])
def test_the_others_finish_when_a_worker_is_killed(method: Method, tmp_path: Path):
    crash = Fault(kind="crash", rank=1, at=0.05)
    run = run_processes(experiment(method, 3, samples=16_000, faults=(crash,)), tmp_path)
    assert run.error is None
    assert any("node 1 (worker) was killed by SIGKILL" in note for note in run.notes)
    assert run.metrics[-1].loss < 0.7
    assert_replays(run, tmp_path)


def test_a_killed_server_ends_every_process_and_is_named():
    run_processes(experiment(SGD(), 1, samples=16))  # Starting up is not what is timed.
    began = time.monotonic()
    crash = Fault(kind="crash", rank=2, at=0.05)
    run = run_processes(experiment(AsyncSGD(), samples=160_000, faults=(crash,)))
    assert run.error is not None
    assert "server 2 is gone" in run.error
    assert run.stop == "error"
    assert run.metrics, "what was recorded is kept"
    assert time.monotonic() - began < 10


def test_a_synchronous_method_names_the_worker_it_lost():
    crash = Fault(kind="crash", rank=1, at=0.05)
    run = run_processes(experiment(AllReduceSGD(), 3, samples=160_000, faults=(crash,)))
    assert run.error is not None
    assert "node 1 (worker) was killed by SIGKILL" in run.error
    assert "AllReduceSGD does not survive a loss" in run.error


def test_a_worker_leaves_and_the_others_go_on(tmp_path: Path):
    leave = Fault(kind="leave", rank=1, at=0.05)
    run = run_processes(experiment(AsyncSGD(), 3, samples=16_000, faults=(leave,)), tmp_path)
    assert run.error is None
    assert any("node 1 (worker) left" in note for note in run.notes)
    assert run.metrics[-1].samples == 16_000, "what it computed counts"
    assert_replays(run, tmp_path)


def test_a_slowed_worker_computes_less():
    slow = Fault(kind="slow", rank=1, at=0.0, factor=20.0)
    run = run_processes(experiment(AsyncSGD(), samples=16_000, faults=(slow,)))
    computed = [int((run.trace.gradients["node"] == rank).sum()) for rank in (0, 1)]
    assert computed[0] > 1.5 * computed[1]


@message
class Never:
    number: int


@dataclass(frozen=True, kw_only=True)
class Stuck(Method):
    """Every worker awaits a message that none sends."""

    async def step(self, node: Node) -> None:
        await node.gradient()
        await node.recv(Never, source=1 - node.rank)


def test_outages_are_refused_for_now():
    outage = Outage(isolated=(0,), at=0.0, until=1.0)
    with pytest.raises(ValueError, match=r"cluster.outages part nodes of a simulated network"):
        offbeat.run(SGD(), cluster=Cluster(workers=2, outages=(outage,)))


def test_an_experiment_that_cannot_be_sent_is_refused_in_one_line():
    split = Split(torch.ones(40, 2), torch.ones(40, 1))
    problem = Supervised(
        model_factory=lambda: torch.nn.Linear(2, 1),
        train=split,
        test=split,
        loss_function=torch.nn.functional.mse_loss,
        batch_size=4,
    )
    with pytest.raises(ValueError, match=r"cannot be sent to processes \(.*lambda.*functools"):
        offbeat.run(SGD(), problem, cluster=Cluster(workers=2))


def test_a_deadlock_is_reported_with_roles_types_and_heartbeats():
    run = run_processes(experiment(Stuck()))
    assert run.error is not None
    for rank in (0, 1):
        text = f"node {rank} (worker) awaits recv(Never, source={1 - rank}), last heartbeat "
        assert text in run.error


@dataclass(frozen=True, kw_only=True)
class Failing(Method):
    """Raises at its third round."""

    async def step(self, node: Node) -> None:
        await node.gradient()
        if node.round == 2:
            raise KeyError("third round")


def test_an_exception_in_a_role_ends_the_run_in_one_line():
    run = run_processes(experiment(Failing()))
    assert run.error is not None
    assert "Failing on node" in run.error
    assert "KeyError: 'third round' (test_processes.py:" in run.error
    assert "\n" not in run.error


def test_a_diverging_run_says_where_and_keeps_what_it_has():
    planned = experiment(SGD(), 1, samples=16_000)
    hot = functools.partial(torch.optim.SGD, lr=1e30)
    run = run_processes(Experiment(**{**planned.__dict__, "optimizer": hot}))
    assert run.error is not None
    assert run.error.startswith("diverged: worker 0 had loss nan at its gradient")
    assert run.metrics


def test_a_budget_in_seconds_ends_the_run():
    run = run_processes(experiment(ADPSGD(), budget=Budget(seconds=0.5)))
    assert run.error is None
    assert run.stop == "seconds"
    assert 0.3 < run.seconds < 30


def test_an_accuracy_budget_ends_the_run():
    budget = Budget(samples=160_000, accuracy=0.8)
    run = run_processes(experiment(AsyncSGD(), budget=budget, evaluate_every=160))
    assert run.stop == "accuracy"
    assert run.metrics[-1].samples < 160_000


def test_asynchronous_methods_compute_exactly_the_budget():
    run = run_processes(experiment(AsyncSGD(), 3, samples=1616))
    assert len(run.trace.gradients) == 101
    assert len(run.staleness) == 101


def started(directory: Path, seconds: float) -> subprocess.Popen[str]:
    """A long `offbeat run` in a process group of its own, some seconds old."""
    options = ["--method", "ADPSGD", "--budget.samples", "10000000", "--out", str(directory)]
    command = [sys.executable, "-m", "offbeat", "run", *options]
    pipe = subprocess.PIPE
    job = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not directory.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(seconds)
    return job


@pytest.mark.parametrize("seconds", [0.1, 1.0, 6.0])
def test_ctrl_c_ends_a_run_at_once_and_quietly(seconds: float, tmp_path: Path):
    job = started(tmp_path / "run", seconds)
    os.killpg(job.pid, signal.SIGINT)
    _, errors = job.communicate(timeout=60)  # Its budget lasts for ten minutes and more.
    assert job.returncode == 130
    assert "Traceback" not in errors
    assert not list(Path("/tmp").glob(f"offbeat-{job.pid}-*"))


@pytest.mark.parametrize("seconds", [0.1, 2.0, 6.0])
def test_nothing_outlives_a_launcher_that_is_killed(seconds: float, tmp_path: Path):
    job = started(tmp_path / "run", seconds)
    job.kill()
    job.communicate(timeout=60)  # Until the last that holds its output has ended.
    assert not list(Path("/tmp").glob(f"offbeat-{job.pid}-*"))


def test_replay_notices_a_foreign_journal(tmp_path: Path):
    run_processes(experiment(AsyncSGD()), tmp_path)
    with pytest.raises(JournalError, match="node 0"):
        replay_run(experiment(AllReduceSGD()), tmp_path / "journals")


def test_replay_names_a_missing_or_damaged_journal(tmp_path: Path):
    run_processes(experiment(AsyncSGD(), samples=320), tmp_path)
    path = tmp_path / "journals" / "node-1.journal"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(JournalError, match=r"node-1\.journal is cut short"):
        replay_run(experiment(AsyncSGD(), samples=320), tmp_path / "journals")
    path.write_bytes(b"not this")
    with pytest.raises(JournalError, match=r"node-1\.journal is no journal"):
        replay_run(experiment(AsyncSGD(), samples=320), tmp_path / "journals")
    path.unlink()
    with pytest.raises(JournalError, match=r"node-1\.journal is missing"):
        replay_run(experiment(AsyncSGD(), samples=320), tmp_path / "journals")


def test_models_that_differ_are_named_with_parameter_and_both_shapes():
    ours = World(experiment(SGD(), 1)).layout
    theirs = World(Experiment(**{**experiment(SGD(), 1).__dict__, "problem": Digits(hidden=8)}))
    with pytest.raises(RunError) as error:
        require_same_layout(ours, theirs.layout, "node 0", "node 3")
    assert str(error.value) == (
        "the models differ: parameter 0.weight has shape (32, 64) on node 0 and (8, 64) on node 3"
    )


def workers_of_this() -> list[int]:
    """The processes of a run that goes on here: forked from a server that is this one's."""
    family = parents()
    return [pid for pid, parent in family.items() if family.get(parent) == os.getpid()]


def test_a_process_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(coordinator, "PATIENCE", 1.5)
    stop = threading.Timer(3.0, lambda: os.kill(workers_of_this()[-1], signal.SIGSTOP))
    stop.start()
    run = run_processes(experiment(ADPSGD(), budget=Budget(seconds=60)))
    stop.join()
    assert run.error is not None
    assert re.match(r"node [01] has given no sign of life for \d+ s; the others: node", run.error)


def test_nothing_outlives_a_run_though_the_server_that_forked_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
):
    """Of it `multiprocessing` says that it has ended, and kills it not."""
    monkeypatch.setattr(coordinator, "PATIENCE", 1.5)
    stopped: list[int] = []

    def strike() -> None:
        stopped.append(workers_of_this()[-1])
        os.kill(parents()[stopped[0]], signal.SIGKILL)
        os.kill(stopped[0], signal.SIGSTOP)

    timer = threading.Timer(3.0, strike)
    timer.start()
    run = run_processes(experiment(ADPSGD(), budget=Budget(seconds=60)))
    timer.join()
    assert run.error is not None
    assert re.match(r"node [01] has given no sign of life for \d+ s; the others: node", run.error)
    state = Path(f"/proc/{stopped[0]}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_who_has_brought_its_results_home_says_nothing_more():
    seat = Seat(host=1, ranks=[1], heard=time.monotonic() - 50)
    with pytest.raises(RunError, match="node 1 has given no sign of life for 50 s; the others: n"):
        require_heartbeats([seat], 30)
    seat.snapshots = []
    require_heartbeats([seat], 30)


def test_after_an_interrupt_nobody_waits_for_one_that_has_failed():
    begun = coordinator.Coordinator(experiment(ADPSGD()))
    first, second = begun.roster.seats
    first.failed, second.snapshots = "node 0: something is wrong", []
    begun.stop_reason = "interrupted"
    began = time.monotonic()
    with begun.placement.line:
        begun._collect()
    begun.placement.close()
    assert time.monotonic() - began < 5


def test_nobody_is_blamed_for_a_pause_of_the_launcher_s_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(coordinator, "PATIENCE", 1.5)
    hear, calls = Line.hear, itertools.count()

    def late(line: Line, timeout: float) -> Iterator[tuple[int, Any]]:
        """As after its machine was asleep: what was said meanwhile comes a little later."""
        call = next(calls)
        if call == 100:
            time.sleep(2.5)
        return iter(()) if 100 <= call < 105 else hear(line, timeout)

    monkeypatch.setattr(Line, "hear", late)
    run = run_processes(experiment(ADPSGD(), budget=Budget(seconds=5)))
    assert run.error is None
    assert next(calls) > 105


def test_a_daemon_of_multiprocessing_is_told_that_it_may_start_none(monkeypatch):
    """As one of a Pool's, or a data loader's."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    error = run_processes(experiment(ADPSGD())).error
    assert error is not None
    assert error.startswith("this process is a daemon of multiprocessing, which may start no")
