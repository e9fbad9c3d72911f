"""Omega, Delta and rho: measured against their definitions, and chosen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offbeat.hogwild import (
    Hypergraph,
    MatrixCompletion,
    Perceptron,
    SparseSVM,
    circulant,
    pattern_for,
    random_edges,
)
from offbeat.hogwild import hypergraph as module
from offbeat.hogwild.hypergraph import differences


def hypergraph(edges: list[set[int]], count: int) -> Hypergraph:
    offsets = np.cumsum([0, *map(len, edges)])
    vertices = np.array([v for edge in edges for v in sorted(edge)], np.int32)
    return Hypergraph(offsets=offsets, vertices=vertices, count=count)


def by_definition(edges: list[set[int]]) -> tuple[int, float, float]:
    vertices = set().union(*edges)
    delta = max(sum(v in edge for edge in edges) for v in vertices) / len(edges)
    rho = max(sum(bool(e & other) for other in edges) for e in edges) / len(edges)
    return max(map(len, edges)), delta, rho


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sets(st.integers(0, 7), min_size=1, max_size=4), min_size=1, max_size=12))
def test_sparsity_is_the_definition_s(edges):
    found = hypergraph(edges, 8).sparsity()
    assert (found.omega, found.delta, found.rho) == pytest.approx(by_definition(edges))
    assert found.exact


def test_a_search_that_is_given_up_says_so(monkeypatch):
    monkeypatch.setattr(module, "WORK", 10)
    edges = random_edges(np.full(50, 4), 40, 0.0, np.random.default_rng(0))
    found = edges.sparsity()
    assert not found.exact
    assert "at least" in str(found)
    monkeypatch.setattr(module, "WORK", 10**6)
    assert edges.sparsity().rho >= found.rho


def test_neighbours_have_the_closed_form():
    edges = circulant(300, 100, np.arange(7))
    found = edges.sparsity()
    assert (found.omega, found.delta, found.rho) == pytest.approx((7, 0.07, 0.13))


@pytest.mark.parametrize("rho", [0.02, 0.05, 0.1])
def test_rho_is_chosen_apart_from_delta(rho):
    # From 19 to 91 of 1000 are possible.
    problem = SparseSVM(rows=2000, features=1000, nonzeros=10, rho=rho)
    found = problem.instance().sparsity
    assert found.omega == 10
    assert found.delta == pytest.approx(0.01)
    assert found.rho == pytest.approx(min(rho, 0.091), rel=0.06)
    pattern = pattern_for(10, 1000, rho)
    assert found.rho == pytest.approx(differences(pattern, 1000) / 1000)


@pytest.mark.parametrize("edges", [[[1, 0]], [[0, 1], [2, 2]], [[0], []]])
def test_edges_that_cannot_be(edges):
    offsets = np.cumsum([0, *map(len, edges)])
    vertices = np.array([v for edge in edges for v in edge], np.int32)
    with pytest.raises(ValueError, match="an edge's vertices have to increase"):
        Hypergraph(offsets=offsets, vertices=vertices, count=3)


def test_vertices_may_fall_from_edge_to_edge():
    edges = Hypergraph(offsets=np.array([0, 2, 3]), vertices=np.array([1, 2, 0]), count=3)
    assert edges.edges == 2


def test_drawn_edges_have_their_sizes_and_no_vertex_twice():
    sizes = np.array([1, 5, 20, 3])
    edges = random_edges(sizes, 20, 1.0, np.random.default_rng(0))
    assert np.diff(edges.offsets).tolist() == sizes.tolist()
    for k in range(4):
        own = edges.vertices[edges.offsets[k] : edges.offsets[k + 1]]
        assert (np.diff(own) > 0).all()


def test_skew_is_zipf_s():
    edges = random_edges(np.ones(40_000, np.int64), 50, 1.0, np.random.default_rng(0))
    often = np.sort(edges.degrees())[::-1]
    expected = 40_000 / np.arange(1, 51) / (1 / np.arange(1, 51)).sum()
    np.testing.assert_allclose(often[:8], expected[:8], rtol=0.06)


def test_a_matrix_s_edges_meet_in_their_row_and_column():
    instance = MatrixCompletion(rows=6, columns=5, entries=20, held_out=0).instance()
    u, v = instance.costs.vertices.reshape(-1, 2).T
    degrees = np.bincount(np.concatenate([u, v]))
    assert instance.sparsity.omega == 2
    assert instance.sparsity.delta == pytest.approx(degrees.max() / 20)
    assert instance.sparsity.rho == pytest.approx((degrees[u] + degrees[v] - 1).max() / 20)


def test_a_dense_network_s_edges_touch_everything():
    found = Perceptron(hidden=2).instance().sparsity
    assert (found.omega, found.delta, found.rho) == (64 * 2 + 2 + 20 + 10, 1, 1)
