"""Averaged iterates and learning rates for larger batches."""

import math

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from offbeat.optim import linear_scaling, polyak, square_root_scaling
from offbeat.schedule import XuSchedule


def iterates(count: int) -> torch.Tensor:
    """(count, 2)"""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 2, generator=generator, dtype=torch.float64)


def means(path: torch.Tensor, start: int) -> list[torch.Tensor]:
    model = nn.Module()
    model.x = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    averaged = AveragedModel(model, multi_avg_fn=polyak(start))
    found = []
    for x in path:
        model.x.data.copy_(x)
        averaged.update_parameters(model)
        found.append(averaged.module.x.detach().clone())
    return found


@pytest.mark.parametrize("start", [0, 1, 2, 7])
def test_it_is_the_mean_of_what_came_after_the_start(start: int):
    path = iterates(12)
    for t, mean in enumerate(means(path, start), start=1):
        expected = path[min(start, t - 1) : t].mean(dim=0)
        torch.testing.assert_close(mean, expected, rtol=0, atol=1e-12)


def test_it_is_torch_s_own_mean_of_asgd():
    # Its iterates are not those of SGD, but its mean of them is this one.
    x = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = torch.optim.ASGD([x], lr=0.1, t0=4)
    path, kept = [], []
    for k in range(12):
        x.grad = iterates(12)[k]
        optimizer.step()
        path.append(x.detach().clone())
        kept.append(optimizer.state[x]["ax"].clone())
    # It sets the weight of the next step's mean after the present one: one step later than here.
    # It keeps that weight in single precision.
    for ours, theirs in zip(means(torch.stack(path), 5), kept, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_averaging_late_beats_the_last_iterate_and_averaging_from_the_first():
    # A noisy quadratic, from far away: what the mean is for, and what t0 is for.
    generator = torch.Generator().manual_seed(3)
    curvature = torch.tensor([1.0, 0.1], dtype=torch.float64)
    schedule = XuSchedule(decay=0.01, power=0.75)
    x = torch.full((2,), 100.0, dtype=torch.float64)
    path = []
    for t in range(4000):
        noise = torch.randn(2, generator=generator, dtype=torch.float64)
        x = x - 0.5 * schedule.factor(t) * (curvature * x + noise)
        path.append(x)

    def excess(point: torch.Tensor) -> float:
        return float((curvature * point.square()).sum() / 2)

    trajectory = torch.stack(path)
    late, whole = means(trajectory, 1000)[-1], means(trajectory, 0)[-1]
    last = sum(excess(point) for point in path[-500:]) / 500
    assert excess(late) < 0.5 * last
    assert excess(late) < 0.5 * excess(whole)


def test_a_start_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="polyak: start is -1; it must not be negative"):
        polyak(-1)


def test_rates_for_larger_batches():
    assert linear_scaling(0.1, batch_size=8192, base_batch_size=256) == pytest.approx(3.2)
    assert square_root_scaling(0.1, batch_size=1024, base_batch_size=256) == pytest.approx(0.2)
    assert square_root_scaling(0.3, batch_size=64, base_batch_size=64) == 0.3
    # The paper on LAMB, ResNet-50: 4 / (2^3 100) at 512 samples, 4 / 100 at 32K.
    largest = square_root_scaling(4 / (2**3 * 100), batch_size=32768, base_batch_size=512)
    assert largest == pytest.approx(4 / 100)
    assert math.isclose(linear_scaling(1.0, batch_size=1, base_batch_size=4), 0.25)


@pytest.mark.parametrize("rule", [linear_scaling, square_root_scaling])
def test_batches_of_nothing_are_refused(rule):
    with pytest.raises(ValueError, match="batch sizes 0 and 64 must both be at least 1 sample"):
        rule(0.1, batch_size=0, base_batch_size=64)
