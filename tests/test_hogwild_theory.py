"""The paper's step size and number of updates."""

import math

import numpy as np
import pytest

from offbeat.hogwild import Conditions, Sparsity, circulant, step_size, updates
from offbeat.hogwild.compiling import compiled

SPARSE = Sparsity(omega=3, delta=0.04, rho=0.1)


def conditions(**changed) -> Conditions:
    known = {"convexity": 0.5, "smoothness": 2.0, "gradient": 3.0, "lag": 4.0, "sparsity": SPARSE}
    return Conditions(**(known | changed))


def test_the_formulas_by_hand():
    # 1 + 6 * 0.1 * 4 + 4 * 16 * 3 * 0.2 = 41.8;  2 * 2 * 9 * 3 = 108
    assert step_size(conditions(), 0.01, 0.5) == pytest.approx(0.5 * 0.01 * 0.5 / (108 * 41.8))
    # 1 + 2.4 + 6 * 16 * 3 * 0.2 = 61;  log(2 * 5 / 0.01) = log 1000
    expected = 108 * 61 * math.log(1000) / (0.25 * 0.5 * 0.01)
    assert updates(conditions(), 0.01, 5.0, 0.5) == math.ceil(expected)


def test_without_lag_it_is_serial_sgd_s():
    alone = conditions(lag=0.0)
    assert step_size(alone, 0.01) == pytest.approx(0.01 * 0.5 / 108)
    assert updates(alone, 0.01, 5.0) == math.ceil(108 * math.log(1000) / (0.25 * 0.01))


def test_the_step_falls_with_lag_and_with_density():
    lags = [step_size(conditions(lag=lag), 0.01) for lag in (0, 1, 10)]
    dense = Sparsity(omega=3, delta=1.0, rho=1.0)
    assert lags == sorted(lags, reverse=True)
    assert step_size(conditions(sparsity=dense), 0.01) < step_size(conditions(), 0.01)


@pytest.mark.parametrize("lag", [0, 2])
def test_so_many_updates_with_that_step_do_reach_the_error(lag):
    """Least squares on a ring, where c, L and M are known, with gradients `lag` updates old."""
    vertices, pattern, error = 8, np.array([0, 1]), 0.02
    edges = circulant(vertices, vertices, pattern)
    values = np.array([0.9, 0.3])
    rows = np.zeros((vertices, vertices))
    for e in range(vertices):
        rows[e, (e + pattern) % vertices] = values
    hessian = rows.T @ rows / vertices
    convexity, smoothness = np.linalg.eigvalsh(hessian)[[0, -1]]
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal(vertices) * 0.5
    labels = rows @ hidden
    # M holds where points are so far from the optimum at most, and that is looked at below.
    radius = 3 * np.linalg.norm(hidden)
    known = Conditions(
        convexity=convexity,
        smoothness=smoothness,
        gradient=(np.linalg.norm(rows, axis=1) ** 2).max() * radius,
        lag=lag,
        sparsity=edges.sparsity(),
    )
    count = updates(known, error, hidden @ hidden)
    ends = [
        descend(rows, labels, pattern, step_size(known, error), count, lag, seed)
        for seed in range(3)
    ]
    errors = [np.mean((rows @ x - labels) ** 2) / 2 for x, _ in ends]
    assert np.mean(errors) <= error < np.mean(labels**2) / 2
    assert max(norm for _, norm in ends) < radius - np.linalg.norm(hidden)


@compiled
def descend(rows, labels, pattern, step, count, lag, seed):
    """x after `count` updates of one coordinate, and the largest norm that it had."""
    np.random.seed(seed)
    vertices, touched = len(labels), len(pattern)
    # The last points, of which a gradient is taken at the oldest.
    recent = np.zeros((lag + 1, vertices))
    x, largest = np.zeros(vertices), 0.0
    for k in range(count):
        recent[k % (lag + 1)] = x
        seen = recent[(k + 1) % (lag + 1)]
        e = np.random.randint(vertices)
        v = (e + pattern[np.random.randint(touched)]) % vertices
        x[v] -= step * touched * (np.dot(rows[e], seen) - labels[e]) * rows[e, v]
        largest = max(largest, np.linalg.norm(x))
    return x, largest


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"convexity": 0.0}, "convexity is 0; it must be positive and finite"),
        ({"smoothness": 0.1}, "convexity 0.5 is more than smoothness 0.1"),
        ({"gradient": math.inf}, "gradient is inf"),
        ({"lag": -1.0}, "lag is -1; it must not be negative"),
    ],
)
def test_conditions_that_cannot_be(changed, said):
    with pytest.raises(ValueError, match=said):
        conditions(**changed)


def test_arguments_that_cannot_be():
    with pytest.raises(ValueError, match="error is 0; it must be positive"):
        step_size(conditions(), 0)
    with pytest.raises(ValueError, match=r"theta is 2; it must be in \(0, 1\]"):
        step_size(conditions(), 0.1, 2)
    with pytest.raises(ValueError, match="distance is 0; it must be positive"):
        updates(conditions(), 0.1, 0)
