"""Local SGD, post-local and hierarchical, against PyTorch's own classes over its DDP."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

import averaging_job
from averaging_job import Plan
from loop_ranks import run_ranks
from offbeat.cluster import Cluster
from offbeat.methods import HierarchicalLocalSGD, LocalSGD, PostLocalSGD
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.testing import fingerprint, simulated, small_experiment
from test_theory import by_hand, close, run_of

STEPS, SWITCH = 23, 9
PLANS = {
    LocalSGD(local_steps=5): Plan({5: 4}),
    PostLocalSGD(switch=SWITCH, local_steps=4): Plan({4: 4}, switch=SWITCH),
    HierarchicalLocalSGD(local_steps=2, block_steps=3): Plan({2: 2, 6: 4}),
    HierarchicalLocalSGD(local_steps=5, block_steps=2): Plan({5: 2, 10: 4}),
    HierarchicalLocalSGD(local_steps=1, block_steps=7): Plan({1: 2, 7: 4}),
}


FROM_ZERO = (LocalSGD(local_steps=5), HierarchicalLocalSGD(local_steps=2, block_steps=3))
# Method, momentum, and what torch's averager counts the first step as.
RUNS = [*product(PLANS, (0.0, 0.9), (1,)), *product(FROM_ZERO, (0.0,), (0,))]


@pytest.fixture(scope="module")
def torch_s(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[LocalSGD, float, int], Tensor]:
    """Parameters (workers, steps, d) of each of RUNS."""
    folder = tmp_path_factory.mktemp("averaged")
    world = World(small_experiment(LocalSGD()))
    train = world.data.train
    rows = torch.stack(
        [torch.stack([batches.indices(t) for t in range(STEPS)]) for batches in world.batches]
    )
    plans = [replace(PLANS[method], momentum=m, first=first) for method, m, first in RUNS]
    ended = run_ranks(averaging_job.main, 4, folder, train.inputs[rows], train.targets[rows], plans)
    assert [rank.returncode for rank in ended] == [0] * 4, ended
    after = torch.stack([torch.load(folder / f"{r}.pt") for r in range(4)]).swapaxes(0, 1)
    return dict(zip(RUNS, after, strict=True))


def nodes_after(method, steps, momentum=0.0):
    experiment = small_experiment(method, steps=steps, lr=0.05, momentum=momentum)
    simulation = Simulation(experiment)
    assert simulation.run().error is None
    return simulation.nodes


def parameters_of(nodes) -> Tensor:
    """(workers, d)."""
    return torch.stack([node.parameters for node in nodes])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("steps", [1, 4, 5, 9, 10, 13, 20, STEPS])
def test_workers_are_where_torch_s_model_averagers_over_ddp_bring_them(torch_s, steps, momentum):
    for method in PLANS:
        if not (momentum and isinstance(method, PostLocalSGD)):  # The next test's.
            ours = parameters_of(nodes_after(method, steps, momentum))
            close(ours, torch_s[method, momentum, 1][:, steps - 1])


def test_post_local_sgd_with_momentum_differs_from_torch_s_where_it_says_so(torch_s):
    method = PostLocalSGD(switch=SWITCH, local_steps=4)
    theirs = torch_s[method, 0.9, 1]
    # Up to the switch the mean of the workers' momenta is the momentum of the mean.
    nodes = nodes_after(method, SWITCH, momentum=0.9)
    close(parameters_of(nodes), theirs[:, SWITCH - 1])
    # From then on each goes on with its own, where torch's all have the mean.
    states = [node.optimizer.inner.state.values() for node in nodes]
    own = torch.stack([torch.cat([s["momentum_buffer"] for s in state]) for state in states])
    after = parameters_of(nodes_after(method, SWITCH + 1, momentum=0.9))
    apart = after - theirs[:, SWITCH]
    close(apart, -0.05 * 0.9 * (own - own.mean(dim=0)))
    assert apart.abs().max() > 1e-4


@pytest.mark.parametrize("method", FROM_ZERO, ids=["local", "hierarchical"])
def test_torch_s_averagers_as_they_come_average_after_the_first_step(torch_s, method):
    gradient = by_hand(small_experiment(method))
    sizes = PLANS[method].periods
    x = torch.zeros(4, 8, dtype=torch.double)
    for step in range(STEPS):
        x = torch.stack([x[r] - 0.05 * gradient(x[r], r, step) for r in range(4)])
        size = max((size for period, size in sizes.items() if step % period == 0), default=1)
        x = x.view(-1, size, 8).mean(dim=1).repeat_interleave(size, dim=0)
        close(torch_s[method, 0.0, 0][:, step], x)


@pytest.mark.parametrize("workers", [1, 3, 5])
def test_it_is_its_pseudocode_with_a_smaller_last_group(workers):
    method = HierarchicalLocalSGD(local_steps=2, block_steps=3, group_size=2)
    run, gradient = run_of(method, workers=workers, steps=22)
    x = torch.zeros(workers, 8, dtype=torch.double)
    for step in range(22):
        x = torch.stack([x[r] - 0.05 * gradient(x[r], r, step) for r in range(workers)])
        if (step + 1) % 6 == 0:
            x = x.mean(dim=0).repeat(workers, 1)
        elif (step + 1) % 2 == 0:
            x = torch.cat([part.mean(dim=0).repeat(len(part), 1) for part in x.split(2)])
    close(run.vector, x.mean(dim=0))


def test_one_block_step_is_local_sgd_to_the_bit():
    local, _ = run_of(LocalSGD(local_steps=4))
    once, _ = run_of(HierarchicalLocalSGD(local_steps=4, block_steps=1))
    assert fingerprint(once) == fingerprint(local)
    # One group of all averages as often, under another name.
    whole, _ = run_of(HierarchicalLocalSGD(local_steps=4, block_steps=3, group_size=4))
    assert torch.equal(whole.vector, local.vector)


def test_all_workers_meet_as_often_as_their_period_says():
    def bytes_of(method):
        run = simulated(small_experiment(method, steps=48, cluster=Cluster(workers=4)))
        return run.metrics[-1].bytes

    rarely, often = bytes_of(LocalSGD(local_steps=12)), bytes_of(LocalSGD(local_steps=3))
    between = bytes_of(HierarchicalLocalSGD(local_steps=3, block_steps=4, group_size=2))
    assert rarely < between < often


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"local_steps": 0}, "local_steps is 0; it must be at least 1"),
        ({"block_steps": 0}, "block_steps is 0; it must be at least 1"),
        ({"group_size": 0}, "group_size is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        small_experiment(HierarchicalLocalSGD(**settings), workers=4)
