"""DiLoCo: identities with data-parallel and Local SGD, and torchft's outer step."""

import dataclasses
import functools

import pytest
import torch
from torch import nn

from offbeat.methods import AllReduceSGD, DiLoCo, LocalSGD, StreamingDiLoCo
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.testing import fingerprint, simulated, small_experiment
from power_sgd_ranks import experiment
from test_theory import close, run_of


def test_one_step_and_plain_outer_sgd_is_data_parallel():
    diloco, _ = run_of(DiLoCo(local_steps=1, outer_lr=1.0, outer_momentum=0.0))
    parallel, _ = run_of(AllReduceSGD())
    close(diloco.vector, parallel.vector)


def test_plain_outer_sgd_of_rate_one_is_local_sgd():
    diloco, _ = run_of(DiLoCo(local_steps=6, outer_lr=1.0, outer_momentum=0.0), momentum=0.9)
    local, _ = run_of(LocalSGD(local_steps=6), momentum=0.9)
    close(diloco.vector, local.vector)


def test_it_is_the_streaming_kind_of_one_fragment_without_overlap_and_mixing():
    diloco, _ = run_of(DiLoCo(local_steps=6), momentum=0.9)
    streaming = StreamingDiLoCo(local_steps=6, fragments=1, overlap=0, mixing=0.0)
    streamed, _ = run_of(streaming, momentum=0.9)
    assert fingerprint(diloco) == fingerprint(streamed)


@pytest.mark.parametrize("workers", [1, 3])
def test_it_is_nesterov_s_momentum_on_the_mean_change(workers):
    run, gradient = run_of(DiLoCo(local_steps=6), workers=workers)
    theta = torch.zeros(8, dtype=torch.double)
    outer = torch.nn.Parameter(theta.clone())
    sgd = torch.optim.SGD([outer], lr=0.7, momentum=0.9, nesterov=True)
    m = torch.zeros_like(theta)
    for block in range(4):
        changes = []
        for rank in range(workers):
            x = theta.clone()
            for step in range(6 * block, 6 * block + 6):
                x = x - 0.05 * gradient(x, rank, step)
            changes.append(theta - x)
        delta = torch.stack(changes).mean(dim=0)
        m = 0.9 * m + delta
        theta = theta - 0.7 * (delta + 0.9 * m)
        outer.grad = delta
        sgd.step()
        close(outer.detach(), theta)
    close(run.vector, theta)


def test_it_is_the_update_that_torchft_documents():
    # torchft.local_sgd.DiLoCo: every `sync_every` inner steps the gradient of each parameter is its
    # pseudogradient, what was saved less what it is; they are averaged, parameters restored, the
    # outer optimizer steps on them, and they are saved anew.
    H, blocks = 3, 4
    planned = dataclasses.replace(
        experiment(1, steps=H * blocks),
        method=DiLoCo(local_steps=H, outer_lr=0.7, outer_momentum=0.9),
        optimizer=functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    )
    run, world = simulated(planned), World(planned)
    train, ranks = world.data.train, range(planned.cluster.workers)
    models = [world.make_module() for _ in ranks]
    inner = [planned.optimizer(model.parameters()) for model in models]
    outer = [
        torch.optim.SGD(model.parameters(), lr=0.7, momentum=0.9, nesterov=True) for model in models
    ]
    saved = [[p.detach().clone() for p in model.parameters()] for model in models]
    for step in range(H * blocks):
        for rank in ranks:
            rows = world.batches[rank].indices(step)
            inner[rank].zero_grad()
            loss = nn.functional.mse_loss(models[rank](train.inputs[rows]), train.targets[rows])
            loss.backward()
            inner[rank].step()
        if (step + 1) % H:
            continue
        for parameters in zip(*(model.parameters() for model in models), *saved, strict=True):
            local, kept = parameters[: len(ranks)], parameters[len(ranks) :]
            mean = torch.stack([s - p.detach() for s, p in zip(kept, local, strict=True)]).mean(0)
            for s, p in zip(kept, local, strict=True):
                p.data.copy_(s)
                p.grad = mean.clone()
        for rank in ranks:
            outer[rank].step()
            saved[rank] = [p.detach().clone() for p in models[rank].parameters()]
    theirs = torch.cat([p.detach().flatten() for p in models[0].parameters()])
    assert (theirs - world.initial).abs().max() > 0.01
    close(run.vector, theirs)


def test_the_inner_optimizer_s_buffers_stay_with_their_worker_and_are_not_reset():
    # Two workers of opposite momentum would be alike if it were averaged, or reset.
    simulation = Simulation(
        small_experiment(DiLoCo(local_steps=4), workers=2, steps=8, momentum=0.9)
    )
    assert simulation.run().error is None
    first, second = (
        torch.cat([s["momentum_buffer"] for s in node.optimizer.inner.state.values()])
        for node in simulation.nodes
    )
    assert first.abs().max() > 0
    assert not torch.equal(first, second)
    assert torch.equal(*(node.parameters for node in simulation.nodes))
