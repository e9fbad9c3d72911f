"""The kinds of separable costs: their arrays, and their gradients and values, compiled.

`costs` says what the functions mean, and finds the ones of a kind.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .compiling import compiled

HINGE, LOGISTIC, SQUARED = 0, 1, 2


class LinearCosts(NamedTuple):
    """f_e(x) = loss(score; y_e) + sum over u in e of shrinkage_eu x_u^2 / 2; score = sum z_eu x_u.

    hinge: max(0, 1 - y score); logistic: log(1 + exp(-y score)); squared: (score - y)^2 / 2.
    """

    offsets: NDArray[np.int64]  # (|E| + 1,)
    vertices: NDArray[np.int32]  # (entries,)
    values: NDArray[Any]  # (entries,) z
    shrinkage: NDArray[Any]  # (entries,)
    labels: NDArray[Any]  # (|E|,) y; -1 or 1 for hinge and logistic
    loss: int
    penalized: bool  # whether any shrinkage is not 0


class FactorCosts(NamedTuple):
    """f_e(L, R) = (L_u . R_v - Z_e)^2 + (shrinkage_u |L_u|^2 + shrinkage_v |R_v|^2) / 2."""

    vertices: NDArray[np.int32]  # (2 |E|,) u and v of each edge; the columns come after the rows
    ratings: NDArray[Any]  # (|E|,) Z
    shrinkage: NDArray[Any]  # (vertices,)
    rank: int


class CutCosts(NamedTuple):
    """f_e(x) = w_e |x_u - x_v|_1, or w_e |x_u - label|_1 for an edge to a terminal.

    Each x_v is a point of the simplex with a corner per label, onto which it is projected after
    every step.
    """

    offsets: NDArray[np.int64]  # (|E| + 1,)
    vertices: NDArray[np.int32]
    weights: NDArray[Any]  # (|E|,)
    terminals: NDArray[np.int32]  # (|E|,) the label of an edge's terminal; -1 where it has none
    ways: int


class PerceptronCosts(NamedTuple):
    """f_e(x) = cross-entropy of a network with one hidden layer of ReLUs; e touches all of x."""

    inputs: NDArray[Any]  # (|E|, features)
    labels: NDArray[np.int64]  # (|E|,)
    vertices: NDArray[np.int32]  # (d,) 0, 1, ...
    hidden: int
    classes: int


Costs = LinearCosts | FactorCosts | CutCosts | PerceptronCosts


def linear_gradient(costs: Any, edge: Any, seen: Any, change: Any) -> Any:
    # Slices would be counted, at every edge and in memory that all threads write to; and an index
    # that has a sign could count from the end, which keeps the loops from vector registers.
    first = np.uint64(costs.offsets[edge])
    touched = np.uint64(costs.offsets[edge + 1]) - first
    score = seen[0] * 0
    for k in range(touched):
        score += costs.values[first + k] * seen[k]
    slope = slope_of(costs.loss, costs.labels[edge], score)
    moves = slope != 0 or costs.penalized
    if moves:
        for k in range(touched):
            change[k] = slope * costs.values[first + k] + costs.shrinkage[first + k] * seen[k]
    return moves


def linear_value(costs: Any, edge: Any, seen: Any) -> Any:
    first, last = costs.offsets[edge], costs.offsets[edge + 1]
    score, penalty = 0.0, 0.0
    for k in range(last - first):
        score += costs.values[first + k] * seen[k]
        penalty += costs.shrinkage[first + k] * seen[k] * seen[k] / 2
    margin = costs.labels[edge] * score
    if costs.loss == HINGE:
        return max(0.0, 1 - margin) + penalty
    if costs.loss == LOGISTIC:
        # Of large arguments either exponential would overflow.
        return math.log1p(math.exp(-abs(margin))) + max(0.0, -margin) + penalty
    return (score - costs.labels[edge]) ** 2 / 2 + penalty


@compiled
def slope_of(loss: Any, label: Any, score: Any) -> Any:
    """The derivative of the loss with respect to the score."""
    margin = label * score
    if loss == HINGE:
        return -label if margin < 1 else label * 0
    if loss == LOGISTIC:
        return -label / (1 + math.exp(margin))
    return score - label


def factor_gradient(costs: Any, edge: Any, seen: Any, change: Any) -> Any:
    rank = costs.rank
    row, column = costs.vertices[2 * edge], costs.vertices[2 * edge + 1]
    error = -costs.ratings[edge]
    for k in range(rank):
        error += seen[k] * seen[rank + k]
    for k in range(rank):
        change[k] = 2 * error * seen[rank + k] + costs.shrinkage[row] * seen[k]
        change[rank + k] = 2 * error * seen[k] + costs.shrinkage[column] * seen[rank + k]
    return True


def factor_value(costs: Any, edge: Any, seen: Any) -> Any:
    rank = costs.rank
    row, column = costs.vertices[2 * edge], costs.vertices[2 * edge + 1]
    error, of_row, of_column = -float(costs.ratings[edge]), 0.0, 0.0
    for k in range(rank):
        error += seen[k] * seen[rank + k]
        of_row += seen[k] * seen[k]
        of_column += seen[rank + k] * seen[rank + k]
    return error**2 + (costs.shrinkage[row] * of_row + costs.shrinkage[column] * of_column) / 2


def cut_gradient(costs: Any, edge: Any, seen: Any, change: Any) -> Any:
    ways, terminal, moves = costs.ways, costs.terminals[edge], False
    for k in range(ways):
        if terminal >= 0:
            change[k] = costs.weights[edge] * np.sign(seen[k] - (k == terminal))
        else:
            change[k] = costs.weights[edge] * np.sign(seen[k] - seen[ways + k])
            change[ways + k] = -change[k]
        moves = moves or change[k] != 0
    return moves


def cut_value(costs: Any, edge: Any, seen: Any) -> Any:
    ways, terminal, distance = costs.ways, costs.terminals[edge], 0.0
    for k in range(ways):
        there = 1.0 * (k == terminal) if terminal >= 0 else seen[ways + k]
        distance += abs(seen[k] - there)
    return costs.weights[edge] * distance


def projected_update(costs: Any, x: Any, first: Any, change: Any, at: Any, step: Any) -> None:
    moved = np.empty(costs.ways, x.dtype)
    for k in range(costs.ways):
        moved[k] = x[first + k] - step * change[at + k]
    project(moved)
    for k in range(costs.ways):
        x[first + k] = moved[k]


@compiled
def project(point: Any) -> None:
    """Move `point` (k,) to the nearest point of the simplex: not negative, sum 1.

    Source: Duchi et al., "Efficient Projections onto the l1-Ball for Learning in High Dimensions",
    ICML 2008, figure 1.
    """
    ordered = np.sort(point)[::-1]
    total, threshold = 0.0, 0.0
    for k in range(len(ordered)):
        total += ordered[k]
        if ordered[k] - (total - 1) / (k + 1) > 0:
            threshold = (total - 1) / (k + 1)
    for k in range(len(point)):
        point[k] = max(0.0, point[k] - threshold)


def perceptron_gradient(costs: Any, edge: Any, seen: Any, change: Any) -> Any:
    features, hidden, classes = costs.inputs.shape[1], costs.hidden, costs.classes
    first_bias = hidden * features
    second = first_bias + hidden
    second_bias = second + classes * hidden
    active, probabilities = forward(costs, edge, seen)
    back = np.zeros(hidden, seen.dtype)
    for c in range(classes):
        error = probabilities[c] - (c == costs.labels[edge])
        change[second_bias + c] = error
        for h in range(hidden):
            change[second + c * hidden + h] = error * active[h]
            back[h] += error * seen[second + c * hidden + h]
    for h in range(hidden):
        error = back[h] if active[h] > 0 else back[h] * 0
        change[first_bias + h] = error
        for f in range(features):
            change[h * features + f] = error * costs.inputs[edge, f]
    return True


def perceptron_value(costs: Any, edge: Any, seen: Any) -> Any:
    _, probabilities = forward(costs, edge, seen)
    return -math.log(max(probabilities[costs.labels[edge]], 1e-30))


@compiled
def forward(costs: Any, edge: Any, seen: Any) -> Any:
    """The hidden layer (hidden,) and the probabilities (classes,) of a sample."""
    features, hidden, classes = costs.inputs.shape[1], costs.hidden, costs.classes
    first_bias = hidden * features
    second = first_bias + hidden
    second_bias = second + classes * hidden
    active, scores = np.empty(hidden, seen.dtype), np.empty(classes, seen.dtype)
    for h in range(hidden):
        total = seen[first_bias + h]
        for f in range(features):
            total += seen[h * features + f] * costs.inputs[edge, f]
        active[h] = max(total, total * 0)
    for c in range(classes):
        scores[c] = seen[second_bias + c]
        for h in range(hidden):
            scores[c] += seen[second + c * hidden + h] * active[h]
    scores = np.exp(scores - scores.max())
    return active, scores / scores.sum()
