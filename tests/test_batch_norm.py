"""Batch norm and dropout: statistics stay at home, and are estimated anew for each judged model."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import offbeat
from offbeat import Budget, Cluster
from offbeat.batch_norm import estimation_batches
from offbeat.experiment import Experiment
from offbeat.method import Method
from offbeat.methods import ADPSGD, METHODS, SGD, AllReduceSGD, AsyncSGD
from offbeat.problems import Split, Supervised
from offbeat.runs import Run, load_run
from offbeat.runtime.compute import Job, PoolEvaluator, SerialEvaluator, VmapEvaluator
from offbeat.runtime.loop import distribute
from offbeat.runtime.world import World

CLASSES = 3


@pytest.fixture(autouse=True)
def one_thread():
    """As in a run, for bits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images(count: int, seed: int) -> Split:
    """Noisy images (count, 1, 6, 6) of three patterns, in the order of their classes."""
    patterns = torch.randn(CLASSES, 1, 6, 6, generator=torch.Generator().manual_seed(99))
    targets = torch.arange(count) * CLASSES // count
    noise = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return Split(3.0 + 2.0 * (patterns[targets] + noise), targets)


def network(dropout: float = 0.2) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(64, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, CLASSES),
    )


def undropped() -> nn.Module:
    return nn.Sequential(*[layer for layer in network() if not isinstance(layer, nn.Dropout)])


def problem_of(factory, train: int = 600) -> Supervised:
    return Supervised(
        model_factory=factory,
        train=images(train, 0),
        test=images(150, 1),
        loss_function=F.cross_entropy,
        batch_size=8,
    )


PROBLEM = problem_of(network)
MOMENTUM = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
PLAIN = functools.partial(torch.optim.SGD, lr=0.05)


def trained(method: Method, workers: int = 4, **settings) -> Run:
    settings.setdefault("optimizer", PLAIN)
    settings.setdefault("budget", Budget(samples=1600))
    run = offbeat.simulate(method, PROBLEM, cluster=Cluster(workers=workers), **settings)
    assert run.error is None
    return run


def judged(module: nn.Module, split: Split) -> tuple[float, float]:
    module.eval()
    with torch.no_grad():
        outputs = module(split.inputs)
    right = (outputs.argmax(1) == split.targets).double().mean().item()
    return F.cross_entropy(outputs, split.targets).item(), right


