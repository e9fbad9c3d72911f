import functools
import platform
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offbeat.methods import AsyncSGD
from offbeat.parameters import Layout, PiecewiseVector, joined
from offbeat.problems import Digits, Split
from offbeat.runtime import compute
from offbeat.runtime.compute import (
    EvaluationBuffer,
    Job,
    PoolEvaluator,
    SerialEvaluator,
    VmapEvaluator,
    programs_of,
)
from offbeat.stepping import ParameterOptimizer
from offbeat.suspensions import Gradient
from offbeat.testing import simulated, small_experiment

PROBLEM = Digits(hidden=8)
TRAIN = PROBLEM.data().train


def jobs(count):
    generator = torch.Generator().manual_seed(0)
    size = Layout.of(PROBLEM.model()).size
    return [
        Job(
            0.1 * torch.randn(size, generator=generator),
            torch.randint(len(TRAIN), (4,), generator=generator),
            seed,
        )
        for seed in range(count)
    ]


def evaluators():
    return {
        "serial": SerialEvaluator(PROBLEM.model(), PROBLEM.loss, TRAIN),
        "vmap": VmapEvaluator(PROBLEM.model(), PROBLEM.loss, TRAIN),
        "pool": PoolEvaluator(PROBLEM.model, PROBLEM.loss, TRAIN, 2),
    }


@pytest.mark.parametrize("name", ["serial", "vmap", "pool"])
@pytest.mark.parametrize("count", [1, 5, 130])
def test_evaluators_compute_what_autograd_does(name, count):
    evaluator, asked = evaluators()[name], jobs(count)
    for job in asked:
        evaluator.ask(job)
    for job in reversed(asked):
        evaluator.answer(job)
    evaluator.close()
    module = PROBLEM.model()
    for job in asked:
        nn.utils.vector_to_parameters(job.snapshot, module.parameters())
        loss = F.cross_entropy(module(TRAIN.inputs[job.indices]), TRAIN.targets[job.indices])
        expected = torch.cat(
            [g.reshape(-1) for g in torch.autograd.grad(loss, module.parameters())]
        )
        torch.testing.assert_close(job.vector, expected, rtol=1e-5, atol=1e-6)
        assert job.loss == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["serial", "vmap", "pool"])
def test_a_dropped_job_does_not_disturb_the_others(name):
    evaluator, (first, dropped, late, last) = evaluators()[name], jobs(4)
    for job in (first, dropped, late, last):
        evaluator.ask(job)
    evaluator.drop(dropped)
    evaluator.answer(first)
    evaluator.drop(late)
    evaluator.answer(last)
    evaluator.close()
    assert first.vector is not None
    assert last.vector is not None
    if name == "vmap":
        assert dropped.vector is None


def test_the_threads_of_a_pool_end_with_the_run():
    experiment = small_experiment(AsyncSGD(), problem=PROBLEM, steps=5, evaluator="pool")
    before = threading.active_count()
    simulated(experiment)
    assert threading.active_count() == before


def test_equal_problems_and_seeds_share_their_programs():
    assert programs_of(Digits(hidden=9), 0) is programs_of(Digits(hidden=9), 0)
    assert programs_of(Digits(hidden=9), 0) is not programs_of(Digits(hidden=9), 1)
    assert programs_of(Digits(hidden=9), 0) is not programs_of(Digits(hidden=10), 0)


def test_a_problem_that_cannot_be_hashed_shares_no_programs():
    @dataclass(frozen=True, kw_only=True)
    class Listed(Digits):
        extra: list[int] = field(default_factory=list)

    assert programs_of(Listed(), 0) is not programs_of(Listed(), 0)


@pytest.mark.parametrize(
    "factory",
    [
        functools.partial(torch.optim.SGD, lr=0.1),
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        functools.partial(torch.optim.Adam, lr=0.1, amsgrad=True),
        functools.partial(torch.optim.AdamW, lr=0.1, foreach=True),
        functools.partial(torch.optim.Adam, lr=0.1, fused=True),
        functools.partial(torch.optim.RMSprop, lr=0.1, momentum=0.5),
        functools.partial(torch.optim.Adagrad, lr=0.1),
        functools.partial(torch.optim.Adadelta, lr=0.1),
        functools.partial(torch.optim.Rprop, lr=0.1),
        functools.partial(torch.optim.NAdam, lr=0.1),
        functools.partial(torch.optim.ASGD, lr=0.1),
    ],
)
def test_steps_are_those_of_torch_to_the_bit(factory):
    module = PROBLEM.model()
    layout = Layout.of(module)
    vector = layout.flatten([p.detach() for p in module.parameters()])
    optimizer = ParameterOptimizer(vector, layout, lambda named: factory([p for _, p in named]))
    plain = factory(module.parameters())
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        gradient = torch.randn(layout.size, generator=generator)
        for parameter, view in zip(module.parameters(), layout.views(gradient), strict=True):
            parameter.grad = view.clone()
        plain.step()
        optimizer.step(gradient)
    assert torch.equal(vector, layout.flatten([p.detach() for p in module.parameters()]))


