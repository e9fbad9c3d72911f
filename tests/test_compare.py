"""The comparison: how rates are chosen, and what happens to methods that fail."""

import csv
import dataclasses
import functools
import math
from dataclasses import dataclass

import pytest
import torch

from offbeat import Budget, Cluster, Experiment, Method
from offbeat.api import simulate_experiment
from offbeat.cli import main
from offbeat.cli.compare import method_of
from offbeat.compare import Trial, best_rate, compare
from offbeat.methods import (
    ADPSGD,
    SGD,
    AllReduceSGD,
    AsyncSGD,
    LocalSGD,
    SlowMo,
    StochasticGradientPush,
)
from offbeat.problems import Digits
from offbeat.report.tables import comparison_table, footnotes, write_csv
from offbeat.topology import Ring

BASE = Experiment(
    method=SGD(),
    problem=Digits(),
    cluster=Cluster(workers=4, slow={3: 4.0}),
    optimizer=functools.partial(torch.optim.SGD, lr=99.0, momentum=0.5),
    budget=Budget(samples=6400),
)


@dataclass(frozen=True, kw_only=True)
class Raising(Method):
    async def step(self, node):
        await node.gradient()
        raise KeyError("broken")


@dataclass(frozen=True, kw_only=True)
class Interrupting(Method):
    async def step(self, node):
        await node.gradient()
        raise KeyboardInterrupt


def trial(rate, accuracy, loss=1.0, *, seed=0, error=None):
    return Trial(label="m", rate=rate, seed=seed, loss=loss, accuracy=accuracy, error=error)


# Choosing


def test_the_most_accurate_rate_is_chosen_then_that_of_least_loss():
    assert best_rate([trial(0.1, 0.8), trial(0.3, 0.9), trial(1.0, 0.7)]) == 0.3
    assert best_rate([trial(0.1, 0.9, 0.5), trial(0.3, 0.9, 0.4)]) == 0.3
    assert best_rate([trial(0.1, math.nan, 0.5), trial(0.3, math.nan, 0.6)]) == 0.1
    assert best_rate([trial(0.3, 0.9, 0.5), trial(0.1, 0.9, 0.5)]) == 0.1


def test_a_rate_that_fails_under_one_seed_is_not_chosen():
    tried = [trial(0.1, 0.5), trial(0.1, 0.5, seed=1), trial(0.3, 0.9)]
    assert best_rate([*tried, trial(0.3, 0.9, seed=1, error="diverged")]) == 0.1
    assert best_rate([*tried, trial(0.3, 0.9, math.nan, seed=1)]) == 0.1
    assert best_rate([*tried, trial(0.3, 0.9, seed=1)]) == 0.3
    assert best_rate([trial(0.1, 0.5, error="diverged")]) is None


def test_rates_are_chosen_on_validation_data_and_judged_on_test_data():
    result = compare({"all": AllReduceSGD()}, BASE, rates=(0.3, 0.03, 0.1), seeds=(1, 2))
    (entry,) = result.entries
    assert result.rates == (0.03, 0.1, 0.3)
    assert [(t.rate, t.seed) for t in entry.trials] == [
        (rate, seed) for rate in (0.03, 0.1, 0.3) for seed in (1, 2)
    ]
    assert [run.experiment.seed for run in entry.runs] == [1, 2]
    for run in entry.runs:
        assert run.experiment.evaluate_on == "test"
        # Every setting of the optimizer but its rate is the experiment's.
        assert run.experiment.optimizer.keywords == {"lr": entry.rate, "momentum": 0.5}
        assert run.experiment.cluster == BASE.cluster
    assert entry.rate == best_rate(entry.trials)
    by_hand = dataclasses.replace(
        BASE,
        method=AllReduceSGD(),
        seed=1,
        optimizer=functools.partial(torch.optim.SGD, lr=0.03, momentum=0.5),
        evaluate_on="validation",
    )
    assert entry.trials[0].accuracy == simulate_experiment(by_hand).metrics[-1].accuracy


def test_rates_at_the_edge_are_marked():
    result = compare({"low": SGD(), "async": AsyncSGD()}, BASE, rates=(0.001, 0.1), target=0.5)
    assert all(entry.at_edge for entry in result.entries)
    assert "at the edge of the grid" in footnotes(result)[0]
    result = compare({"mid": AllReduceSGD()}, BASE, rates=(0.0001, 0.1, 1000.0), target=0.5)
    assert (result.entries[0].rate, result.entries[0].at_edge) == (0.1, False)
    assert not any("edge" in note for note in footnotes(result))


# What the table says


def test_time_and_samples_to_the_target_are_those_of_the_first_evaluation_above_it():
    result = compare({"async": AsyncSGD()}, BASE, rates=(0.1,), target=0.6)
    (entry,) = result.entries
    (run,) = entry.runs
    first = next(row for row in run.metrics if row.accuracy >= 0.6)
    mean = entry.mean()
    assert 0 < first.samples < 6400
    assert (mean["seconds_to_target"], mean["samples_to_target"]) == (first.seconds, first.samples)
    assert mean["staleness_max"] >= mean["staleness_mean"] > 2
    assert 0 < mean["idle_share"] < 0.2
    assert mean["bytes"] == run.metrics[-1].bytes


