"""What the simulator refuses or ends, instead of hanging or giving a wrong figure."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offbeat import Budget, Cluster, Method, Node, problems, simulate
from offbeat.methods import METHODS, SGD
from offbeat.problems import Digits, Split


def network(*layers: nn.Module) -> problems.Supervised:
    data = Digits().data()
    return problems.Supervised(
        model_factory=functools.partial(_network, layers),
        train=Split(data.train.inputs[:64], data.train.targets[:64]),
        test=Split(data.test.inputs[:32], data.test.targets[:32]),
        loss_function=F.cross_entropy,
        batch_size=4,
    )


def _network(layers: tuple[nn.Module, ...]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), *layers, nn.Linear(8, 10))


@dataclass(frozen=True, kw_only=True)
class Pulsing(Method):
    """Something beside the worker sleeps for ever."""

    background: ClassVar[tuple[str, ...]] = ("pulse",)

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        node.apply(gradient.vector, taken_at=gradient.version)

    async def pulse(self, node: Node) -> None:
        await node.sleep(0.01)


@dataclass(frozen=True, kw_only=True)
class Sleeping(Method):
    async def step(self, node: Node) -> None:
        await node.sleep(0.01)


@dataclass(frozen=True, kw_only=True)
class Lopsided(Method):
    """Worker 0 finishes; the others await collectives that it never joins."""

    synchronous: ClassVar[bool] = True

    async def step(self, node: Node) -> None:
        await node.gradient()
        if node.rank > 0:
            await node.barrier()


def test_a_spent_budget_ends_a_run_whose_background_sleeps():
    run = simulate(Pulsing(), cluster=Cluster(workers=2), budget=Budget(samples=640))
    assert run.stop == "samples"
    assert run.metrics[-1].samples == 640


def test_a_method_that_only_sleeps_is_told_to_give_seconds():
    run = simulate(Sleeping(), cluster=Cluster(workers=2), budget=Budget(samples=640))
    assert run.error is not None
    assert "so its budget of samples is never spent; give budget.seconds" in run.error
    seconds = simulate(Sleeping(), cluster=Cluster(workers=2), budget=Budget(seconds=1.0))
    assert seconds.stop == "seconds"


def test_a_synchronous_method_half_of_whose_workers_are_stuck_is_deadlocked():
    run = simulate(Lopsided(), cluster=Cluster(workers=3), budget=Budget(samples=960))
    assert run.error is not None
    assert run.error.startswith("deadlock at ")
    assert "node 1 (worker) awaits all_reduce(group of 3)" in run.error


def test_running_statistics_are_refused_by_name():
    text = r"1 \(BatchNorm1d\) keeps running statistics, which cannot be simulated yet"
    with pytest.raises(ValueError, match=text):
        simulate(SGD(), network(nn.BatchNorm1d(8)), cluster=Cluster(workers=1))
    plain = network(nn.BatchNorm1d(8, track_running_stats=False))
    assert (
        simulate(SGD(), plain, cluster=Cluster(workers=1), budget=Budget(samples=40)).error is None
    )


class Dropping(nn.Module):
    """Dropout that no module shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.5)


def test_dropout_repeats_to_the_bit_and_leaves_torch_s_generator_alone():
    for layer in (nn.Dropout(0.5), Dropping()):
        planned = functools.partial(
            simulate, SGD(), network(layer), cluster=Cluster(workers=2), budget=Budget(samples=160)
        )
        torch.manual_seed(3)
        before = torch.get_rng_state()
        first = planned(evaluator="serial")
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(4)
        assert torch.equal(planned(evaluator="serial").vector, first.vector)


def test_what_cannot_be_batched_says_what_to_choose():
    run = simulate(SGD(), network(Dropping()), cluster=Cluster(workers=8))
    assert run.error is not None
    assert "choose --evaluator serial" in run.error
    with pytest.raises(ValueError, match="evaluator pool cannot repeat a model with dropout"):
        simulate(SGD(), network(nn.Dropout()), cluster=Cluster(workers=2), evaluator="pool")


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="device 'cuda:7' cannot be used"):
        simulate(SGD(), cluster=Cluster(workers=1), device="cuda:7")


def test_everything_lives_on_the_device_that_is_named():
    named = simulate(SGD(), cluster=Cluster(workers=1), budget=Budget(samples=160), device="cpu")
    assert named.vector.device.type == "cpu"
    assert named.error is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_trains_on_a_gpu(name: str):
    run = simulate(METHODS[name](), budget=Budget(samples=16_000), device="cuda")
    assert run.error is None
    assert run.vector.is_cuda
    assert run.metrics[-1].loss < run.metrics[0].loss
