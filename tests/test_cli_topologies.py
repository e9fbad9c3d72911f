"""`offbeat topologies`: what it prints, draws and refuses."""

import pytest

from offbeat.cli import main
from offbeat.report.topologies import properties
from offbeat.topology import TOPOLOGIES, OnePeerExponential, RandomMatching, Star

MINE = """
from dataclasses import dataclass
from offbeat.topology import Ring

@dataclass(frozen=True, kw_only=True)
class MyRing(Ring):
    pass
"""


def rows(output: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in output.splitlines()[2:] if line.strip()}


def test_without_names_all_that_need_no_settings(capsys):
    assert main(["topologies", "--workers", "6"]) == 0
    output = capsys.readouterr().out
    found = rows(output)
    with_settings = {
        "TimeVarying", "Graph", "WeightedGraph", "EdgeList", "MetropolisHastings", "SelfWeight",
    }  # fmt: skip
    assert set(TOPOLOGIES) - with_settings <= set(found)
    assert not with_settings & set(found)
    assert found["Hypercube"] == ["none"]
    assert "Hypercube: Hypercube needs a power of two of workers, not 6: take 4 or 8" in output


def test_the_figures_of_a_ring(capsys):
    assert main(["topologies", "Ring", "--workers", "12", "--bytes", "500"]) == 0
    assert rows(capsys.readouterr().out)["Ring"] == [
        *("2", "6", "1", "0.911", "0.089", "24.6", "yes"),
        *("1", "kB", "12", "kB"),
    ]


def test_settings_files_and_wrappers(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_rings.py").write_text(MINE)
    (tmp_path / "edges.txt").write_text("0 1\n1 2\n2 3\n")
    names = [
        "Torus(rows=2)",
        "my_rings.py:MyRing",
        "MetropolisHastings(topology=Star())",
        "TimeVarying(topologies=[Ring(),Star()])",
        "EdgeList(path='edges.txt')",
        "SelfWeight(topology=Ring(),weight=0.4)",
        "Graph(edges=[(0,1),(1,2),(2,3)])",
    ]
    assert main(["topologies", *names, "--workers", "4"]) == 0
    assert set(names) <= set(rows(capsys.readouterr().out))


@pytest.mark.parametrize(("size", "suffix"), [(1, "png"), (5, "svg"), (40, "svg")])
def test_draws_the_same_bytes_each_time(size, suffix, tmp_path, capsys):
    names = ["Star", "Torus", "OnePeerExponential", "RandomMatching"]
    paths = [tmp_path / f"{k}.{suffix}" for k in range(2)]
    for path in paths:
        assert main(["topologies", *names, "--workers", str(size), "--draw", str(path)]) == 0
    assert f"drawn in {paths[1]}" in capsys.readouterr().out.replace("\n", "")
    assert paths[0].read_bytes() == paths[1].read_bytes()
    if suffix == "svg":
        assert "RandomMatching" in paths[0].read_text()


def test_properties():
    one_peer = properties(OnePeerExponential(), 16)
    assert (one_peer.contraction, one_peer.rounds_to_tenth, one_peer.period) == (0, 4, 4)
    assert one_peer.sends == (1, 16)
    star = properties(Star(), 5)
    assert (star.degree, star.diameter, star.doubly_stochastic) == ((1, 4), 2, False)
    assert star.sends == (4, 8)
    assert properties(RandomMatching(), 6).diameter is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--workers", "0"], "--workers is 0; it must be at least 1"),
        (["--workers", "-3"], "--workers is -3; it must be at least 1"),
        (["--workers", "abc"], "workers must be a whole number, not 'abc'"),
        (["Rng"], "there is no topology Rng; did you mean Ring?"),
        (["Torus("], "cannot read 'Torus('; write Name or Name(setting=value)"),
        (["Torus(4)"], "cannot read 'Torus(4)'; write Name or Name(setting=value)"),
        (["Torus(row=4)"], "Torus has no setting 'row'; did you mean rows?"),
        (["none.py:Mine"], "there is no file none.py to take Mine from"),
        (["Hypercube", "--workers", "6"], "Hypercube needs a power of two of workers, not 6"),
        (["Ring", "--draw", "ring.gif"], "--draw ring.gif: give a path that ends in .png or .svg"),
        (["Ring", "--draw", "no/ring.png"], "cannot write to --draw no/ring.png: No such file"),
        (["Ring", "--round", "1"], "--round says which round to draw: add --draw PATH"),
        (["SmallWorld(neighbors=3)"], "neighbors is 3: give an even integer >= 2"),
        (["EdgeList(path='none.txt')"], "there is no edge list"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line(options, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["topologies", *options]) == 2
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not list(tmp_path.iterdir())
