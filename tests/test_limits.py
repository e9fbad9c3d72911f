"""What the simulator refuses or ends, instead of hanging or giving a wrong figure."""

from __future__ import annotations

import functools
import math
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offbeat import Budget, Cluster, Method, Node, problems, run, simulate
from offbeat.cli.main import main
from offbeat.methods import METHODS, SGD, AsyncSGD
from offbeat.parameters import Layout, PiecewiseVector, SparseVector, Values
from offbeat.problems import Digits, Split
from offbeat.runs import Metrics, load_run
from offbeat.runtime.compute import Job, choose_evaluator
from offbeat.runtime.world import LOOKED_AT, TURNS, Diverged, divergence, require_finite


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
        node.apply(gradient)

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


class Rooted(nn.Module):
    """The slope of sqrt(|x|) is infinite where the bias is zero, and the value is not."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.start.abs().sqrt() + 0.0 * x.sum()


def rooted() -> problems.Supervised:
    data = network().data()
    return problems.Supervised(
        model_factory=Rooted,
        train=data.train,
        test=data.test,
        loss_function=lambda outputs, targets: outputs.square().mean(),
        batch_size=4,
    )


@pytest.mark.parametrize("evaluator", ["serial", "vmap", "pool"])
def test_a_gradient_that_is_not_finite_ends_the_run_though_its_loss_is(evaluator: str):
    run = simulate(
        SGD(), rooted(), cluster=Cluster(workers=1), budget=Budget(samples=40), evaluator=evaluator
    )
    assert run.error is not None
    text = "diverged: worker 0 had loss 0 and a gradient that is not finite at its gradient 0, "
    assert run.error.startswith(text)
    assert run.stop == "error"
    assert len(run.metrics) == 1


def job(vector: Values, loss: float = 0.0) -> Job:
    made = Job(torch.zeros(2), torch.zeros(1), 0)
    made.vector, made.loss = vector, loss
    return made


def test_numbers_that_are_large_are_finite():
    require_finite(job(torch.tensor([3e38, 3e38])), 0, 0, 0.0)
    indices = torch.tensor([0, 1])
    for values in ([float("inf"), float("-inf")], [float("nan"), 1.0]):
        held = torch.tensor(values)
        for vector in (held, SparseVector(size=5, indices=indices, values=held)):
            with pytest.raises(Diverged, match="worker 3 had loss 0 and a gradient that is not"):
                require_finite(job(vector), 3, 0, 0.0)
    with pytest.raises(Diverged, match=r"worker 3 had loss nan at its gradient 7, 0\.5 s into"):
        require_finite(job(torch.zeros(2), float("nan")), 3, 7, 0.5)


def test_large_gradients_are_looked_at_in_turn():
    shapes = ((2 * LOOKED_AT, 3), (5,), (TURNS, LOOKED_AT))
    layout = Layout(("a", "b", "c"), shapes)
    for size in (LOOKED_AT + 1, layout.size):
        for place in (0, LOOKED_AT, size // 2, size - 1):
            vector = torch.zeros(size)
            vector[place] = float("nan")
            kept: list[torch.Tensor | PiecewiseVector] = [vector]
            if size == layout.size:
                pieces = layout.views(vector)
                kept.append(
                    PiecewiseVector(layout=layout, tensors=pieces, new=lambda: torch.empty(0))
                )
            found = [[step for step in range(2 * TURNS) if diverges(v, step)] for v in kept]
            turns = -(-size // max(LOOKED_AT, -(-size // TURNS)))
            assert 1 < turns <= TURNS
            assert all(steps == found[0] for steps in found)
            assert len(found[0]) in (2 * TURNS // turns, 2 * TURNS // turns + 1)
            assert found[0][0] < turns


def test_a_gradient_of_nothing_is_finite():
    assert not diverges(torch.empty(0), 3)


def diverges(vector: torch.Tensor | PiecewiseVector, step: int) -> bool:
    try:
        require_finite(job(vector), 0, step, 0.0)
    except Diverged:
        return True
    return False


def row(loss: float) -> Metrics:
    return Metrics(
        seconds=1.0, samples=1000, steps=1, loss=loss, accuracy=0.1, consensus=0.0, bytes=0
    )


def test_a_final_loss_that_is_no_result_is_an_error():
    assert divergence([]) is None
    assert divergence([row(2.3), row(float("nan")), row(2.2e4)]) is None
    assert divergence([row(1e-9), row(0.5)]) is None, "however good the start was"
    text = "diverged: after 1,000 samples the model's loss is {}, and was 2.3 at the start; "
    for loss, shown in ((float("nan"), "nan"), (float("inf"), "inf"), (2.4e4, "2.4e+04")):
        said = divergence([row(2.3), row(loss)])
        assert said is not None
        assert said.startswith(text.format(shown))


def test_parameters_that_overflow_at_the_last_step_are_an_error_and_keep_their_rows():
    # One step, after which nobody computes another loss.
    optimizer = functools.partial(torch.optim.SGD, lr=1e38)
    for method in (SGD(), AsyncSGD()):
        run = simulate(
            method, network(), cluster=Cluster(workers=1), optimizer=optimizer,
            budget=Budget(samples=4),
        )  # fmt: skip
        assert run.error is not None
        assert run.error.startswith("diverged: after 4 samples the model's loss is nan")
        assert run.stop == "error"
        assert math.isnan(run.metrics[-1].loss)
        assert math.isfinite(run.metrics[0].loss)


@pytest.mark.parametrize("rate", ["1e6", "1e30"])
@pytest.mark.parametrize("command", ["simulate", "run"])
def test_a_rate_far_too_high_is_one_line_and_a_directory_that_can_be_read(
    command: str, rate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    options = ["--method", "AsyncSGD", "--optimizer.lr", rate, "--budget.samples", "3000"]
    assert main([command, *options, "--cluster.workers", "2", "--out", str(out)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("offbeat: diverged: ")
    assert lines[0].endswith(f"lower the learning rate; what was recorded is in {out}")
    stored = load_run(out)
    assert stored.stop == "error"
    assert stored.error is not None
    assert stored.error in lines[0]
    assert len(stored.metrics) > 1


def test_recurrent_layers_go_to_threads_and_random_ones_stay_serial():
    assert choose_evaluator(nn.GRU(4, 4), 8) == "pool"
    assert choose_evaluator(nn.GRU(4, 4), 3) == "serial"
    assert choose_evaluator(nn.EmbeddingBag(4, 4), 8) == "pool"
    assert choose_evaluator(nn.Linear(4, 4), 8) == "vmap"
    assert choose_evaluator(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), 8) == "vmap"
    assert choose_evaluator(nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)), 8) == "pool"
    for random in (
        nn.LSTM(4, 4, num_layers=2, dropout=0.1),
        nn.MultiheadAttention(4, 2, dropout=0.1),
        nn.RReLU(),
        nn.FeatureAlphaDropout(),
    ):
        assert choose_evaluator(nn.Sequential(nn.Linear(4, 4), random), 8) == "serial"
    assert choose_evaluator(nn.MultiheadAttention(4, 2), 8) == "vmap"


class Reading(nn.Module):
    """The digits' rows, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(8, 6, batch_first=True)
        self.out = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.cell(x.unflatten(1, (8, 8)))[0][:, -1])


def test_a_gru_trains_on_threads_with_the_serial_bits():
    data = Digits().data()
    problem = problems.Supervised(
        model_factory=Reading,
        train=data.train,
        test=data.test,
        loss_function=F.cross_entropy,
        batch_size=8,
    )
    planned = functools.partial(
        simulate, AsyncSGD(), problem, cluster=Cluster(workers=4), budget=Budget(samples=1600)
    )
    run = planned()
    assert run.resolved["evaluator"] == "pool"
    assert run.metrics[-1].loss < run.metrics[0].loss
    assert torch.equal(planned(evaluator="serial").vector, run.vector)


@pytest.mark.parametrize("carry_out", [simulate, run])
def test_a_device_that_is_not_there_is_named(carry_out):
    with pytest.raises(ValueError, match="device 'cuda:7' cannot be used"):
        carry_out(SGD(), cluster=Cluster(workers=1), device="cuda:7")
    assert not multiprocessing.active_children()


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
