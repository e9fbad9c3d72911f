"""Replicas: workers of one machine that hold the same parameters keep them once, and step parts."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import ClassVar
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offbeat import stepping
from offbeat.cluster import Cluster, Fault
from offbeat.experiment import Budget, Experiment
from offbeat.messages import message
from offbeat.method import Method
from offbeat.methods import AllReduceSGD, LocalSGD, RingAllReduceSGD
from offbeat.node import Node
from offbeat.optim import LARS
from offbeat.parameters import ALIGNED, Layout
from offbeat.problems import Data, Digits, Problem, Split
from offbeat.runtime.checkpoint import latest_checkpoint
from offbeat.runtime.errors import RunError
from offbeat.runtime.processes import run_processes
from offbeat.runtime.replicas import may_share
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.stepping import ELEMENTWISE, ParameterOptimizer
from offbeat.stepping import steps_alike_in_parts as steps_alike
from test_processes import assert_replays, nothing_left_behind

__all__ = ["nothing_left_behind"]

WIDTH = 850
"""Of a hidden layer: 2.9 MB of parameters, which no two parts of a ring cut at a multiple of 64."""


@dataclass(frozen=True, kw_only=True)
class Large(Problem):
    """Random inputs for a network whose parameters are worth sharing."""

    batch_size: int = 8
    width: int = WIDTH

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(20, self.width), nn.Tanh(), nn.Linear(self.width, WIDTH), nn.Tanh(),
            nn.Linear(WIDTH, 3),
        )  # fmt: skip

    def data(self) -> Data:
        return _data()

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    def evaluate(self, outputs, targets):
        return {"loss": self.loss(outputs, targets).item()}


@lru_cache
def _data() -> Data:
    generator = torch.Generator().manual_seed(0)

    def split(size: int) -> Split:
        inputs = torch.randn(size, 20, generator=generator)
        return Split(inputs, inputs.abs().argmax(dim=1) % 3)

    return Data(train=split(256), validation=split(64), test=split(64))


OPTIMIZERS = {
    "SGD": functools.partial(torch.optim.SGD, lr=0.05),
    "momentum": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "fused": functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, fused=True),
    "AdamW": functools.partial(torch.optim.AdamW, lr=1e-3),
}


def experiment(
    method: Method | None = None,
    workers: int = 2,
    *,
    optimizer="momentum",
    steps: int = 12,
    faults=(),
    problem: Problem | None = None,
    all_reduce="ring",
    **kwargs,
) -> Experiment:
    return Experiment(
        method=AllReduceSGD() if method is None else method,
        problem=Large() if problem is None else problem,
        cluster=Cluster(workers=workers, faults=faults, all_reduce=all_reduce),
        optimizer=OPTIMIZERS.get(optimizer, optimizer),
        budget=kwargs.pop("budget", Budget(samples=steps * workers * 8)),
        **kwargs,
    )


# What may be shared


def test_large_models_of_replicated_methods_are_shared():
    assert may_share(World(experiment()))


@pytest.mark.parametrize(
    "other",
    [
        {"workers": 1},
        {"method": RingAllReduceSGD()},
        {"method": LocalSGD()},
        {"problem": Digits(batch_size=8)},  # Small.
        {"problem": Large(width=220), "workers": 4},  # Small enough to be stepped as one tensor.
        {"optimizer": functools.partial(LARS, lr=0.1)},  # Not elementwise.
        {"optimizer": "fused", "threads": 2},
        {"all_reduce": "direct"},
    ],
    ids=str,
)
def test_others_are_not(other):
    assert not may_share(World(experiment(**other)))


def clipping(parameters):
    """An optimizer that looks at all gradients before each step."""
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.register_step_pre_hook(
        lambda self, args, kwargs: nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1.0)
    )
    return optimizer


def test_an_optimizer_with_hooks_steps_the_whole():
    assert not may_share(World(experiment(optimizer=clipping)))


# Optimizers of parts

SETTINGS = {
    "SGD": [
        {},
        {"momentum": 0.9, "nesterov": True, "foreach": False},
        {"momentum": 0.9, "fused": True},
    ],
    "Adam": [{}, {"amsgrad": True}, {"fused": True, "weight_decay": 0.1}],
    "AdamW": [{}, {"fused": True}, {"foreach": True}],
    "Adagrad": [{}, {"fused": True}],
    "RMSprop": [{}, {"momentum": 0.9, "centered": True}],
}  # fmt: skip
shapes = st.lists(st.lists(st.integers(1, 23), max_size=2).map(tuple), min_size=1, max_size=6).map(
    lambda s: Layout(tuple(f"p{i}" for i in range(len(s))), tuple(s))
)


@given(shapes, st.integers(1, 9))
def test_even_spans_cover_all_and_cut_tensors_at_multiples(layout: Layout, parts: int):
    spans = layout.even_spans(parts)
    assert [spans[0].start, spans[-1].stop] == [0, layout.size]
    assert all(a.stop == b.start for a, b in pairwise(spans))
    for number, span in enumerate(spans):
        goal = layout.size * number // parts
        assert goal - ALIGNED < span.start <= goal
        inside = [s.start for s in layout.spans if s.start <= span.start < s.stop]
        assert all((span.start - start) % ALIGNED == 0 for start in inside)


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
@settings(max_examples=25)
@given(
    layout=shapes,
    parts=st.integers(2, 5),
    before=st.integers(0, 2),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    data=st.data(),
)
def test_steps_of_parts_are_the_step_of_the_whole(kind, layout, parts, before, dtype, data):
    chosen = data.draw(st.sampled_from(SETTINGS.get(kind.__name__, [{}])))
    generator = torch.Generator().manual_seed(0)

    def draw():
        return torch.randn(layout.size, generator=generator, dtype=dtype)

    start = draw()
    whole, *others = [start.clone() for _ in range(parts + 1)]
    with mock.patch.object(stepping, "COPIED", -1):  # As if it were as large as those are.
        optimizers = [
            ParameterOptimizer(
                x, layout, lambda named: kind([p for _, p in named], lr=0.1, **chosen)
            )
            for x in (whole, *others)
        ]
    assert steps_alike(optimizers[0].inner, threads=1)
    spans = layout.even_spans(parts)
    for step in range(before + 3):
        gradient, scale = draw(), 0.5 ** (step % 2)
        optimizers[0].step(gradient, scale)
        for optimizer, span in zip(optimizers[1:], spans, strict=True):
            if step == before:
                optimizer.keep(span)
            optimizer.step(gradient if optimizer.part is None else gradient[span], scale)
    for x, span in zip(others, spans, strict=True):
        assert torch.equal(x[span], whole[span])
    # What they remember is nobody else's.
    kept = [sum(p.numel() for p in optimizer.inner.state) for optimizer in optimizers]
    assert sum(kept[1:]) == kept[0]


def test_an_optimizer_of_a_part_leaves_the_rest_alone():
    layout = Layout(("a", "b"), ((100, 2), (70,)))
    x = torch.zeros(270)
    optimizer = ParameterOptimizer(
        x, layout, lambda named: torch.optim.SGD([p for _, p in named], lr=1.0)
    )
    optimizer.keep(slice(64, 128))
    optimizer.step(torch.ones(64))
    assert x.nonzero().view(-1).tolist() == list(range(64, 128))


# Runs


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_equals_the_simulated_one_and_replays(optimizer: str, workers: int, tmp_path: Path):
    same = experiment(workers=workers, optimizer=optimizer, threads=1)
    assert may_share(World(same))
    run = run_processes(same, tmp_path)
    assert run.error is None
    assert torch.equal(run.vector, Simulation(same).run().vector)
    assert_replays(run, tmp_path)
    # Nobody sent a part of the mean, which the others would have applied.
    d = World(same).layout.size
    sizes = run.trace.messages["bytes"]
    assert sizes.max() < 1.01 * 4 * d / workers
    assert (sizes < 100).mean() == 0.5


def halving(parameters):
    """An optimizer whose user halves the gradients where they lie, before each step."""
    optimizer = torch.optim.SGD(list(parameters), lr=0.05)
    optimizer.register_step_pre_hook(
        lambda sgd, *_: [p.grad.mul_(0.5) for g in sgd.param_groups for p in g["params"]] and None
    )
    return optimizer


@pytest.mark.parametrize("workers", [2, 3])
def test_a_hook_may_write_to_the_mean(workers: int):
    same = experiment(workers=workers, optimizer=halving, threads=1)
    assert not may_share(World(same))
    run = run_processes(same)
    assert run.error is None
    assert torch.equal(run.vector, Simulation(same).run().vector)


@dataclass(frozen=True, kw_only=True)
class JudgedByOne(AllReduceSGD):
    """Its model is one worker's copy; the mean of two may be of copies made a step apart."""

    def model(self, nodes):
        return nodes[0].parameters


