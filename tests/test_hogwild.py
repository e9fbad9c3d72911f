"""Hogwild!: one vector for all workers, in the simulator and between processes."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from offbeat.api import run_experiment
from offbeat.cluster import Cluster, Fault, Lognormal
from offbeat.cluster import Constant as Equal
from offbeat.experiment import Budget, Experiment
from offbeat.methods import SGD, Hogwild
from offbeat.problems import Digits
from offbeat.runtime.compute import SerialEvaluator
from offbeat.runtime.forks import server_of_forks
from offbeat.runtime.host import Host
from offbeat.runtime.replay import replay_run
from offbeat.runtime.shared import CommonParameters, MappedParameters
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.schedule import Constant
from offbeat.testing import Quadratic, simulated, small_experiment

UNEVEN = Cluster(workers=4, compute=Lognormal(sigma=0.5), slow={1: 3.0})
LR, MOMENTUM = 0.05, 0.9
COUNTS = 100_000


@dataclass(frozen=True, kw_only=True)
class Resting(Hogwild):
    """The others go on while a worker rests between its step and its next gradient."""

    async def step(self, node):
        await super().step(node)
        await node.sleep(0.02)


class Recording(Constant):
    """Notes the positions at which it is asked for its factor."""

    def __init__(self) -> None:
        object.__setattr__(self, "asked", [])

    def factor(self, samples: int) -> float:
        self.asked.append(samples)
        return 1.0


def digits(method, workers: int, *, samples=16_000, lr=LR, faults=()) -> Experiment:
    return Experiment(
        method=method,
        problem=Digits(),
        cluster=Cluster(workers=workers, faults=faults),
        optimizer=functools.partial(torch.optim.SGD, lr=lr),
        budget=Budget(samples=samples),
    )


@contextlib.contextmanager
def hosted(experiment, world, rank, shared):
    """A host that carries one worker of shared parameters."""
    with tempfile.TemporaryDirectory(prefix="offbeat-", dir="/tmp") as folder:
        host = Host(
            experiment.method,
            world.hosts,
            rank,
            listen=f"unix:{folder}/socket",
            secret=b"hogwild",
            may_compute=lambda *_: True,
            on_failure=lambda error: None,
        )
        host.add(world.node(rank, host, world.initial, shared=shared))
        host.begin(time.monotonic_ns())
        try:
            yield host
        finally:
            host.finish()
            host.close()


# Simulated


def test_simulated_workers_hold_one_vector():
    simulation = Simulation(small_experiment(Hogwild(), workers=4))
    run = simulation.run()
    assert len({node.parameters.data_ptr() for node in simulation.nodes}) == 1
    assert torch.equal(run.vector, simulation.nodes[2].parameters)
    assert {node.version for node in simulation.nodes} == {len(run.trace.steps)}
    assert {row.consensus for row in run.metrics} == {0.0}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_equal_workers_have_a_mean_staleness_of_their_number_less_one(workers: int):
    cluster = Cluster(workers=workers, compute=Equal())
    run = simulated(small_experiment(Hogwild(), cluster=cluster, budget=Budget(samples=1200)))
    # Who comes first at the same instant is left to chance. Yet a worker reads the version after
    # its last step, so each one's staleness adds up to its last version less its steps before.
    steps = len(run.trace.steps)
    assert steps == 300
    assert run.staleness.sum() == (workers - 1) * steps - workers * (workers - 1) // 2


@pytest.mark.parametrize("method", [Hogwild(), Resting()])
def test_a_run_is_sgd_with_gradients_taken_when_they_were_asked_for(method: Hogwild):
    experiment = small_experiment(
        method, cluster=UNEVEN, lr=LR, momentum=MOMENTUM, budget=Budget(samples=400)
    )
    run = simulated(experiment)
    world = World(experiment)
    evaluator = SerialEvaluator(world.make_module(), world.problem.loss, world.data.train)
    versions = [world.initial.clone()]
    buffers: dict[int, torch.Tensor] = {}
    taken = [0, 0, 0, 0]
    for step in run.trace.steps:
        rank, version, staleness = (int(step[k]) for k in ("node", "version", "staleness"))
        assert version == len(versions) - 1
        evaluator.buffer.flat.copy_(versions[version - staleness])
        batch = world.data.train.take(world.batches[rank].indices(taken[rank]))
        loss = world.problem.loss(evaluator.buffer.module(batch.inputs), batch.targets)
        parts = torch.autograd.grad(loss, list(evaluator.buffer.module.parameters()))
        gradient = torch.cat([part.reshape(-1) for part in parts])
        taken[rank] += 1
        if rank in buffers:
            # A worker's own: those of the others have no part in it.
            buffers[rank].mul_(MOMENTUM).add_(gradient)
        else:
            buffers[rank] = gradient.clone()
        versions.append(versions[-1].add(buffers[rank], alpha=-LR))
    assert len(set(run.staleness)) > 3
    assert torch.equal(run.vector, versions[-1])


def test_the_schedule_goes_by_the_samples_of_all_workers():
    schedule = Recording()
    run = simulated(small_experiment(Hogwild(), cluster=UNEVEN, schedule=schedule))
    batch = Quadratic().batch_size
    # Once more at the beginning of each worker's optimizer.
    steps = len(run.trace.steps)
    assert sorted(set(schedule.asked)) == [batch * number for number in range(steps)]


def test_a_late_worker_goes_on_from_the_vector_and_the_others_from_its_steps():
    faults = (
        Fault(kind="join", rank=0, at=0.105),
        Fault(kind="crash", rank=1, at=0.155),
        Fault(kind="leave", rank=2, at=0.205),
    )
    cluster = Cluster(workers=3, faults=faults)
    run = simulated(small_experiment(Hogwild(), cluster=cluster, budget=Budget(seconds=0.3)))
    steps = run.trace.steps
    assert steps["version"].tolist() == list(range(len(steps)))
    joined = steps[steps["node"] == 0]
    assert joined["version"][0] > 15
    assert joined["staleness"][0] == 2
    assert joined["staleness"][-1] == 0
    assert run.metrics[-1].loss < run.metrics[0].loss / 20


def test_sixteen_simulated_workers_learn_as_much_as_serial_sgd():
    serial = simulated(digits(SGD(), 1, samples=32_000, lr=0.02))
    hogwild = simulated(digits(Hogwild(), 16, samples=32_000, lr=0.02))
    assert hogwild.staleness.max() >= 15
    assert hogwild.metrics[-1].accuracy > serial.metrics[-1].accuracy - 0.02 > 0.9


# What others are told


def test_a_runtime_that_shares_nothing_refuses(tmp_path: Path):
    with pytest.raises(ValueError, match=r"^Hogwild changes one vector .* cannot be replayed$"):
        replay_run(digits(Hogwild(), 2), tmp_path)


def test_only_main_memory_can_be_shared():
    with pytest.raises(ValueError, match=r"are on device meta; use device cpu$"):
        MappedParameters(torch.empty(3, device="meta"), 2)


# Between processes


def test_memory_is_let_go_of_with_the_last_reference():
    def descriptors() -> list[str]:
        gc.collect()
        return sorted(os.listdir("/proc/self/fd"))

    before = descriptors()
    shared = MappedParameters(torch.arange(5.0), 2)
    vector = shared.vector
    assert len(descriptors()) > len(before)
    del shared
    assert vector.tolist() == [0, 1, 2, 3, 4]
    del vector
    assert descriptors() == before
    assert not list(Path("/dev/shm").glob("*offbeat*"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("workers", [1, 3, 600])
def test_counts_and_vector_do_not_touch(workers: int, dtype: torch.dtype):
    initial = torch.arange(100, dtype=dtype)
    shared = MappedParameters(initial, workers)
    for rank in range(workers):
        shared.count(rank)
    assert torch.equal(shared.vector, initial)
    assert shared.vector.dtype == dtype
    shared.vector.fill_(-1)
    assert shared.version == workers


def test_a_gradient_is_of_the_parameters_that_it_was_asked_at():
    experiment = digits(Hogwild(), 1)
    world = World(experiment)
    shared = CommonParameters(world.initial.clone())
    evaluator = SerialEvaluator(world.make_module(), world.problem.loss, world.data.train)
    with hosted(experiment, world, 0, shared) as host:
        task, request = host.next_request()
        shared.vector.fill_(float("nan"))  # As another process may, at any time.
        job = world.job(0, request)
        evaluator.evaluate_one(job)
        assert job.vector.isfinite().all()
        shared.vector.copy_(world.initial)
        shared.count(0)
        host.fulfil(task, request, job.vector, job.loss, host.elapsed)
        assert [row[3] for row in host.records.trace.rows["steps"]] == [1]
        expected = world.initial - LR * job.vector
        assert torch.allclose(shared.vector, expected, rtol=0, atol=1e-7)


def count(shared: MappedParameters, rank: int, ready, go) -> None:
    """A process that counts and writes as its worker does."""
    ready.release()
    go.acquire()
    for _ in range(COUNTS):
        shared.count(rank)
    shared.vector[rank] = shared.vector[rank] + rank


def test_no_count_of_processes_is_lost():
    context = server_of_forks()
    shared = MappedParameters(torch.ones(3), 3)
    ready, go = context.Semaphore(0), context.Semaphore(0)
    started = [
        context.Process(target=count, args=(shared, rank, ready, go), daemon=True)
        for rank in (1, 2)
    ]
    for process in started:
        process.start()
    for _ in started:
        assert ready.acquire(timeout=60)
    for _ in started:
        go.release()
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    assert shared.version == 2 * COUNTS
    assert shared.vector.tolist() == [1, 2, 3]


@pytest.mark.parametrize("workers", [2, 4])
def test_processes_without_locks_learn_as_much_as_serial_sgd(workers: int):
    serial = simulated(digits(SGD(), 1))
    run = run_experiment(digits(Hogwild(), workers))
    assert run.error is None
    steps = run.trace.steps
    assert len(steps) == 1000
    assert (steps["staleness"] >= 0).all()
    assert (steps["staleness"] <= steps["version"]).all()
    assert steps["version"].max() < 1000
    assert run.staleness.max() > 0
    assert len(set(steps["node"])) == workers
    assert {row.consensus for row in run.metrics} == {0.0}
    assert run.metrics[-1].accuracy > serial.metrics[-1].accuracy - 0.03 > 0.9


def test_one_process_is_serial_sgd_to_the_bit():
    run = run_experiment(digits(Hogwild(), 1, samples=1600))
    assert run.error is None
    assert torch.equal(run.vector, simulated(digits(SGD(), 1, samples=1600)).vector)


def test_the_others_go_on_when_a_process_is_killed():
    crash = Fault(kind="crash", rank=0, at=0.05)
    run = run_experiment(digits(Hogwild(), 3, samples=64_000, faults=(crash,)))
    assert run.error is None
    assert any("node 0 (worker) was killed by SIGKILL" in note for note in run.notes)
    assert run.metrics[-1].accuracy > 0.9
