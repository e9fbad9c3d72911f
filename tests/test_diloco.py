"""DiLoCo: identities with data-parallel SGD, Local SGD and its streaming kind; its outer step."""

import pytest
import torch

from offbeat.methods import AllReduceSGD, DiLoCo, LocalSGD, StreamingDiLoCo
from offbeat.runtime.simulated import Simulation
from offbeat.testing import fingerprint, small_experiment
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
