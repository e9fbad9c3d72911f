import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offbeat.mixing import (
    metropolis_hastings,
    mixing_matrix,
    require_column_stochastic,
    require_doubly_stochastic,
)
from offbeat.spectra import (
    contraction,
    second_eigenvalue,
    sparse_mixing_matrix,
    spectral_gap,
)
from offbeat.topology import (
    BipartiteMatching,
    Complete,
    DirectedRing,
    Exponential,
    Graph,
    Hypercube,
    MetropolisHastings,
    OnePeerExponential,
    RandomMatching,
    Ring,
    SelfWeight,
    SmallWorld,
    Star,
    TimeVarying,
    Torus,
    WeightedGraph,
)


def one_period(topology, size):
    return [mixing_matrix(topology, size, round) for round in range(topology.period(size))]


@pytest.mark.parametrize("size", [3, 4, 5, 16, 33])
def test_ring_closed_form(size):
    expected = 1 / 3 + 2 / 3 * np.cos(2 * np.pi / size)
    W = mixing_matrix(Ring(), size)
    assert second_eigenvalue(W) == pytest.approx(expected, abs=1e-12)
    assert spectral_gap(W) == pytest.approx(1 - expected, abs=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_complete_averages_in_one_round(size):
    W = mixing_matrix(Complete(), size)
    np.testing.assert_allclose(W, 1 / size)
    assert second_eigenvalue(W) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [3, 5, 10])
def test_star_closed_form(size):
    # Leaves keep 1/2, the centre 1/n: eigenvalues 1, 1/2 (n - 2 times), by the trace 1/n - 1/2.
    assert second_eigenvalue(mixing_matrix(Star(), size)) == pytest.approx(1 / 2, abs=1e-12)
    eigenvalues = np.sort(np.linalg.eigvals(mixing_matrix(Star(), size)).real)
    assert eigenvalues[0] == pytest.approx(1 / size - 1 / 2, abs=1e-12)


@pytest.mark.parametrize("hops", [2, 3, 4, 5])
def test_exponential_closed_form(hops):
    # n = 2^hops, weights 1 / (hops + 1): the eigenvalue of frequency n/2 is the largest.
    assert second_eigenvalue(mixing_matrix(Exponential(), 2**hops)) == pytest.approx(
        (hops - 1) / (hops + 1), abs=1e-9
    )


@pytest.mark.parametrize("hops", [1, 2, 3, 4, 5])
def test_one_peer_exponential_averages_powers_of_two_exactly(hops):
    size = 2**hops
    x = np.random.default_rng(0).normal(size=(size, 3))
    mean = x.mean(axis=0)
    assert OnePeerExponential().period(size) == hops
    for round in range(hops):
        assert np.abs(x - mean).max() > 0.01
        x = mixing_matrix(OnePeerExponential(), size, round) @ x
    np.testing.assert_allclose(x, np.tile(mean, (size, 1)), atol=1e-14)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_the_second_eigenvalue_of_a_period_is_that_of_its_product(size):
    period = one_period(OnePeerExponential(), size)
    assert second_eigenvalue(period) == pytest.approx(0, abs=1e-9)
    assert second_eigenvalue(np.stack(period)) == pytest.approx(0, abs=1e-9)
    assert second_eigenvalue(period[:-1]) > 0.5
    ring = mixing_matrix(Ring(), size)
    assert second_eigenvalue([ring, ring]) == pytest.approx(second_eigenvalue(ring) ** 2)


def test_matrices_of_a_period_apply_first_to_last():
    # Columns on the simplex; any order of two, or turning three round, would give the same answer.
    A, B, C = np.random.default_rng(3).dirichlet(np.full(5, 0.3), size=(3, 5)).transpose(0, 2, 1)
    expected = np.sort(np.abs(np.linalg.eigvals(C @ B @ A)))[-2]
    backwards = np.sort(np.abs(np.linalg.eigvals(A @ B @ C)))[-2]
    assert abs(expected - backwards) > 1e-3
    assert second_eigenvalue([A, B, C]) == pytest.approx(expected)


