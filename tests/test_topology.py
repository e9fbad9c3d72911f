import pickle
import tempfile
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offbeat.topology import (
    TOPOLOGIES,
    BipartiteMatching,
    Complete,
    DirectedRing,
    EdgeList,
    Exponential,
    Graph,
    Hypercube,
    Line,
    MetropolisHastings,
    Neighbors,
    OnePeerExponential,
    RandomMatching,
    RandomRegular,
    Ring,
    SelfWeight,
    SmallWorld,
    Star,
    TimeVarying,
    Topology,
    Torus,
    Tree,
    WeightedGraph,
    neighbors,
)

SIZES = st.integers(1, 33)
ROUNDS = st.integers(0, 100)


def path(size: int, directed: bool = False) -> Graph:
    edges = [(k, k + 1) for k in range(size - 1)]
    return Graph(edges=[*edges, (size - 1, 0)] if directed else edges, directed=directed)


def weighted(size: int) -> WeightedGraph:
    """A directed ring whose worker j keeps 1 / (j + 2)."""
    keep = 1 / (np.arange(size) + 2)
    return WeightedGraph(weights=np.diag(keep) + np.roll(np.diag(1 - keep), 1, axis=0))


FILES = tempfile.TemporaryDirectory()


def edge_list(size: int) -> EdgeList:
    path = Path(FILES.name) / f"line{size}.txt"
    path.write_text("# a line\n0 0\n" + "".join(f"{k}, {k + 1}\n" for k in range(size - 1)))
    return EdgeList(path=str(path))


# Every class, at any size that `fit` gives.
FAMILIES = {
    "DirectedRing": lambda size: DirectedRing(),
    "Line": lambda size: Line(),
    "Tree": lambda size: Tree(branching=3),
    "Torus": lambda size: Torus(),
    "Hypercube": lambda size: Hypercube(),
    "SmallWorld": lambda size: SmallWorld(rewiring=0.5, seed=2),
    "RandomRegular": lambda size: RandomRegular(seed=2),
    "RandomMatching": lambda size: RandomMatching(seed=3),
    "TimeVarying": lambda size: TimeVarying(topologies=[Ring(), OnePeerExponential()]),
    "EdgeList": edge_list,
    "MetropolisHastings": lambda size: MetropolisHastings(topology=Tree()),
    "SelfWeight": lambda size: SelfWeight(topology=OnePeerExponential(), weight=0.25),
    "Ring": lambda size: Ring(),
    "Complete": lambda size: Complete(),
    "Star": lambda size: Star(),
    "Exponential": lambda size: Exponential(),
    "OnePeerExponential": lambda size: OnePeerExponential(),
    "BipartiteMatching": lambda size: BipartiteMatching(seed=3),
    "Graph": path,
    "WeightedGraph": weighted,
}


def fit(family: str, size: int) -> int:
    """A size at which the family exists."""
    if family == "Hypercube":
        return 1 << (size.bit_length() - 1)
    return size + 4 if family in ("SmallWorld", "RandomRegular") else size


every_family = pytest.mark.parametrize("family", FAMILIES)


@dataclass(frozen=True, kw_only=True)
class Alternating(Topology):
    """The pairs of `rounds[k mod 2]` exchange at round k."""

    rounds: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]

    def period(self, size):
        return 2

    def out_neighbors(self, rank, size, round):
        pairs = self.rounds[round % 2]
        return tuple(j for pair in pairs for i, j in (pair, pair[::-1]) if i == rank)

    in_neighbors = out_neighbors


def test_the_registry_holds_every_class_tested_here():
    assert set(TOPOLOGIES) == set(FAMILIES)
    for name, make in FAMILIES.items():
        assert type(make(4)) is TOPOLOGIES[name]


