"""Ratings, graphs, images and LIBSVM files: what is read, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from offbeat.hogwild import GraphCut, MatrixCompletion, Settings, SparseLogistic, SparseSVM, train
from offbeat.hogwild.graphs import read_dimacs
from offbeat.hogwild.ratings import read_ratings
from offbeat.problems import DataError

TABBED = "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t302\t5\t878887116\n"
COLONS = "196::242::3::881250949\n186::302::3::891717742\n196::302::5::878887116\n"
COMMAS = "userId,movieId,rating,timestamp\n196,242,3.0,1\n186,302,3.0,2\n196,302,5.0,3\n"


def _entries(found):
    return zip(found.row, found.column, found.values, strict=True)


@pytest.mark.parametrize("text", [TABBED, COLONS, COMMAS], ids=["u.data", "dat", "csv"])
def test_movielens_formats(tmp_path, text):
    path = tmp_path / "ratings"
    path.write_text(text)
    found = read_ratings(path, 0.5, 5)
    assert (found.rows, found.columns) == (2, 2)
    entries = {(int(r), int(c)): v for r, c, v in _entries(found)}
    assert entries == {(1, 0): 3, (0, 1): 3, (1, 1): 5}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TABBED + "7\t8\t6\t1\n", r"line 4: rating 6 is not from 0.5 to 5"),
        (COMMAS + "7,8,nan,1\n", r"line 5: rating nan is not from 0.5 to 5"),
        (COLONS + "7::8\n", r"line 4: '7.*8' is no user, item and rating"),
        (TABBED + "7\teight\t3\t1\n", r"line 4: .* is no user, item and rating"),
        (TABBED + "7.5\t8\t3\t1\n", r"line 4: .* is no user, item and rating"),
        (TABBED + "196\t242\t4\t1\n", r"line 4: user 196 has rated item 242 in line 1"),
        ("", "has no ratings"),
        ("\n\n", "has no ratings"),
        (COMMAS.splitlines()[0] + "\n", "has no ratings"),
    ],
)
def test_ratings_that_are_refused(tmp_path, text, said):
    path = tmp_path / "ratings"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_ratings(path, 0.5, 5)


def test_ratings_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_ratings(tmp_path / "none", 0.5, 5)


def test_factors_are_learned_from_a_file(tmp_path):
    rng = np.random.default_rng(0)
    left, right = rng.uniform(0.8, 1.5, (40, 2)), rng.uniform(0.8, 1.5, (30, 2))
    lines = [f"{u}::{v}::{left[u] @ right[v]:.4f}::0" for u in range(40) for v in range(30)]
    path = tmp_path / "ratings.dat"
    path.write_text("\n".join(lines))
    problem = MatrixCompletion(ratings=str(path), rank=2, penalty=0)
    found = train(problem, Settings(epochs=60, decay=0.98, step=0.02))
    assert found.errors["test error"] < 0.1 < found.epochs[0].errors["test error"]


SQUARE = """c a square with a terminal at two corners
p max 6 7
n 5 s
n 6 t
a 5 1 4
a 1 2 1
a 1 3 2
a 2 4 3
a 3 4 3
a 4 6 5
a 2 1 1
"""


def test_dimacs(tmp_path):
    path = tmp_path / "square.max"
    path.write_text(SQUARE)
    graph = read_dimacs(path)
    assert graph.vertices == 4
    # 1-2 and 1-3 are the cheapest way to part 1, which is with s, from 4, which is with t.
    assert graph.minimum_cut() == 3
    problem = GraphCut(graph=str(path))
    found = train(problem, Settings(scheme="serial", workers=1, epochs=200, decay=0.97, step=0.05))
    assert found.errors == {"cut": 3}
    assert found.optimum == pytest.approx(2 * 3 / 6)
    assert found.objective == pytest.approx(found.optimum, rel=0.02)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("a 1 2 1", "a 1 7 1"), "line 6: there is no vertex 7: they are 1 to 6"),
        (("a 1 2 1", "a 1 x 1"), "line 6: there is no vertex x"),
        (("a 1 2 1", "a 1 2 -1"), "line 6: capacity -1 is no whole number"),
        (("a 1 2 1", "a 1 1 1"), "line 6: vertex 1 has an arc to itself"),
        (("a 1 2 1", "edge 1 2"), "line 6: 'edge 1 2' is no line of p max, n, a or c"),
        (("a 2 1 1", "a 2 1 2"), "line 11: the arc from 2 to 1 has capacity 2, and one between"),
        (("n 6 t", "n 5 t"), "line 4: vertex 5 as t: there is one s and one t"),
        (("n 6 t", "c"), "has no line `n ID t`"),
        (("p max 6 7", "c"), "line 3: the line `p max VERTICES ARCS` has to come first"),
        (("p max 6 7", "p max 7 7"), "has no arc of vertex 7"),
    ],
)
def test_graphs_that_are_refused(tmp_path, change, said):
    path = tmp_path / "square.max"
    path.write_text(SQUARE.replace(*change))
    with pytest.raises(DataError, match=said):
        read_dimacs(path)


def test_a_graph_of_terminals_alone_is_refused(tmp_path):
    path = tmp_path / "empty.max"
    path.write_text("p max 3 2\nn 1 s\nn 2 t\na 1 2 5\na 1 3 0\n")
    with pytest.raises(DataError, match="no arc with a capacity but between the terminals"):
        read_dimacs(path)


def test_an_image_is_parted_at_its_edge(tmp_path):
    picture = np.zeros((12, 16), np.uint8)
    picture[:, 8:] = 255
    path = tmp_path / "halves.png"
    Image.fromarray(picture).save(path)
    problem = GraphCut(image=str(path))
    instance = problem.instance()
    found = train(problem, Settings(scheme="serial", workers=1))
    labels = found.x.reshape(12, 16, 2).argmax(2)
    assert (labels == (picture > 0)).all()
    # Neighbours across the edge have weight 10 exp(-1), rounded.
    assert found.errors["cut"] == instance.optimum * instance.edges / 2 == 12 * 4


def test_what_is_no_picture_is_refused(tmp_path):
    path = tmp_path / "text.png"
    path.write_text("hello")
    with pytest.raises(DataError, match="is no picture that can be read"):
        GraphCut(image=str(path)).instance()


GOOD = "+1 1:0.5 3:1\n-1 2:1\n+1 1:1 2:-1\n"


def test_a_file_of_samples(tmp_path):
    path, test = tmp_path / "train.svm", tmp_path / "test.svm"
    path.write_text(GOOD)
    test.write_text("-1 4:1\n")
    instance = SparseSVM(train=str(path), test=str(test)).instance()
    assert (instance.edges, instance.vertices) == (3, 4)
    assert instance.sparsity.omega == 2
    assert set(instance.errors(instance.start)) == {"train error", "test error"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "+1 2:x\n", r"line 4: '2:x' is no index:value"),
        (GOOD + "+1 3:1 2:1\n", r"line 4: index 2 comes after 3: indices must increase"),
        (GOOD + "+1 2:1 2:1\n", r"line 4: index 2 is repeated"),
        (GOOD + "3 2:1\n", r"line 4: label 3 is neither"),
        ("+1 1:1\n+1 2:1\n", r"one label only, 1, and two classes are wanted"),
        (GOOD + "# nothing\n+1\n", r"line 5: a sample without any feature"),
        ("", "no samples"),
    ],
)
@pytest.mark.parametrize("made", [SparseSVM, SparseLogistic])
def test_samples_that_are_refused(tmp_path, made, text, said):
    path = tmp_path / "train.svm"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        made(train=str(path)).instance()


@pytest.mark.parametrize(
    ("made", "settings", "said"),
    [
        (SparseSVM, {"nonzeros": 9, "features": 5}, "nonzeros is 9, which is more than the 5"),
        (SparseSVM, {"rows": 0}, "rows is 0; it must be at least 1"),
        (SparseSVM, {"rho": 0.0}, "rho is 0; it must be above 0 and at most 1"),
        (SparseSVM, {"rho": 0.1, "skew": 1.0}, "skew with rho"),
        (SparseSVM, {"rho": 0.1, "rows": 7}, "7 rows with rho"),
        (SparseSVM, {"name": "a9a", "train": "x"}, "give one of the two"),
        (SparseSVM, {"test": "x"}, "needs a train file"),
        (SparseSVM, {"data_dir": "x"}, "is for data sets by name"),
        (MatrixCompletion, {"entries": 9, "rows": 2, "columns": 2}, "entries is 9, and a matrix"),
        (MatrixCompletion, {"held_out": 1.0}, "held_out is 1"),
        (MatrixCompletion, {"least": 5.0}, "least is 5; it must be below most, 5"),
        (GraphCut, {"ways": 1}, "ways is 1; it must be at least 2"),
        (GraphCut, {"ways": 3, "graph": "x"}, "the graph of a file has two terminals"),
        (GraphCut, {"image": "y", "graph": "x"}, "give one of the two"),
    ],
)
def test_settings_that_cannot_be(made, settings, said):
    with pytest.raises(ValueError, match=said):
        made(**settings)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a 1 2 \u00b2", "line 4: capacity \u00b2 is no whole number from 0 to"),
        ("a 1 2 99999999999999999999", "line 4: capacity 99999999999999999999 is no whole number"),
        ("a 1 2 4000000000", "line 4: capacity 4000000000 is no whole number"),
        ("p max 3 2", "line 4: there is a line `p max VERTICES ARCS` already"),
    ],
)
def test_dimacs_numbers_out_of_range(tmp_path, lines, said):
    path = tmp_path / "graph.max"
    path.write_text(f"p max 4 3\nn 1 s\nn 4 t\n{lines}\na 2 3 5\na 3 4 5\n", encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_dimacs(path)


def test_none_left_to_train_on():
    with pytest.raises(ValueError, match="leaves none of 1 entries to train on"):
        MatrixCompletion(entries=1, held_out=0.9).instance()


def test_a_skew_that_would_draw_forever():
    with pytest.raises(ValueError, match=r"skew is 9: an edge of .* choose a smaller one"):
        SparseSVM(rows=20, features=1000, nonzeros=50, skew=9).instance()