@pytest.mark.parametrize("method", [SGD(), AllReduceSGD()])
def test_one_worker_is_a_plain_loop_and_update_bn_to_the_bit(method):
    problem = problem_of(network, train=2600)
    cluster, budget = Cluster(workers=1), Budget(samples=400)
    run = offbeat.simulate(method, problem, cluster=cluster, optimizer=MOMENTUM, budget=budget)

    world = World(
        Experiment(
            method=method, problem=problem, cluster=cluster, optimizer=MOMENTUM, budget=budget
        )
    )
    data = problem.data()
    torch.manual_seed(0)
    module = network()
    optimizer = MOMENTUM(module.parameters())
    for step in range(400 // problem.batch_size):
        batch = world.batches[0].indices(step)
        torch.manual_seed(step)  # What dropout draws from: seed 0, worker 0.
        loss = F.cross_entropy(module(data.train.inputs[batch]), data.train.targets[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    exponential = judged(module, data.test)

    count = len(data.train)
    assert count > 2048
    chosen = torch.tensor([i * count // 2048 for i in range(2048)])
    torch.manual_seed(0)
    update_bn([data.train.inputs[chosen[part::4]] for part in range(4)], module)
    last = run.metrics[-1]
    assert (last.loss, last.accuracy) == judged(module, data.test)
    for name, value in module.state_dict().items():
        assert torch.equal(run.state_dict[name], value), name
    assert exponential[0] != last.loss, "a moving average would have been another model"


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_trains_it_repeats_and_saves_what_can_be_loaded(name, tmp_path: Path):
    method = METHODS[name]
    run, again = trained(method()), trained(method())
    assert run.metrics[-1].loss < run.metrics[0].loss
    assert torch.equal(run.vector, again.vector)
    assert run.metrics == again.metrics
    assert run.trace.hash() == again.trace.hash()

    run.save(tmp_path)
    module = network()
    module.load_state_dict(load_file(tmp_path / "model.safetensors"))
    last = run.metrics[-1]
    assert judged(module, PROBLEM.data().test) == (last.loss, last.accuracy)
    # The statistics are those of this model: a fresh module's would judge it otherwise.
    unestimated = network()
    unestimated.load_state_dict(run.parameters, strict=False)
    assert judged(unestimated, PROBLEM.data().test)[0] != last.loss


@pytest.mark.parametrize("method", [AsyncSGD(), ADPSGD(), AllReduceSGD()])
def test_processes_train_it_and_the_launcher_estimates(method, tmp_path: Path):
    run = offbeat.run(
        method,
        PROBLEM,
        cluster=Cluster(workers=2),
        optimizer=PLAIN,
        budget=Budget(samples=1600),
        directory=tmp_path,
    )
    assert run.error is None
    last = run.metrics[-1]
    assert last.loss < run.metrics[0].loss
    module = network()
    module.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert judged(module, PROBLEM.data().test) == (last.loss, last.accuracy)
    if method.synchronous:
        simulated = trained(method, workers=2, evaluator="serial")
        assert torch.equal(run.vector, simulated.vector)
        assert all(torch.equal(value, simulated.buffers[key]) for key, value in run.buffers.items())


def test_samples_of_the_estimate_are_spread_over_the_data_and_its_minibatches():
    inputs = torch.arange(5000.0)
    batches = estimation_batches(inputs)
    assert [len(batch) for batch in batches] == [512] * 4
    assert torch.cat(batches).unique().numel() == 2048
    for batch in batches:
        assert batch.min() < 10
        assert batch.max() > 4980
    assert [len(batch) for batch in estimation_batches(torch.arange(513.0))] == [257, 256]
    assert torch.equal(estimation_batches(torch.arange(7.0))[0], torch.arange(7.0))


def jobs(module: nn.Module, count: int, samples: int) -> list[Job]:
    generator = torch.Generator().manual_seed(0)
    start = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    return [
        Job(
            start * torch.empty_like(start).uniform_(0.5, 1.5, generator=generator),
            torch.randint(samples, (8,), generator=generator),
            seed,
        )
        for seed in range(count)
    ]


def answers(evaluator, asked: list[Job]) -> list[Tensor]:
    for job in asked:
        evaluator.ask(job)
    for job in asked:
        evaluator.answer(job)
    evaluator.close()
    return [job.vector for job in asked]


def test_every_evaluator_normalises_by_the_minibatch():
    problem = problem_of(undropped)
    train = problem.data().train
    module = undropped()
    plans = [jobs(module, 6, len(train)) for _ in range(3)]
    serial = answers(SerialEvaluator(undropped(), problem.loss, train), plans[0])
    pool = answers(PoolEvaluator(undropped, problem.loss, train, 2), plans[1])
    batched = answers(VmapEvaluator(undropped(), problem.loss, train), plans[2])
    for job, expected, threaded, together in zip(plans[0], serial, pool, batched, strict=True):
        assert torch.equal(threaded, expected)
        torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-6)
        nn.utils.vector_to_parameters(job.snapshot, module.parameters())
        module.train()
        loss = F.cross_entropy(module(train.inputs[job.indices]), train.targets[job.indices])
        plain = torch.autograd.grad(loss, list(module.parameters()))
        torch.testing.assert_close(torch.cat([g.reshape(-1) for g in plain]), expected)


@pytest.mark.parametrize("evaluator", ["serial", "pool", "vmap"])
def test_whole_runs_of_every_evaluator_agree(evaluator):
    problem = problem_of(undropped)
    simulate = functools.partial(
        offbeat.simulate, SGD(), problem, cluster=Cluster(workers=4), optimizer=PLAIN,
        budget=Budget(samples=320),
    )  # fmt: skip
    run, serial = simulate(evaluator=evaluator), simulate(evaluator="serial")
    torch.testing.assert_close(run.vector, serial.vector, rtol=1e-4, atol=1e-5)
    assert run.metrics[-1].loss == pytest.approx(serial.metrics[-1].loss, rel=1e-4)


def test_it_is_chosen_for_threads_where_convolutional_and_serial_with_dropout():
    assert trained(AsyncSGD()).resolved["evaluator"] == "serial"
    run = offbeat.simulate(
        AsyncSGD(), problem_of(undropped), cluster=Cluster(workers=4), budget=Budget(samples=64)
    )
    assert run.resolved["evaluator"] == "pool"


def test_evaluation_leaves_torch_s_generator_alone_and_repeats():
    world = World(
        Experiment(
            method=SGD(), problem=PROBLEM, cluster=Cluster(workers=1), optimizer=PLAIN,
            budget=Budget(samples=80),
        )
    )  # fmt: skip
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = world.evaluate(world.initial)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    world.evaluate(2.0 * world.initial)
    assert world.evaluate(world.initial) == first, "nothing is kept from another model"


def simulated(*layers: nn.Module, batch_size: int = 8) -> Run:
    problem = Supervised(
        model_factory=lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 8), *layers,
                                            nn.Linear(8, CLASSES)),
        train=images(60, 0),
        test=images(30, 1),
        loss_function=F.cross_entropy,
        batch_size=batch_size,
    )  # fmt: skip
    return offbeat.simulate(
        SGD(), problem, cluster=Cluster(workers=1), budget=Budget(samples=8 * batch_size)
    )


class Averaging(nn.Module):
    """Keeps a moving average of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.average.lerp_(x.detach().mean(0), 0.1)
        return x - self.average


class Masking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, 1.0] * 4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def test_statistics_that_could_not_be_made_right_are_refused_by_name():
    with pytest.raises(ValueError, match=r"Supervised: 2 \(BatchNorm1d\) is frozen in eval mode"):
        simulated(nn.BatchNorm1d(8).eval())
    text = r"buffer 2\.average of the model changes in training, and only parameters travel"
    with pytest.raises(ValueError, match=text):
        simulated(Averaging())
    unflat = [nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()]
    text = r"3 \(InstanceNorm1d\) keeps running statistics, which only batch norm may"
    with pytest.raises(ValueError, match=text):
        simulated(*unflat)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        simulated(nn.BatchNorm1d(8), batch_size=1)


def test_constant_buffers_and_batch_norm_without_statistics_are_fine(tmp_path: Path):
    run = simulated(Masking(), nn.BatchNorm1d(8, track_running_stats=False))
    assert run.error is None
    assert list(run.buffers) == ["2.mask"]


def test_a_saved_run_holds_its_buffers(tmp_path: Path):
    run = offbeat.simulate(SGD(), cluster=Cluster(workers=1), budget=Budget(samples=160))
    run.buffers["statistics"] = torch.arange(3.0)
    run.save(tmp_path)
    stored = load_run(tmp_path)
    assert torch.equal(stored.vector, run.vector)
    assert list(stored.buffers) == ["statistics"]
    assert torch.equal(stored.buffers["statistics"], torch.arange(3.0))


def test_the_common_model_s_statistics_can_be_estimated_in_the_user_s_loop(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    train = PROBLEM.data().train
    torch.manual_seed(0)
    model = network()
    optimizer = PLAIN(model.parameters())
    with distribute(model, optimizer, method=AsyncSGD()) as optimizer:
        F.cross_entropy(model(train.inputs[::20]), train.targets[::20]).backward()
        optimizer.step()
        own = {name: buffer.clone() for name, buffer in model.named_buffers()}
        with optimizer.consensus() as common:
            offbeat.reestimate_statistics(common, train.inputs.split(64))
            assert common.training
            assert not torch.equal(common[1].running_mean, own["1.running_mean"])
        for name, buffer in model.named_buffers():
            assert torch.equal(buffer, own[name]), "the rank's own come back"
    assert math.isfinite(judged(model, train)[0])
