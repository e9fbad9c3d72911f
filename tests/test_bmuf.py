"""Block momentum: its formula, and its identities with Local SGD, SlowMo and DiLoCo."""

import pytest
import torch

from offbeat.methods import BMUF, SGD, DiLoCo, LocalSGD, SlowMo
from offbeat.methods.bmuf import block_update
from offbeat.testing import small_experiment
from test_theory import close, run_of


def test_the_block_update_by_its_formula():
    model, change = block_update(
        model=torch.tensor([1.0]), start=torch.tensor([1.5]), mean=torch.tensor([3.5]),
        change=torch.tensor([8.0]), momentum=0.5, lr=0.25,
    )  # fmt: skip
    assert change.tolist() == [0.5 * 8 + 0.25 * 2]
    assert model.tolist() == [1 + 4.5]


@pytest.mark.parametrize("variant", ["classical", "nesterov"])
def test_it_is_its_pseudocode(variant):
    eta, zeta = 0.6, 0.8
    method = BMUF(local_steps=6, block_momentum=eta, block_lr=zeta, variant=variant)
    run, gradient = run_of(method, workers=3)
    model, change = torch.zeros(8, dtype=torch.double), torch.zeros(8, dtype=torch.double)
    start = model
    for block in range(4):
        ends = []
        for rank in range(3):
            x = start.clone()
            for step in range(6 * block, 6 * block + 6):
                x = x - 0.05 * gradient(x, rank, step)
            ends.append(x)
        change = eta * change + zeta * (torch.stack(ends).mean(dim=0) - start)
        model = model + change
        start = model + eta * change if variant == "nesterov" else model
    close(run.vector, start)


@pytest.mark.parametrize("variant", ["classical", "nesterov"])
def test_without_momentum_it_is_local_sgd(variant):
    block, _ = run_of(BMUF(local_steps=6, block_momentum=0.0, variant=variant), momentum=0.9)
    local, _ = run_of(LocalSGD(local_steps=6), momentum=0.9)
    close(block.vector, local.vector)


def test_classical_block_momentum_is_slow_momentum_of_rate_one():
    block, _ = run_of(BMUF(local_steps=6, block_momentum=0.6), momentum=0.9)
    slow, _ = run_of(
        SlowMo(inner=SGD(), period=6, alpha=1.0, beta=0.6, buffers="keep"), momentum=0.9
    )
    close(block.vector, slow.vector)


def test_nesterov_block_momentum_is_the_outer_step_of_diloco():
    method = BMUF(local_steps=6, block_momentum=0.9, block_lr=0.7, variant="nesterov")
    block, _ = run_of(method, momentum=0.9)
    diloco, _ = run_of(DiLoCo(local_steps=6, outer_lr=0.7, outer_momentum=0.9), momentum=0.9)
    close(block.vector, diloco.vector)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_its_momentum_is_by_default_one_minus_one_over_the_workers(workers):
    default, _ = run_of(BMUF(local_steps=6), workers=workers)
    given, _ = run_of(BMUF(local_steps=6, block_momentum=1 - 1 / workers), workers=workers)
    assert torch.equal(default.vector, given.vector)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"block_momentum": 1.0}, "block_momentum is 1; it must be from 0 to below 1"),
        ({"block_lr": 0.0}, "block_lr is 0; it must be positive"),
        ({"local_steps": 0}, "local_steps is 0; it must be at least 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        small_experiment(BMUF(**settings), workers=4)