@every_family
@given(size=SIZES, round=ROUNDS)
def test_in_and_out_neighbors_agree(family, size, round):
    size = fit(family, size)
    topology = FAMILIES[family](size)
    sent = set()
    for rank in range(size):
        out = topology.out_neighbors(rank, size, round)
        assert len(set(out)) == len(out)
        sent |= {(rank, peer) for peer in out}
    received = {
        (peer, rank) for rank in range(size) for peer in topology.in_neighbors(rank, size, round)
    }
    assert sent == received
    assert all(i != j and 0 <= j < size for i, j in sent)
    assert set(topology.graph(size, round).edges) == sent
    assert list(topology.graph(size, round).nodes) == list(range(size))


@every_family
@given(size=SIZES, round=ROUNDS)
def test_rounds_repeat_after_a_period(family, size, round):
    size = fit(family, size)
    topology = FAMILIES[family](size)
    period = topology.period(size)
    if period is not None:
        for rank in range(size):
            assert topology.out_neighbors(rank, size, round) == topology.out_neighbors(
                rank, size, round % period
            )


@every_family
@given(size=SIZES)
def test_the_union_over_rounds_is_strongly_connected(family, size):
    size = fit(family, size)
    topology = FAMILIES[family](size)
    topology.validate(size)
    union = nx.DiGraph()
    for round in range(topology.period(size) or 100):
        union.update(topology.graph(size, round))
    assert nx.is_strongly_connected(union)


@every_family
def test_topologies_are_frozen_values(family):
    topology, same = FAMILIES[family](5), FAMILIES[family](5)
    assert topology == same
    assert hash(topology) == hash(same)
    copy = pickle.loads(pickle.dumps(topology))
    assert copy == topology
    assert hash(copy) == hash(topology)
    with pytest.raises(FrozenInstanceError):
        topology.seed = 1


def test_lists_and_arrays_become_tuples():
    assert Graph(edges=[[0, 1]]).edges == ((0, 1),)
    W = np.array([[0.5, 0.5], [0.5, 0.5]])
    assert WeightedGraph(weights=W) == WeightedGraph(weights=W.tolist())
    assert WeightedGraph(weights=W).weights == ((0.5, 0.5), (0.5, 0.5))


@pytest.mark.parametrize(
    ("topology", "size", "out", "into"),
    [
        (Ring(), 1, (), ()),
        (Ring(), 2, (0,), (0,)),
        (Ring(), 5, (0, 2), (0, 2)),
        (Complete(), 4, (0, 2, 3), (0, 2, 3)),
        (Star(), 4, (0,), (0,)),
        (Exponential(), 6, (2, 3, 5), (0, 5, 3)),
        (Exponential(), 8, (2, 3, 5), (0, 7, 5)),
        (Exponential(), 9, (2, 3, 5, 0), (0, 8, 6, 2)),
        (Graph(edges=[(0, 1), (1, 0), (1, 1), (1, 2)]), 3, (0, 2), (0, 2)),
        (Graph(edges=[(0, 1), (1, 2), (2, 0)], directed=True), 3, (2,), (0,)),
    ],
    ids=str,
)
def test_neighbors_of_worker_1(topology, size, out, into):
    rank = min(1, size - 1)
    assert topology.out_neighbors(rank, size, 0) == out
    assert topology.in_neighbors(rank, size, 0) == into


def test_star_centre_sends_to_all():
    assert Star().out_neighbors(0, 4, 0) == (1, 2, 3)


@given(size=st.integers(2, 300), round=ROUNDS, data=st.data())
def test_one_peer_exponential_hop_is_the_papers(size, round, data):
    rank = data.draw(st.integers(0, size - 1))
    hop = 2 ** (round % (int(np.floor(np.log2(size - 1))) + 1))
    assert OnePeerExponential().out_neighbors(rank, size, round) == ((rank + hop) % size,)


@given(size=SIZES, round=ROUNDS, seed=st.integers(0, 2**40))
def test_matching_pairs_even_with_odd_and_leaves_at_most_one_out(size, round, seed):
    topology = BipartiteMatching(seed=seed)
    alone = 0
    for rank in range(size):
        match topology.out_neighbors(rank, size, round):
            case ():
                alone += 1
            case (partner,):
                assert (rank + partner) % 2 == 1
                assert topology.out_neighbors(partner, size, round) == (rank,)
    assert alone == size % 2


