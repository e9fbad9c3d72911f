"""Gradients of the compiled costs against autograd, and the projection against its definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from offbeat.hogwild import (
    GraphCut,
    MatrixCompletion,
    Perceptron,
    SparseLeastSquares,
    SparseLogistic,
    SparseSVM,
)
from offbeat.hogwild.compiling import compiled
from offbeat.hogwild.costs import gradient
from offbeat.hogwild.kinds import project

SMALL = {"rows": 40, "features": 30, "nonzeros": 5}
PROBLEMS = [
    SparseSVM(**SMALL, l2=2.0),
    SparseLogistic(**SMALL, l2=2.0),
    SparseLeastSquares(**SMALL, l2=2.0),
    MatrixCompletion(rows=8, columns=9, entries=40, rank=3, penalty=2.0),
    GraphCut(rows=5, columns=4, ways=3),
    Perceptron(hidden=3),
]


@compiled
def full_gradient(costs, x, edges, touched, places):
    """The mean of all edges' gradients; `touched` of edge e begin at `places[e]`."""
    total = np.zeros(len(x))
    for edge in range(edges):
        mine = touched[places[edge] : places[edge + 1]]
        change = np.empty(len(mine))
        gradient(costs, edge, x[mine], change)
        for k in range(len(mine)):
            total[mine[k]] += change[k]
    return total / edges


def coordinates(instance):
    """The coordinates that each edge touches, one edge after the other, and where each begins."""
    if instance.hypergraph is None:
        touched = np.tile(np.arange(instance.vertices), instance.edges)
        return touched, np.arange(instance.edges + 1) * instance.vertices
    blocks = np.arange(instance.width)
    touched = instance.hypergraph.vertices[:, None].astype(np.int64) * instance.width + blocks
    return touched.ravel(), instance.hypergraph.offsets * instance.width


def by_torch(problem, instance, x):
    """The objective as the docstrings have it."""
    costs = instance.costs
    if isinstance(problem, Perceptron):
        return perceptron_by_torch(costs, x)
    if isinstance(problem, MatrixCompletion):
        return completion_by_torch(problem, costs, x)
    if isinstance(problem, GraphCut):
        return cut_by_torch(costs, instance, x)
    return linear_by_torch(problem, instance, x)


def linear_by_torch(problem, instance, x):
    costs, edges = instance.costs, instance.hypergraph
    rows = np.repeat(np.arange(instance.edges), np.diff(edges.offsets))
    dense = torch.zeros(instance.edges, instance.vertices, dtype=torch.float64)
    dense[rows, edges.vertices.astype(np.int64)] = torch.from_numpy(costs.values)
    scores, labels = dense @ x, torch.from_numpy(costs.labels)
    losses = {
        SparseSVM: F.relu(1 - labels * scores),
        SparseLogistic: F.softplus(-labels * scores),
        SparseLeastSquares: (scores - labels) ** 2 / 2,
    }[type(problem)]
    used = torch.from_numpy(edges.degrees() > 0)
    # Of every feature that a sample has, l2 x_u^2 in all.
    return losses.mean() + problem.l2 * (x[used] ** 2).sum() / instance.edges


def completion_by_torch(problem, costs, x):
    factors = x.reshape(-1, problem.rank)
    u, v = torch.from_numpy(costs.vertices.reshape(-1, 2).astype(np.int64)).T
    counts = torch.bincount(torch.cat([u, v]), minlength=len(factors))
    squares = (factors**2).sum(1)
    error = (factors[u] * factors[v]).sum(1) - torch.from_numpy(costs.ratings)
    penalty = problem.penalty / 2 * (squares[u] / counts[u] + squares[v] / counts[v])
    return (error**2 + penalty).mean()


def cut_by_torch(costs, instance, x):
    points, total = x.reshape(-1, costs.ways), 0
    for edge in range(instance.edges):
        ends = costs.vertices[costs.offsets[edge] : costs.offsets[edge + 1]]
        terminal = costs.terminals[edge]
        other = points[int(ends[1])] if terminal < 0 else torch.eye(costs.ways)[terminal]
        total = total + costs.weights[edge] * (points[int(ends[0])] - other).abs().sum()
    return total / instance.edges


def perceptron_by_torch(costs, x):
    features, hidden = costs.inputs.shape[1], costs.hidden
    shapes = [(hidden, features), (hidden,), (costs.classes, hidden), (costs.classes,)]
    parts = torch.split(x, [int(np.prod(shape)) for shape in shapes])
    first, bias, second, out = (p.reshape(s) for p, s in zip(parts, shapes, strict=True))
    active = F.relu(torch.from_numpy(costs.inputs) @ first.T + bias)
    return F.cross_entropy(active @ second.T + out, torch.from_numpy(costs.labels))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: type(p).__name__)
def test_objective_and_gradient_are_autograd_s(problem):
    instance = problem.build(np.float64)
    rng = np.random.default_rng(0)
    at = instance.start + 0.3 * rng.standard_normal(len(instance.start))
    x = torch.tensor(at, requires_grad=True)
    expected = by_torch(problem, instance, x)
    expected.backward()
    assert instance.objective(at) == pytest.approx(expected.item(), rel=1e-12)
    touched, places = coordinates(instance)
    found = full_gradient(instance.costs, at, instance.edges, touched, places)
    np.testing.assert_allclose(found, x.grad.numpy(), rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=5))
def test_projection_is_the_nearest_point_of_the_simplex(values):
    point = np.array(values)
    projected = point.copy()
    project(projected)
    assert projected.min() >= 0
    assert projected.sum() == pytest.approx(1, abs=1e-9)
    best = minimize(
        lambda p: ((p - point) ** 2).sum(),
        np.full(len(point), 1 / len(point)),
        jac=lambda p: 2 * (p - point),
        bounds=[(0, None)] * len(point),
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        method="SLSQP",
    )
    assert ((projected - point) ** 2).sum() <= best.fun + 1e-6


def test_a_cut_s_least_objective_is_the_minimum_cut_s():
    problem = GraphCut(rows=8, columns=8)
    instance = problem.build(np.float64)
    edges = instance.hypergraph
    labels = np.array([0, 1])
    # Every labelling of the pixels that follows their intensity's cut costs at least the optimum.
    rng = np.random.default_rng(0)
    for _ in range(200):
        x = np.eye(2)[rng.choice(labels, instance.vertices)].ravel()
        assert instance.objective(x) >= instance.optimum - 1e-12
        assert instance.errors(x)["cut"] * 2 / edges.edges == pytest.approx(instance.objective(x))


def test_a_known_optimum_is_reached_at_the_hidden_model():
    problem = SparseLeastSquares(rows=60, features=20, nonzeros=4, noise=0, l2=0)
    instance = problem.build(np.float64)
    assert instance.optimum == 0
    rows = np.repeat(np.arange(60), np.diff(instance.hypergraph.offsets))
    dense = np.zeros((60, 20))
    dense[rows, instance.hypergraph.vertices] = instance.costs.values
    solution = np.linalg.lstsq(dense, instance.costs.labels)[0]
    assert instance.objective(solution) == pytest.approx(0, abs=1e-20)
