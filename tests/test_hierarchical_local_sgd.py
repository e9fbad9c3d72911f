"""Local SGD and its hierarchical kind, against PyTorch's own model averagers."""

from pathlib import Path

import pytest
import torch

import averaging_job
from loop_ranks import run_ranks
from offbeat.cluster import Cluster
from offbeat.methods import HierarchicalLocalSGD, LocalSGD
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.testing import fingerprint, simulated, small_experiment
from test_theory import close, run_of

PLANS = {
    LocalSGD(local_steps=5): {5: 4},
    HierarchicalLocalSGD(local_steps=2, block_steps=3): {2: 2, 6: 4},
    HierarchicalLocalSGD(local_steps=5, block_steps=2): {5: 2, 10: 4},
    HierarchicalLocalSGD(local_steps=1, block_steps=7): {1: 2, 7: 4},
}
"""By method, the workers of the groups that average, by period."""


def test_workers_end_where_torch_s_model_averagers_bring_them(tmp_path: Path):
    steps = 23
    world = World(small_experiment(LocalSGD()))
    train = world.data.train
    rows = torch.stack(
        [torch.stack([batches.indices(t) for t in range(steps)]) for batches in world.batches]
    )
    ended = run_ranks(
        averaging_job.main, 4, tmp_path, train.inputs[rows], train.targets[rows], [*PLANS.values()]
    )
    assert [rank.returncode for rank in ended] == [0] * 4, ended
    expected = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    for number, method in enumerate(PLANS):
        simulation = Simulation(small_experiment(method, steps=steps, lr=0.05))
        assert simulation.run().error is None
        for node in simulation.nodes:
            close(node.parameters, expected[node.rank][number])


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