def test_the_slow_worker_idles_the_others_of_a_synchronous_method_only():
    result = compare({"sync": AllReduceSGD(), "peers": ADPSGD()}, BASE, rates=(0.1,))
    sync, peers = (entry.mean()["idle_share"] for entry in result.entries)
    # Three workers compute for about a quarter of the time, one for nearly all of it.
    assert 0.5 < sync < 0.65
    assert peers < 0.1


def test_what_misses_the_target_is_marked():
    result = compare({"async": AsyncSGD()}, BASE, rates=(0.1,), target=1.0)
    assert result.entries[0].reached == 0
    assert math.isnan(result.entries[0].mean()["seconds_to_target"])
    assert "not reached: async did not get to 100% test accuracy" in footnotes(result)[0]
    assert "not reached" in cells(result)[0][3]


# Failures


def test_a_diverging_rate_is_passed_over_and_told():
    result = compare({"sync": AllReduceSGD()}, BASE, rates=(0.1, 1e30), target=0.5)
    (entry,) = result.entries
    assert entry.rate == 0.1
    assert [bool(t.error) for t in entry.trials] == [False, True]
    assert "diverged" in entry.trials[1].error
    assert "sync: failed at learning rate 1e+30 of the grid" in footnotes(result)


def test_methods_that_fail_do_not_stop_the_others(tmp_path):
    methods = {"raising": Raising(), "good": AllReduceSGD(), "other": Raising()}
    result = compare(methods, BASE, rates=(0.1,), target=0.5)
    raising, good, _ = result.entries
    assert raising.rate is None
    assert raising.runs == []
    assert "failed at every rate" in raising.error
    assert "broken" in raising.error
    assert good.error is None
    assert good.reached == 1
    assert cells(result)[0][1] == "failed"
    write_csv(result, tmp_path)
    rows = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["good", "raising", "other"]
    assert "broken" in rows[1]["error"]
    grid = list(csv.DictReader((tmp_path / "grid.csv").read_text().splitlines()))
    assert [(row["method"], row["rate"]) for row in grid] == [
        ("raising", "0.1"),
        ("good", "0.1"),
        ("other", "0.1"),
    ]


def test_interrupted_it_keeps_what_is_finished():
    result = compare({"good": AllReduceSGD(), "last": Interrupting()}, BASE, rates=(0.1,))
    assert result.interrupted
    good, last = result.entries
    assert len(good.trials) == 1
    assert last.trials == []
    assert (good.error, last.error) == ("interrupted", "interrupted")


def test_processes_give_the_same_as_one():
    methods = {"async": AsyncSGD(), "peers": ADPSGD()}
    alone, shared = (
        compare(methods, BASE, rates=(0.1, 0.3), target=0.5, jobs=jobs) for jobs in (1, 2)
    )
    for one, two in zip(alone.entries, shared.entries, strict=True):
        assert one.trials == two.trials
        assert one.runs[0].metrics == two.runs[0].metrics
        assert torch.equal(one.runs[0].vector, two.runs[0].vector)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rates": ()}, "rates are "),
        ({"rates": (0.1, math.inf)}, "give positive numbers"),
        ({"target": 0.0}, "target is 0"),
        ({"seeds": ()}, "no seed"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        compare({"sgd": SGD()}, BASE, **settings)


# The command


def test_a_method_and_its_settings_on_one_word():
    assert method_of("LocalSGD(local_steps=4)") == LocalSGD(local_steps=4)
    nested = "SlowMo(inner=StochasticGradientPush(topology=Ring), beta=0.25, buffers='keep')"
    inner = StochasticGradientPush(topology=Ring())
    assert method_of(nested) == SlowMo(inner=inner, beta=0.25, buffers="keep")


def test_the_command_prints_a_table_and_saves_everything(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--cluster.workers", "4", "--budget.samples", "6400", "--target", "0.5"]
    methods = ["AsyncSGD", "LocalSGD(local_steps=4)"]
    rates = ["--rates", "0.03,0.1,1e30", "--jobs", "1"]
    assert main(["compare", *methods, *options, *rates, "--out", "out"]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines["LocalSGD(local_steps=4)"][1] == "0.1"
    assert "AsyncSGD: failed at learning rate 1e+30 of the grid" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "AsyncSGD",
        "LocalSGD-local_steps=4",
        "accuracy.png",
        "comparison.csv",
        "grid.csv",
        "timeline.png",
    }
    # Every final run is a run directory that repeats.
    again = ["simulate", "--config", "out/LocalSGD-local_steps=4/experiment.yaml"]
    assert main([*again, "--out", "again"]) == 0
    first = tmp_path / "out/LocalSGD-local_steps=4/parameters.safetensors"
    assert first.read_bytes() == (tmp_path / "again/parameters.safetensors").read_bytes()


def cells(result):
    """The table's rows, as lists of text."""
    columns = [list(column.cells) for column in comparison_table(result).columns]
    return [list(row) for row in zip(*columns, strict=True)]
