"""The separable costs, compiled: f(x) = mean over edges e of f_e(x_e).

An edge touches some vertices, and a vertex is one coordinate of x or a block of them: a row of a
factor, the label of a pixel. The vertices of edge e are `vertices[begin(costs, e):end(costs, e)]`.
Each kind of cost is one class of arrays, and says in compiled functions what an edge's gradient and
value are, given the values that were seen at its vertices.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba.extending import overload
from numpy.typing import NDArray

from .atomics import atomic_add, prefetch
from .compiling import compiled

HINGE, LOGISTIC, SQUARED = 0, 1, 2
LINE = 16
"""Elements of four bytes in a cache line."""


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


def width(costs: Any) -> int:
    """Coordinates of a vertex."""
    raise NotImplementedError


def begin(costs: Any, edge: int) -> int:
    """Where the vertices of an edge begin."""
    raise NotImplementedError


def end(costs: Any, edge: int) -> int:
    """Where they end."""
    raise NotImplementedError


def gradient(costs: Any, edge: int, seen: Any, change: Any) -> None:
    """Write the (sub)gradient of f_e at the coordinates `seen` of its vertices to `change`."""
    raise NotImplementedError


def value(costs: Any, edge: int, seen: Any) -> float:
    """f_e where its coordinates are `seen`."""
    raise NotImplementedError


def fetch(costs: Any, edge: int, x: Any) -> None:
    """Have what is needed for an edge brought near, as it comes up soon."""
    raise NotImplementedError


def update(costs: Any, x: Any, first: int, change: Any, at: int, step: Any) -> None:
    """The block of x from `first` on moves by -step times the `change` from `at` on."""
    raise NotImplementedError


def update_atomically(costs: Any, x: Any, first: int, change: Any, at: int, step: Any) -> None:
    """The same, each coordinate in one indivisible step."""
    raise NotImplementedError


def _of(costs: Any) -> type:
    return costs.instance_class


@overload(width, strict=False)
def _width(costs: Any) -> Any:
    if _of(costs) is FactorCosts:
        return lambda costs: costs.rank
    if _of(costs) is CutCosts:
        return lambda costs: costs.ways
    return lambda costs: 1


@overload(begin, strict=False)
def _begin(costs: Any, edge: Any) -> Any:
    if _of(costs) is FactorCosts:
        return lambda costs, edge: 2 * edge
    if _of(costs) is PerceptronCosts:
        return lambda costs, edge: 0
    return lambda costs, edge: costs.offsets[edge]


@overload(end, strict=False)
def _end(costs: Any, edge: Any) -> Any:
    if _of(costs) is FactorCosts:
        return lambda costs, edge: 2 * edge + 2
    if _of(costs) is PerceptronCosts:
        return lambda costs, edge: len(costs.vertices)
    return lambda costs, edge: costs.offsets[edge + 1]


@overload(gradient, strict=False)
def _gradient(costs: Any, edge: Any, seen: Any, change: Any) -> Any:
    return {
        LinearCosts: _linear_gradient,
        FactorCosts: _factor_gradient,
        CutCosts: _cut_gradient,
        PerceptronCosts: _perceptron_gradient,
    }[_of(costs)]


@overload(value, strict=False)
def _value(costs: Any, edge: Any, seen: Any) -> Any:
    return {
        LinearCosts: _linear_value,
        FactorCosts: _factor_value,
        CutCosts: _cut_value,
        PerceptronCosts: _perceptron_value,
    }[_of(costs)]


@overload(fetch, strict=False)
def _fetch(costs: Any, edge: Any, x: Any) -> Any:
    if _of(costs) is LinearCosts:
        return _fetch_row
    if _of(costs) is PerceptronCosts:
        return lambda costs, edge, x: None
    return _fetch_blocks


@overload(update, strict=False)
def _update(costs: Any, x: Any, first: Any, change: Any, at: Any, step: Any) -> Any:
    return {
        LinearCosts: _update_one,
        FactorCosts: _update_block,
        CutCosts: _projected_update,
        PerceptronCosts: _update_one,
    }[_of(costs)]


@overload(update_atomically, strict=False)
def _update_atomically(costs: Any, x: Any, first: Any, change: Any, at: Any, step: Any) -> Any:
    def atomic(costs: Any, x: Any, first: Any, change: Any, at: Any, step: Any) -> None:
        for k in range(width(costs)):
            atomic_add(x, first + k, -step * change[at + k])

    return atomic


def _fetch_row(costs: Any, edge: Any, x: Any) -> None:
    # x itself mostly fits into a core's cache; the samples do not, and come in random order.
    for k in range(costs.offsets[edge], costs.offsets[edge + 1], LINE):
        prefetch(costs.vertices, k)
        prefetch(costs.values, k)
        prefetch(costs.shrinkage, k)


def _fetch_blocks(costs: Any, edge: Any, x: Any) -> None:
    for k in range(begin(costs, edge), end(costs, edge)):
        prefetch(x, costs.vertices[k] * width(costs))


def _linear_gradient(costs: Any, edge: Any, seen: Any, change: Any) -> None:
    first, last = costs.offsets[edge], costs.offsets[edge + 1]
    values, shrinkage = costs.values[first:last], costs.shrinkage[first:last]
    score = seen[0] * 0
    for k in range(len(values)):
        score += values[k] * seen[k]
    slope = slope_of(costs.loss, costs.labels[edge], score)
    for k in range(len(values)):
        change[k] = slope * values[k] + shrinkage[k] * seen[k]


def _linear_value(costs: Any, edge: Any, seen: Any) -> Any:
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


def _factor_gradient(costs: Any, edge: Any, seen: Any, change: Any) -> None:
    rank = costs.rank
    row, column = costs.vertices[2 * edge], costs.vertices[2 * edge + 1]
    error = -costs.ratings[edge]
    for k in range(rank):
        error += seen[k] * seen[rank + k]
    for k in range(rank):
        change[k] = 2 * error * seen[rank + k] + costs.shrinkage[row] * seen[k]
        change[rank + k] = 2 * error * seen[k] + costs.shrinkage[column] * seen[rank + k]


def _factor_value(costs: Any, edge: Any, seen: Any) -> Any:
    rank = costs.rank
    row, column = costs.vertices[2 * edge], costs.vertices[2 * edge + 1]
    error, of_row, of_column = -float(costs.ratings[edge]), 0.0, 0.0
    for k in range(rank):
        error += seen[k] * seen[rank + k]
        of_row += seen[k] * seen[k]
        of_column += seen[rank + k] * seen[rank + k]
    return error**2 + (costs.shrinkage[row] * of_row + costs.shrinkage[column] * of_column) / 2


def _cut_gradient(costs: Any, edge: Any, seen: Any, change: Any) -> None:
    ways, terminal = costs.ways, costs.terminals[edge]
    for k in range(ways):
        if terminal >= 0:
            change[k] = costs.weights[edge] * np.sign(seen[k] - (k == terminal))
        else:
            change[k] = costs.weights[edge] * np.sign(seen[k] - seen[ways + k])
            change[ways + k] = -change[k]


def _cut_value(costs: Any, edge: Any, seen: Any) -> Any:
    ways, terminal, distance = costs.ways, costs.terminals[edge], 0.0
    for k in range(ways):
        there = 1.0 * (k == terminal) if terminal >= 0 else seen[ways + k]
        distance += abs(seen[k] - there)
    return costs.weights[edge] * distance


def _update_one(costs: Any, x: Any, first: Any, change: Any, at: Any, step: Any) -> None:
    x[first] -= step * change[at]


def _update_block(costs: Any, x: Any, first: Any, change: Any, at: Any, step: Any) -> None:
    for k in range(width(costs)):
        x[first + k] -= step * change[at + k]


def _projected_update(costs: Any, x: Any, first: Any, change: Any, at: Any, step: Any) -> None:
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


def _perceptron_gradient(costs: Any, edge: Any, seen: Any, change: Any) -> None:
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


def _perceptron_value(costs: Any, edge: Any, seen: Any) -> Any:
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


@compiled
def look(costs: Any, edge: int, x: Any, seen: Any) -> None:
    """Read the coordinates of the edge's vertices into `seen`."""
    wide, vertices = width(costs), costs.vertices[begin(costs, edge) : end(costs, edge)]
    if wide == 1:
        # Written out, or it takes half as long again: this and the update are most of the work.
        for j in range(len(vertices)):
            seen[j] = x[vertices[j]]
        return
    for j in range(len(vertices)):
        for k in range(wide):
            seen[j * wide + k] = x[vertices[j] * wide + k]


@compiled
def widest(costs: Any, edges: int) -> int:
    """Coordinates of the edge that touches most."""
    most = 0
    for edge in range(edges):
        most = max(most, end(costs, edge) - begin(costs, edge))
    return most * width(costs)


@compiled
def objective(costs: Any, edges: int, x: Any) -> float:
    """f(x): the mean of f_e over all edges."""
    seen = np.empty(widest(costs, edges), x.dtype)
    total = 0.0
    for edge in range(edges):
        look(costs, edge, x, seen)
        total += value(costs, edge, seen)
    return total / edges
