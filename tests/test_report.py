"""Plots: they exist, show what they should, and bear odd runs."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from offbeat import Budget, Cluster, simulate
from offbeat.cli.output import nodes, summary
from offbeat.methods import METHODS, SGD, AllReduceSGD, AsyncSGD, LocalSGD
from offbeat.problems import LeastSquares
from offbeat.report import plots
from offbeat.report.plots import plot_metric, plot_run, plot_timelines


def run_of(method, problem=None, **settings):
    settings.setdefault("cluster", Cluster(workers=4, slow={2: 4.0}))
    settings.setdefault("budget", Budget(samples=3200))
    return simulate(method, problem, **settings)


@pytest.fixture(scope="module")
def asynchronous():
    return run_of(AsyncSGD())


@pytest.fixture(scope="module")
def synchronous():
    return run_of(AllReduceSGD())


def share(path, colour):
    """The share of an image's pixels that have that colour."""
    pixels = imread(path)[..., :3]
    return float((np.abs(pixels - np.array(to_rgb(colour))).max(axis=-1) < 0.02).mean())


def test_accuracy_shows_a_line_per_method_in_its_familys_colour(
    asynchronous, synchronous, tmp_path
):
    path = plot_metric({"a": [asynchronous], "b": [synchronous]}, tmp_path, target=0.5)
    assert path == tmp_path / "accuracy.png"
    for family in ("parameter server", "all-reduce"):
        assert share(path, plots.FAMILY_COLOURS[family]) > 1e-3
    assert share(path, plots.FAMILY_COLOURS["decentralized"]) < 1e-4
    assert 0.5 < share(path, "white") < 0.99


def test_a_problem_without_accuracy_is_plotted_by_its_loss(tmp_path):
    run = run_of(SGD(), LeastSquares())
    assert [path.name for path in plot_run(run, tmp_path)] == ["loss.png", "timeline.png"]
    assert share(tmp_path / "loss.png", plots.FAMILY_COLOURS["serial"]) > 1e-3


def test_timelines_show_waiting_where_there_is_waiting(asynchronous, synchronous, tmp_path):
    shares = {}
    for name, run in (("async", asynchronous), ("sync", synchronous)):
        (tmp_path / name).mkdir()
        path = plot_timelines({name: run}, tmp_path / name)
        shares[name] = {
            colour: share(path, colour)
            for colour in (plots.COMPUTING, plots.WAITING, plots.TRANSFERRING)
        }
        assert shares[name][plots.COMPUTING] > 0.05
        assert shares[name][plots.TRANSFERRING] > 1e-3
    # Three of four workers wait for the slow one three quarters of the time.
    assert shares["sync"][plots.WAITING] > 3 * shares["async"][plots.WAITING] > 0


def test_bars_are_clipped_to_the_span():
    rows = [(0, 0, 10, 0.0), (0, 10, 30, 0.0), (0, 30, 50, 0.0), (1, 0, 50, 0.0)]
    table = np.array(
        [(node, start * 10**6, end * 10**6, loss) for node, start, end, loss in rows],
        dtype=[("node", "i4"), ("start_ns", "i8"), ("end_ns", "i8"), ("loss", "f8")],
    )
    bars = plots._bars(table, "node", 0, start=0.020, span=0.020)
    assert [pytest.approx(bar) for bar in bars] == [(20.0, 10.0), (30.0, 10.0)]


def test_the_legend_is_in_order_of_arrival():
    assert plots._arrival(1.5) == "1.50"
    assert plots._arrival(math.inf).strip() == "\u2013"


def test_accuracies_near_one_are_spread_out():
    figure, axes = plots._figure(4, 3)
    plots._accuracy_scale(axes, best=0.97)
    figure.canvas.draw()
    y = [axes.transData.transform((0, accuracy))[1] for accuracy in (0.5, 0.8, 0.92)]
    # Each step here divides the error by 2.5.
    assert y[2] - y[1] == pytest.approx(y[1] - y[0], rel=1e-6)


@pytest.mark.parametrize("workers", [1, 40])
def test_few_and_many_workers_are_plotted(workers, tmp_path):
    run = run_of(LocalSGD(), LeastSquares(samples=400), cluster=Cluster(workers=workers))
    plot_run(run, tmp_path)
    assert share(tmp_path / "timeline.png", plots.COMPUTING) > 0.05


def test_a_run_that_failed_at_once_is_plotted(tmp_path):
    run = run_of(AllReduceSGD(), optimizer=functools.partial(torch.optim.SGD, lr=1e30))
    assert run.error
    assert all(path.is_file() for path in plot_run(run, tmp_path))


def test_nodes_are_counted_in_words():
    assert nodes(SGD(), 1) == "1 worker"
    assert nodes(AsyncSGD(), 4) == "4 workers + 1 server"
    assert nodes(AsyncSGD(servers=2), 4) == "4 workers + 2 servers"
    assert nodes(AsyncSGD(servers=2, colocated=True), 4) == (
        "4 workers, 2 servers colocated with them"
    )


def test_the_summary_says_what_went_wrong_and_who_left(asynchronous):
    lines = dict(summary(dataclasses.replace(asynchronous, stop="error", notes=["node 1 left"])))
    assert lines["stopped"] == "an error"
    assert lines["note"] == "node 1 left"
    assert lines["run"] == "AsyncSGD on Digits, simulated: 4 workers + 1 server"
    assert f"{asynchronous.metrics[-1].accuracy:.2%}" in lines["test"]


def test_every_family_of_the_registry_has_a_colour_of_its_own():
    families = {method.family for method in METHODS.values()}
    assert families < plots.FAMILY_COLOURS.keys()
    assert len(set(plots.FAMILY_COLOURS.values())) == len(plots.FAMILY_COLOURS)