def test_matching_leaves_out_each_even_rank_in_turn():
    topology = BipartiteMatching(seed=5)
    left_out = [
        next(rank for rank in range(7) if not topology.out_neighbors(rank, 7, round))
        for round in range(8)
    ]
    assert sorted(left_out[:4]) == [0, 2, 4, 6]
    assert left_out[4:] == left_out[:4]


@pytest.mark.parametrize("size", [2, 3, 8, 9])
def test_every_even_odd_pair_is_matched_sooner_or_later(size):
    topology = BipartiteMatching()
    pairs = {
        (i, j) for k in range(200) for i in range(size) for j in topology.out_neighbors(i, size, k)
    }
    assert pairs == {(i, j) for i in range(size) for j in range(size) if (i + j) % 2}


def test_matching_depends_on_seed_and_round_only():
    def partners(seed: int, round: int) -> list[tuple[int, ...]]:
        topology = BipartiteMatching(seed=seed)
        return [topology.out_neighbors(rank, 7, round) for rank in range(7)]

    # Written down: it must be the same in every process, whatever its hash seed or numpy.
    assert partners(0, 0) == [(), (6,), (5,), (4,), (3,), (2,), (1,)]
    assert partners(0, 3) == [(5,), (4,), (3,), (2,), (1,), (0,), ()]
    # Even sizes leave no one out, so only the shuffle can differ.
    assert len({BipartiteMatching(seed=k).out_neighbors(0, 64, 0) for k in range(10)}) > 3


def test_from_networkx_sorts_nodes_or_keeps_their_order():
    graph = nx.Graph([("c", "b"), ("b", "a")])
    assert Graph.from_networkx(graph) == Graph(edges=[(0, 1), (1, 2)])
    mixed = nx.DiGraph([("x", 1), (1, (2, 3)), ((2, 3), "x")])
    assert Graph.from_networkx(mixed) == Graph(edges=[(0, 1), (1, 2), (2, 0)], directed=True)
    doubled = nx.MultiDiGraph([(0, 1), (0, 1), (1, 0)])
    assert Graph.from_networkx(doubled) == Graph(edges=[(0, 1), (1, 0)], directed=True)


def test_from_networkx_keeps_the_graph():
    graph = nx.petersen_graph()
    assert nx.utils.graphs_equal(
        Graph.from_networkx(graph).graph(10).to_undirected(), nx.Graph(graph.edges)
    )


