"""What methods send, against what their papers say."""

import pytest

from offbeat.methods import (
    SGD,
    AllReduceSGD,
    AsyncSGD,
    DiLoCo,
    LocalSGD,
    PostLocalSGD,
    PowerSGD,
    StochasticGradientPush,
    StreamingDiLoCo,
    SyncSGD,
)
from offbeat.traffic import models_sent


@pytest.mark.parametrize(
    ("method", "workers", "models"),
    [
        (SGD(), 1, 0.0),
        # 2 (n - 1) / n of the model: Patarasuk and Yuan 2009.
        (AllReduceSGD(), 2, 1.0),
        (AllReduceSGD(), 8, 1.75),
        (LocalSGD(local_steps=8), 4, 1.5 / 8),
        # Once it is local.
        (PostLocalSGD(local_steps=16, switch=50), 4, 1.5 / 16),
        (DiLoCo(local_steps=16), 4, 1.5 / 16),
        # As much as DiLoCo, at other times.
        (StreamingDiLoCo(local_steps=16, fragments=2), 4, 1.5 / 16),
        # A push and a pull.
        (AsyncSGD(), 4, 2.0),
        (SyncSGD(), 4, 2.0),
        (StochasticGradientPush(), 4, 1.0),
    ],
    ids=str,
)
def test_what_is_sent_is_what_the_papers_count(method, workers, models):
    # Headers and counters come on top.
    assert models <= models_sent(method, workers, side=160) <= 1.005 * models


def test_power_sgd_sends_two_thin_factors_of_each_matrix():
    side, rank = 160, 2
    # P and Q, (side, rank) each, of the matrix; all-reduced, which is 1.5 of each with 4 workers.
    expected = 1.5 * 2 * rank / side
    found = models_sent(PowerSGD(rank=rank), 4, side=side)
    assert expected <= found <= 1.05 * expected