def test_copies_for_evaluation_are_of_one_moment():
    """Each is what a worker held between two steps, though others step while it waits."""
    steps, per_step = 100, 2 * 8
    every = experiment(JudgedByOne(), steps=steps, evaluate_every=per_step, threads=1)
    losses = {row.loss for row in Simulation(every).run().metrics}
    assert len(losses) == steps + 1
    run = run_processes(every)
    assert run.error is None
    assert len(run.metrics) > 5
    assert {row.loss for row in run.metrics} <= losses


def test_a_run_goes_on_from_a_checkpoint_and_alone(tmp_path: Path):
    whole = run_processes(experiment(optimizer="AdamW", steps=40))
    first = run_processes(experiment(optimizer="AdamW", steps=20), tmp_path, checkpoint_every=0.003)
    assert first.error is None
    checkpoint, notes = latest_checkpoint(tmp_path)
    assert not notes
    # Whoever is lent none of the others' memory goes on from the same files.
    for all_reduce in ("ring", "whole-ring"):
        same = experiment(optimizer="AdamW", steps=40, all_reduce=all_reduce)
        assert may_share(World(same)) == (all_reduce == "ring")
        run = run_processes(same, tmp_path / all_reduce, resume=checkpoint)
        assert run.error is None
        if all_reduce == "ring":
            assert torch.equal(run.vector, whole.vector)
            assert_replays(run, tmp_path / all_reduce)
        assert math.isclose(run.metrics[-1].loss, whole.metrics[-1].loss, rel_tol=1e-4)