W_DISCONNECTED = [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("topology", "size", "text"),
    [
        (Ring(), 0, "size is 0: a topology needs at least one worker"),
        (
            Graph(edges=[(0, 1), (2, 3)]),
            4,
            "Graph does not connect 4 workers: no path leads from worker 0 to worker 2; "
            "add an edge between their components",
        ),
        (Graph(edges=[(0, 1)]), 3, "no path leads from worker 0 to worker 2"),
        (
            Graph(edges=[(0, 1), (1, 2)], directed=True),
            3,
            "no path leads from worker 1 to worker 0",
        ),
        (
            Graph(edges=[(0, 1), (1, 4)]),
            4,
            r"Graph has an edge \(1, 4\) but 4 workers, ranked from 0: "
            "renumber its nodes or change the number of workers",
        ),
        (Graph(edges=[(0, 1), (1, -1)]), 2, r"edge \(1, -1\)"),
        (
            Alternating(rounds=(((0, 1),), ((2, 3),))),
            4,
            "Alternating does not connect 4 workers: no path leads from worker 0 to worker 2",
        ),
        (
            weighted(3),
            4,
            r"WeightedGraph is for 3 workers but there are 4: give a \(4, 4\) matrix "
            "or change the number of workers",
        ),
        (
            WeightedGraph(weights=[[0.5, 0.5], [0.5]]),
            2,
            "row 1 of WeightedGraph has 1 weights but there are 2 rows: give a square matrix",
        ),
        (WeightedGraph(weights=W_DISCONNECTED), 2, "no path leads from worker 0 to worker 1"),
        (
            WeightedGraph(weights=[[0.5, 0.75], [0.5, 0.5]]),
            2,
            r"column 1 of the mixing matrix sums to 1.25, not 1: divide it by its sum "
            r"\(W\[i\]\[j\] is the weight with which j's vector enters i\)",
        ),
        (
            WeightedGraph(weights=[[1.5, 0.5], [-0.5, 0.5]]),
            2,
            r"column 0 of the mixing matrix has weight -0.5 in row 1 "
            r"\(the column sums to 1.0\): give weights >= 0",
        ),
        (WeightedGraph(weights=[[float("nan"), 0.5], [0.5, 0.5]]), 2, "column 0 .* weight nan"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_validate_says_what_is_wrong(topology, size, text):
    with pytest.raises(ValueError, match=text) as caught:
        topology.validate(size)
    assert "\n" not in str(caught.value)


def test_edges_of_different_rounds_connect_together():
    Alternating(rounds=(((0, 1), (2, 3)), ((1, 2),))).validate(4)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed is -1: give an integer >= 0"):
        BipartiteMatching(seed=-1)


def total(peers: Neighbors) -> float:
    return peers.self_weight + sum(peers.out.values())


@every_family
@given(size=SIZES, round=ROUNDS, data=st.data())
def test_weights_sum_to_one_for_any_live_set(family, size, round, data):
    size = fit(family, size)
    topology = FAMILIES[family](size)
    rank = data.draw(st.integers(0, size - 1))
    live = data.draw(st.sets(st.integers(0, size - 1)))
    everyone = neighbors(topology, size, rank, round)
    assert total(everyone) == pytest.approx(1, abs=1e-12)
    assert tuple(everyone.out) == topology.out_neighbors(rank, size, round)
    assert everyone.into == topology.in_neighbors(rank, size, round)

    left = neighbors(topology, size, rank, round, live.__contains__)
    assert total(left) == pytest.approx(1, abs=1e-12)
    assert set(left.out) == set(everyone.out) & live
    assert set(left.into) == set(everyone.into) & live
    for peer, weight in left.out.items():  # in the same proportions as before
        assert weight * everyone.self_weight == pytest.approx(everyone.out[peer] * left.self_weight)


def test_uniform_weights_are_one_over_degree_plus_one():
    peers = neighbors(Star(), 5, 0, 0)
    assert peers == Neighbors(
        out=dict.fromkeys((1, 2, 3, 4), 0.2), into=(1, 2, 3, 4), self_weight=0.2
    )
    alone = neighbors(Ring(), 4, 0, 0, lambda rank: rank != 1)
    assert alone == Neighbors(out={3: 0.5}, into=(3,), self_weight=0.5)


def test_weighted_graph_gives_its_columns():
    topology = WeightedGraph(weights=[[0.2, 0.0, 1.0], [0.5, 0.6, 0.0], [0.3, 0.4, 0.0]])
    assert neighbors(topology, 3, 0, 0) == Neighbors({1: 0.5, 2: 0.3}, (2,), 0.2)
    assert neighbors(topology, 3, 2, 0) == Neighbors({0: 1.0}, (0, 1), 0.0)
    # Nothing of its column is left: it keeps all.
    assert neighbors(topology, 3, 2, 0, lambda rank: rank == 1) == Neighbors({}, (1,), 1.0)


def test_a_departed_sender_leaves_the_weights_alone():
    topology = OnePeerExponential()
    peers = neighbors(topology, 8, 3, 0, lambda rank: rank != 2)
    assert peers == Neighbors(out={4: 0.5}, into=(), self_weight=0.5)


def test_neighbors_are_computed_once_per_round_of_the_period():
    topology = Graph(edges=[(0, 1), (1, 2)])
    first = neighbors(topology, 3, 1, 0)
    assert neighbors(Graph(edges=[(0, 1), (1, 2)]), 3, 1, 7) is first
    assert neighbors(topology, 3, 1, 0, lambda rank: True) is first
    one_peer = OnePeerExponential()
    assert neighbors(one_peer, 8, 0, 1) is neighbors(one_peer, 8, 0, 4)
    assert neighbors(one_peer, 8, 0, 1) is not neighbors(one_peer, 8, 0, 2)


def test_shared_neighbors_cannot_be_changed():
    with pytest.raises(TypeError):
        neighbors(Ring(), 3, 0, 0).out[1] = 1.0


@pytest.mark.parametrize(
    ("topology", "size", "diameter"),
    [
        (Ring(), 9, 4),
        (DirectedRing(), 9, 8),
        (Line(), 9, 8),
        (Star(), 9, 2),
        (Complete(), 9, 1),
        (Hypercube(), 32, 5),
        (Torus(), 20, 2 + 2),
        (Torus(rows=2), 20, 1 + 5),
        (Torus(), 7, 3),
        (Tree(), 15, 6),
        (Tree(branching=1), 5, 4),
    ],
    ids=str,
)
def test_diameters(topology, size, diameter):
    assert nx.diameter(topology.graph(size)) == diameter


@pytest.mark.parametrize("size", [1, 2, 6, 12, 16, 31])
def test_structured_graphs_are_networkx_s(size):
    tree = nx.Graph(Tree(branching=3).graph(size).edges)
    assert tree.number_of_edges() == size - 1
    assert set(tree.edges) == {tuple(sorted(e)) for e in nx.full_rary_tree(3, size).edges}
    torus = nx.Graph(Torus().graph(size).edges)
    grid = nx.grid_2d_graph(*Torus().shape(size), periodic=True)
    grid.remove_edges_from(nx.selfloop_edges(grid))
    assert nx.is_isomorphic(torus, nx.Graph(grid.edges))


@pytest.mark.parametrize(("size", "shape"), [(16, (4, 4)), (20, (4, 5)), (7, (1, 7))])
def test_a_torus_is_as_square_as_can_be(size, shape):
    assert Torus().shape(size) == shape


@given(size=SIZES, round=ROUNDS, seed=st.integers(0, 2**40))
def test_a_random_matching_pairs_all_but_one_at_most(size, round, seed):
    topology = RandomMatching(seed=seed)
    partners = [topology.out_neighbors(rank, size, round) for rank in range(size)]
    assert sum(not partner for partner in partners) == size % 2
    for rank, partner in enumerate(partners):
        assert not partner or partners[partner[0]] == (rank,)


def test_a_random_matching_leaves_no_pair_out():
    topology = RandomMatching()
    pairs = {(i, j) for k in range(300) for i in range(6) for j in topology.out_neighbors(i, 6, k)}
    assert len(pairs) == 30


def test_random_graphs_depend_on_their_seed_only():
    assert all(len(RandomRegular(degree=3).out_neighbors(k, 10, 0)) == 3 for k in range(10))
    for made in (RandomRegular, SmallWorld):
        drawn = [made(seed=k).graph(20).edges for k in (0, 0, 1)]
        assert set(drawn[0]) == set(drawn[1]) != set(drawn[2])
    assert set(SmallWorld(rewiring=0).graph(9).edges) == set(
        nx.watts_strogatz_graph(9, 4, 0).to_directed().edges
    )
    # Written down: the same in every process.
    assert RandomRegular().out_neighbors(0, 16, 0) == (1, 2, 7, 15)
    assert SmallWorld(rewiring=1.0).out_neighbors(0, 16, 0) == (6, 13)


def test_time_varying_topologies_go_through_their_own_rounds():
    topology = TimeVarying(topologies=[Star(), OnePeerExponential()])
    assert topology.period(16) == 8
    hops = [topology.out_neighbors(3, 16, k) for k in range(8)]
    assert hops == [(0,), (4,), (0,), (5,), (0,), (7,), (0,), (11,)]
    assert TimeVarying(topologies=[Star(), RandomMatching()]).period(16) is None
    assert neighbors(topology, 16, 3, 0).out == {0: 0.5}


def test_metropolis_hastings_weights():
    peers = neighbors(MetropolisHastings(topology=Star()), 5, 1, 0)
    assert peers == Neighbors({0: 0.2}, (0,), 0.8)
    centre = neighbors(MetropolisHastings(topology=Star()), 5, 0, 0)
    assert centre.self_weight == pytest.approx(0.2)


def test_self_weights():
    ring = neighbors(SelfWeight(topology=Ring(), weight=0.4), 5, 0, 0)
    assert ring == Neighbors({4: 0.3, 1: 0.3}, (4, 1), 0.4)
    each = SelfWeight(topology=DirectedRing(), weight=[0.0, 0.5, 0.25])
    assert [neighbors(each, 3, k, 0).self_weight for k in range(3)] == [0.0, 0.5, 0.25]
    assert neighbors(SelfWeight(topology=BipartiteMatching()), 3, 0, 0).self_weight == 1.0


@pytest.mark.parametrize(
    ("topology", "size", "text"),
    [
        (Hypercube(), 6, "Hypercube needs a power of two of workers, not 6: take 4 or 8"),
        (Torus(rows=3), 16, r"rows=3\) needs a multiple of 3 workers, not 16: take 15 or 18"),
        (Torus(rows=5), 3, "take 5$"),
        (RandomRegular(degree=3), 7, "does not exist for 7 workers, since their product is odd"),
        (RandomRegular(degree=8), 8, "needs at least 9 workers, not 8: give a smaller degree"),
        (SmallWorld(), 4, "needs at least 5 workers, not 4: give fewer neighbours"),
        (TimeVarying(topologies=[Ring(), Hypercube()]), 6, "Hypercube needs a power of two"),
        (MetropolisHastings(topology=Hypercube()), 6, "Hypercube needs a power of two"),
        (
            MetropolisHastings(topology=DirectedRing()),
            4,
            "MetropolisHastings needs an undirected topology, but DirectedRing has an edge 0 -> 1 "
            "and none back",
        ),
        (SelfWeight(topology=Ring(), weight=[0.5]), 4, "has 1 weights but there are 4 workers"),
    ],
    ids=str,
)
def test_sizes_that_do_not_exist(topology, size, text):
    with pytest.raises(ValueError, match=text) as caught:
        topology.validate(size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: RandomMatching(seed=-1), "seed is -1"),
        (lambda: SmallWorld(seed=-1), "seed is -1"),
        (lambda: SmallWorld(neighbors=3), "neighbors is 3: give an even integer >= 2"),
        (lambda: SmallWorld(rewiring=1.5), "rewiring is 1.5: give a number from 0 to 1"),
        (lambda: RandomRegular(degree=1), "degree is 1: give an integer >= 2"),
        (lambda: Tree(branching=0), "branching is 0"),
        (lambda: Torus(rows=0), "rows is 0"),
        (lambda: TimeVarying(topologies=[]), "TimeVarying has no topologies"),
        (lambda: SelfWeight(topology=Ring(), weight=1.0), "weight is 1.0: give a number >= 0"),
    ],
)
def test_settings_that_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("0 1\n1 two\n", "line 2 is '1 two': write two ranks such as `0 1`"),
        ("0 1\n\n# x\n1 2 3\n", "line 4 is '1 2 3'"),
        ("0 -1\n", "line 1 is '0 -1'"),
        ("# nothing\n", "has no edges"),
    ],
)
def test_edge_lists_that_cannot_be_read(tmp_path, content, text):
    path = tmp_path / "edges.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=text):
        EdgeList(path=str(path))
    with pytest.raises(ValueError, match="there is no edge list"):
        EdgeList(path=str(tmp_path / "none.txt"))


def test_an_edge_list_names_its_file_in_errors(tmp_path):
    (tmp_path / "edges.txt").write_text("0 1\n1 7  # far\n")
    with pytest.raises(ValueError, match=r"edges.txt has an edge \(1, 7\) but 3 workers"):
        EdgeList(path=str(tmp_path / "edges.txt")).validate(3)