@given(size=st.integers(1, 33))
def test_the_product_over_a_period_is_column_stochastic(size):
    for topology in (OnePeerExponential(), Exponential(), Ring(), Star(), Complete()):
        product = np.eye(size)
        for round, W in enumerate(one_period(topology, size)):
            require_column_stochastic(W)
            np.testing.assert_array_equal(sparse_mixing_matrix(topology, size, round).toarray(), W)
            product = W @ product
        require_column_stochastic(product)
        assert second_eigenvalue(product) < 1 - 1e-4


@given(size=st.integers(1, 33), round=st.integers(0, 50))
def test_a_matching_is_symmetric_and_doubly_stochastic(size, round):
    W = mixing_matrix(BipartiteMatching(seed=1), size, round)
    require_doubly_stochastic(W)
    np.testing.assert_array_equal(W, W.T)
    np.testing.assert_array_equal(W @ W, W)  # averaging a pair twice changes nothing


def test_gossip_contracts_at_the_second_eigenvalue():
    W = mixing_matrix(Ring(), 10)
    x = np.random.default_rng(1).normal(size=10)
    distances = []
    for _ in range(60):
        x = W @ x
        distances.append(np.linalg.norm(x - x.mean()))
    assert distances[-1] / distances[-2] == pytest.approx(second_eigenvalue(W), rel=1e-6)


def test_push_sum_reaches_the_mean_on_an_irregular_digraph():
    topology = Graph(edges=[(0, 1), (0, 2), (1, 2), (2, 3), (3, 0), (3, 1)], directed=True)
    topology.validate(4)
    W = mixing_matrix(topology, 4)
    x, w = np.array([1.0, 5.0, -2.0, 8.0]), np.ones(4)
    for _ in range(100):
        x, w = W @ x, W @ w
    np.testing.assert_allclose(x / w, 3.0)
    assert np.ptp(w) > 0.1  # else x itself would have done


def test_mixing_matrix_puts_senders_in_columns():
    W = mixing_matrix(Graph(edges=[(0, 1), (1, 2), (2, 0), (0, 2)], directed=True), 3)
    np.testing.assert_allclose(W, [[1 / 3, 0, 1 / 2], [1 / 3, 1 / 2, 0], [1 / 3, 1 / 2, 1 / 2]])
    weights = [[0.2, 0.3], [0.8, 0.7]]
    np.testing.assert_array_equal(mixing_matrix(WeightedGraph(weights=weights), 2), weights)


@given(size=st.integers(1, 20), seed=st.integers(0, 1000))
def test_metropolis_hastings_is_symmetric_and_doubly_stochastic(size, seed):
    graph = nx.gnp_random_graph(size, 0.4, seed=seed)
    W = metropolis_hastings(graph)
    require_doubly_stochastic(W)
    np.testing.assert_array_equal(W, W.T)
    off_diagonal = W - np.diag(np.diag(W))
    np.testing.assert_array_equal(off_diagonal > 0, nx.to_numpy_array(graph) > 0)
    connected = nx.is_connected(graph)
    assert (second_eigenvalue(W) < 1 - 1e-9) == connected


def test_metropolis_hastings_closed_forms():
    np.testing.assert_allclose(metropolis_hastings(nx.cycle_graph(7)), mixing_matrix(Ring(), 7))
    n = 6
    star = metropolis_hastings(Star().graph(n))
    np.testing.assert_allclose(star[0], 1 / n)
    np.testing.assert_allclose(np.diag(star)[1:], 1 - 1 / n)


def test_metropolis_hastings_orders_rows_as_from_networkx_ranks_nodes():
    graph = nx.Graph([("d", "a"), ("a", "c"), ("c", "b"), ("c", "c")])
    W = metropolis_hastings(graph)
    topology = WeightedGraph(weights=W)
    topology.validate(4)
    given_edges = Graph.from_networkx(graph)
    assert set(topology.graph(4).edges) == set(given_edges.graph(4).edges)
    assert W[0, 2] == pytest.approx(1 / 3)  # a - c, both of degree 2


def test_metropolis_hastings_refuses_one_way_edges():
    with pytest.raises(ValueError, match="edge 0 -> 1 has no edge back: symmetric weights need"):
        metropolis_hastings(nx.DiGraph([(0, 1)]))