@pytest.mark.parametrize("optimizer", ["AdamW", "momentum"])
def test_a_run_without_a_further_step_keeps_its_checkpoint(optimizer: str, tmp_path: Path):
    """Its workers hold what they were given, and have not stepped since."""
    same = experiment(optimizer=optimizer)
    first = run_processes(same, tmp_path, checkpoint_every=60.0)
    for _ in range(2):
        checkpoint, notes = latest_checkpoint(tmp_path)
        assert not notes
        again = run_processes(same, tmp_path, checkpoint_every=60.0, resume=checkpoint)
        assert again.error is None
        assert torch.equal(again.vector, first.vector)
    further = experiment(optimizer=optimizer, steps=20)
    run = run_processes(further, resume=latest_checkpoint(tmp_path)[0])
    assert torch.equal(run.vector, run_processes(further).vector)


def test_a_killed_worker_comes_back(tmp_path: Path):
    whole = run_processes(experiment(steps=150))
    crash = Fault(kind="crash", rank=1, at=0.1)
    run = run_processes(experiment(steps=150, faults=(crash,)), tmp_path, checkpoint_every=0.03)
    assert run.error is None
    assert any("was killed by SIGKILL" in note for note in run.notes)
    assert torch.equal(run.vector, whole.vector)


def test_without_checkpoints_a_killed_worker_ends_the_run():
    crash = Fault(kind="crash", rank=1, at=0.3)
    with pytest.raises(RunError, match="worker 1 is gone"):
        raise RunError(run_processes(experiment(steps=4000, faults=(crash,))).error)