def test_an_optimizer_with_step_hooks_keeps_them():
    class Counting(torch.optim.SGD):
        def __init__(self, parameters):
            super().__init__(parameters, lr=0.1)
            self.steps = 0
            self.register_step_post_hook(lambda *_: setattr(self, "steps", self.steps + 1))

    layout = Layout(("w",), ((3,),))
    optimizer = ParameterOptimizer(torch.zeros(3), layout, lambda n: Counting([p for _, p in n]))
    optimizer.step(torch.ones(3))
    assert optimizer.inner.steps == 1


def a_buffer(count):
    module = nn.Linear(count, 1, bias=False)
    return EvaluationBuffer(module), module


@pytest.mark.parametrize(("count", "copied"), [(10, True), (300_000, False)])
def test_a_large_snapshot_is_held_and_a_small_one_copied(count, copied):
    buffer, module = a_buffer(count)
    own, snapshot = buffer.flat, torch.randn(count)
    kept = own.clone()
    buffer.hold(snapshot)
    assert torch.equal(module.weight.detach().reshape(-1), snapshot)
    assert (module.weight.data_ptr() == own.data_ptr()) is copied
    assert (module.weight.data_ptr() == snapshot.data_ptr()) is not copied
    # A copy goes to the buffer's own memory, never to what it held before.
    assert torch.equal(own, snapshot if copied else kept)


def test_what_was_held_is_not_written_by_the_next_copy():
    buffer, module = a_buffer(300_001)
    held = torch.randn(300_001)
    unaligned = torch.randn(300_002)[1:]
    buffer.hold(held)
    before = held.clone()
    buffer.hold(unaligned)
    assert torch.equal(module.weight.detach().reshape(-1), unaligned)
    assert module.weight.data_ptr() == buffer.flat.data_ptr()
    assert torch.equal(held, before)


def test_what_is_held_twice_running_is_not_copied_again():
    buffer = EvaluationBuffer(PROBLEM.model())
    first, other = torch.ones_like(buffer.flat), torch.zeros_like(buffer.flat)
    at = buffer.parameters[0]
    buffer.hold(first)
    assert at.data_ptr() != first.data_ptr()
    for snapshot in (first, first):
        buffer.hold(snapshot)
        assert at.data_ptr() == first.data_ptr()
    for snapshot in (other, first, other):
        buffer.hold(snapshot)
        assert at.data_ptr() == buffer.flat.data_ptr()
        assert torch.equal(buffer.flat, snapshot)


def test_a_small_gradient_is_joined_at_once_where_nobody_else_needs_it():
    made = []
    evaluator = SerialEvaluator(PROBLEM.model(), PROBLEM.loss, TRAIN, made.append)
    (job,) = jobs(1)
    evaluator.evaluate_one(job)
    assert job.vector.shape == job.snapshot.shape
    assert not made


def test_large_gradients_stay_in_pieces_and_are_joined_where_they_are_wanted(monkeypatch):
    monkeypatch.setattr(compute, "COPIED", 0)
    made = []

    def new(like):
        made.append(torch.empty_like(like))
        return made[-1]

    evaluator = SerialEvaluator(PROBLEM.model(), PROBLEM.loss, TRAIN, new)
    first, second = jobs(2)
    evaluator.evaluate_one(first)
    evaluator.evaluate_one(second)
    assert not made
    plain = SerialEvaluator(PROBLEM.model(), PROBLEM.loss, TRAIN)
    for pieces, job in zip((first.vector, second.vector), jobs(2), strict=True):
        plain.evaluate_one(job)
        assert [t.shape for t in pieces.tensors] == [p.shape for p in plain.buffer.parameters]
        gradient = Gradient(pieces, (0,), 0.0)
        assert gradient.dense is pieces
        assert torch.equal(gradient.vector, job.vector)
        assert gradient.vector is gradient.dense is made[-1]
    assert len(made) == 2


class Repeated(nn.Module):
    """Its gradient is one number, expanded to the parameter's shape."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))

    def forward(self, inputs):
        return self.weight.sum() * inputs.mean()


def test_a_gradient_that_is_no_piece_of_memory_is_joined(monkeypatch):
    monkeypatch.setattr(compute, "COPIED", 0)
    train = Split(torch.ones(4, 2), torch.zeros(4))
    evaluator = SerialEvaluator(Repeated(), lambda out, _: out, train, torch.empty_like)
    job = Job(torch.ones(6), torch.arange(4), 0)
    evaluator.evaluate_one(job)
    assert torch.equal(job.vector, torch.ones(6))


def test_parts_of_a_vector_in_pieces():
    layout = Layout(("a", "b", "c"), ((2, 3), (), (5,)))
    whole = torch.arange(12.0)
    pieces = PiecewiseVector(
        layout=layout, tensors=[v.clone() for v in layout.views(whole)], new=lambda: torch.empty(12)
    )
    assert (pieces.shape, pieces.nbytes) == ((12,), 48)
    for start in range(12):
        for stop in range(start + 1, 13):
            assert torch.equal(torch.cat(pieces.parts(start, stop)), whole[start:stop])
    before = pieces.tensors
    pieces.keep()
    before[0].zero_()
    assert torch.equal(pieces.dense(), whole)
    assert joined(whole) is whole
    assert torch.equal(joined(pieces), whole)


def test_freed_memory_is_kept_where_the_c_library_is_glibc():
    # In a process of its own: it is for life.
    code = "from offbeat.runtime.memory import keep_freed_memory; print(keep_freed_memory())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(platform.libc_ver()[0] == "glibc")