@pytest.mark.parametrize(
    ("W", "text"),
    [
        (np.ones((2, 3)), r"mixing matrix has shape \(2, 3\): give a square \(n, n\) matrix"),
        (np.ones(3), r"shape \(3,\)"),
        (np.array([[1.5, 0.0], [-0.5, 1.0]]), "column 0 .* has weight -0.5 in row 1"),
        (np.array([[0.5, 0.5], [0.5, 0.25]]), "column 1 .* sums to 0.75, not 1: divide it"),
        (np.array([[1.0, np.inf], [0.0, 0.0]]), "column 1 .* sums to inf, not 1"),
    ],
)
def test_column_stochastic_errors(W, text):
    with pytest.raises(ValueError, match=text):
        require_column_stochastic(W)
    with pytest.raises(ValueError, match=text):
        require_doubly_stochastic(W)
    with pytest.raises(ValueError, match=r"mixing matrix|shape"):
        second_eigenvalue([W])


def test_doubly_stochastic_error():
    require_doubly_stochastic(mixing_matrix(Ring(), 5))
    W = mixing_matrix(Star(), 3)
    require_column_stochastic(W)
    with pytest.raises(
        ValueError,
        match=r"row 0 of the mixing matrix sums to 1\.3333\d*, not 1: "
        r"use MetropolisHastings\(topology=\.\.\.\), or a push-sum method",
    ):
        require_doubly_stochastic(W)


@pytest.mark.parametrize(
    ("topology", "size", "expected"),
    [
        (Ring(), 12, (1 + 2 * np.cos(2 * np.pi / 12)) / 3),
        (Ring(), 600, (1 + 2 * np.cos(2 * np.pi / 600)) / 3),
        (Torus(), 20, (3 + 2 * np.cos(2 * np.pi / 5)) / 5),
        (Torus(), 625, (3 + 2 * np.cos(2 * np.pi / 25)) / 5),
        (Hypercube(), 16, 3 / 5),
        (Hypercube(), 1024, 9 / 11),
        (DirectedRing(), 9, np.cos(np.pi / 9)),
        (Complete(), 9, 0),
        (OnePeerExponential(), 16, 0),
        (OnePeerExponential(), 1024, 0),
        (SelfWeight(topology=Ring(), weight=0.5), 8, (1 + np.cos(2 * np.pi / 8)) / 2),
        (MetropolisHastings(topology=Star()), 6, 1 - 1 / 6),
    ],
    ids=str,
)
def test_contraction_closed_forms(topology, size, expected):
    assert contraction(topology, size) == pytest.approx(expected, abs=1e-7)


def test_contraction_is_per_round():
    twice = TimeVarying(topologies=[Ring(), Ring()])
    assert contraction(twice, 10) == pytest.approx(contraction(Ring(), 10))


@pytest.mark.parametrize(
    ("topology", "size", "moment"),
    [
        # A matching is a projection, so E[W^T W] = E[W].
        (RandomMatching(), 16, 14 / 30),
        (RandomMatching(), 9, 1 / 2),
        (RandomMatching(), 600, 598 / 1198),
        (BipartiteMatching(), 16, 1 / 2),
        (RandomMatching(), 2, 0),
        (RandomMatching(), 1, 0),
    ],
    ids=str,
)
def test_random_matchings_contract_as_in_closed_form(topology, size, moment):
    assert contraction(topology, size) ** 2 == pytest.approx(moment, abs=0.02)


def test_random_matrices_whose_rows_do_not_sum_to_1_have_no_known_contraction():
    with pytest.raises(ValueError, match="TimeVarying has random matrices whose rows do not sum"):
        contraction(TimeVarying(topologies=[Star(), RandomMatching()]), 5)


@pytest.mark.parametrize("size", [5, 16])
def test_metropolis_hastings_of_a_topology_is_that_of_its_graph(size):
    W = mixing_matrix(MetropolisHastings(topology=SmallWorld()), size)
    require_doubly_stochastic(W)
    np.testing.assert_allclose(W, metropolis_hastings(SmallWorld().graph(size)))