def test_a_budget_of_seconds_ends_it_between_two_steps():
    run = run_processes(
        experiment(workers=3, budget=Budget(seconds=0.7), evaluate_every=1, threads=1)
    )
    assert run.error is None
    steps = run.trace.steps
    assert len({(steps["node"] == rank).sum() for rank in range(3)}) == 1


# What a method must not do


@dataclass(frozen=True, kw_only=True)
class Mistaken(AllReduceSGD):
    """Says that it is replicated, and steps alone."""

    replicated: ClassVar[bool] = True

    async def step(self, node: Node) -> None:
        node.apply(await node.gradient())


def test_a_subclass_with_a_step_of_its_own_promises_nothing():
    class Own(AllReduceSGD):
        async def step(self, node: Node) -> None:
            node.apply(await node.gradient())

    class Settled(Own):
        pass

    class Mixin:
        async def step(self, node: Node) -> None:
            node.apply(await node.gradient())

    class Mixed(Mixin, AllReduceSGD):
        pass

    class Sworn(Mixin, AllReduceSGD):
        replicated: ClassVar[bool] = True

    assert JudgedByOne.replicated
    assert not Own.replicated
    assert not Settled.replicated
    assert not Mixed.replicated
    assert Sworn.replicated


@dataclass(frozen=True, kw_only=True)
class Hasty(AllReduceSGD):
    """Takes the next gradient while the step along the last is under way."""

    replicated: ClassVar[bool] = True

    async def step(self, node: Node) -> None:
        step = node.start(node.apply_mean(await node.gradient()))
        await node.sleep(0.0)
        await node.gradient()
        await step


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (Mistaken(), "changes one worker's parameters alone"),
        (Hasty(), "in the midst of node.apply_mean"),
    ],
)
def test_a_replicated_method_that_breaks_its_promise_is_refused_everywhere(method, text):
    for run in (lambda e: Simulation(e).run(), run_processes):
        found = None
        try:
            found = run(experiment(method)).error
        except RunError as error:
            found = str(error)
        assert found is not None
        assert f"{type(method).__name__} on node" in found
        assert text in found
        assert "\n" not in found


@dataclass(frozen=True, kw_only=True)
class Halting(AllReduceSGD):
    """In some round worker 1 asks for no further gradient until the run is over."""

    replicated: ClassVar[bool] = True

    async def step(self, node: Node) -> None:
        if node.rank == 1 and node.round == 20:
            await node.sleep(60.0)
        await super().step(node)


def test_copies_that_never_come_are_not_awaited_at_the_end():
    """Worker 0 is in a step that worker 1 never makes, and was asked for a copy in its midst."""
    budget = Budget(seconds=1.0)
    run = run_processes(experiment(Halting(), budget=budget, evaluate_every=1, threads=1))
    assert run.error is None
    assert run.stop == "seconds"
    assert len(run.trace.steps) == 2 * 20


@message
class Word:
    number: int


@dataclass(frozen=True, kw_only=True)
class Waiting(AllReduceSGD):
    """In some round worker 1 awaits what nobody sends."""

    replicated: ClassVar[bool] = True

    async def step(self, node: Node) -> None:
        if node.rank == 1 and node.round == 20:
            await node.recv(Word)
        await super().step(node)


def test_a_deadlock_is_seen_though_a_copy_is_awaited():
    run = run_processes(experiment(Waiting(), steps=4000, evaluate_every=1, threads=1))
    assert run.error is not None
    assert "deadlock" in run.error
