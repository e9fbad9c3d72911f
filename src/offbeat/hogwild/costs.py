"""The separable costs, compiled: f(x) = mean over edges e of f_e(x_e).

An edge touches some vertices, and a vertex is one coordinate of x or a block of them: a row of a
factor, the label of a pixel. The vertices of edge e are `vertices[begin(costs, e):end(costs, e)]`.
Each kind of cost is one class of arrays, and says in compiled functions what an edge's gradient and
value are, given the values that were seen at its vertices.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from .atomics import prefetch
from .compiling import compiled
from .kinds import (
    CutCosts,
    FactorCosts,
    LinearCosts,
    PerceptronCosts,
    cut_gradient,
    cut_value,
    factor_gradient,
    factor_value,
    linear_gradient,
    linear_value,
    perceptron_gradient,
    perceptron_value,
    projected_update,
)

LINE = 16
"""Elements of four bytes in a cache line."""


# These are called in compiled functions only, where what a kind of costs has of its own stands in
# their place: see the overloads below.


def width(costs: Any) -> int:
    """Coordinates of a vertex."""
    raise NotImplementedError


def begin(costs: Any, edge: int) -> int:
    """Where the vertices of an edge begin."""
    raise NotImplementedError


def end(costs: Any, edge: int) -> int:
    """Where they end."""
    raise NotImplementedError


def gradient(costs: Any, edge: int, seen: Any, change: Any) -> bool:
    """Write the (sub)gradient of f_e at the coordinates `seen` of its vertices to `change`.

    Returns whether it moves anything; where it does not, `change` may be left as it was.
    """
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


def projected(costs: Any) -> bool:
    """Whether an updated vertex is projected, and not only added to."""
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
        LinearCosts: linear_gradient,
        FactorCosts: factor_gradient,
        CutCosts: cut_gradient,
        PerceptronCosts: perceptron_gradient,
    }[_of(costs)]


@overload(value, strict=False)
def _value(costs: Any, edge: Any, seen: Any) -> Any:
    return {
        LinearCosts: linear_value,
        FactorCosts: factor_value,
        CutCosts: cut_value,
        PerceptronCosts: perceptron_value,
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
        CutCosts: projected_update,
        PerceptronCosts: _update_one,
    }[_of(costs)]


@overload(projected, strict=False)
def _projected(costs: Any) -> Any:
    if _of(costs) is CutCosts:
        return lambda costs: True
    return lambda costs: False


def _fetch_row(costs: Any, edge: Any, x: Any) -> None:
    # x itself mostly fits into a core's cache; the samples do not, and come in random order.
    for k in range(costs.offsets[edge], costs.offsets[edge + 1], LINE):
        prefetch(costs.vertices, k)
        prefetch(costs.values, k)
        prefetch(costs.shrinkage, k)


def _fetch_blocks(costs: Any, edge: Any, x: Any) -> None:
    for k in range(begin(costs, edge), end(costs, edge)):
        prefetch(x, costs.vertices[k] * width(costs))


def _update_one(costs: Any, x: Any, first: Any, change: Any, at: Any, step: Any) -> None:
    x[first] -= step * change[at]


def _update_block(costs: Any, x: Any, first: Any, change: Any, at: Any, step: Any) -> None:
    for k in range(width(costs)):
        x[first + k] -= step * change[at + k]


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
