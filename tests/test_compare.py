"""The comparison: how rates are chosen, and what happens to methods that fail."""

import csv
import dataclasses
import functools
import io
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console

from offbeat import Budget, Cluster, Experiment, Method
from offbeat.api import simulate_experiment
from offbeat.cli import main
from offbeat.cli.spec import spec_of
from offbeat.compare import Trial, best_rate, compare, compare_runs
from offbeat.methods import (
    ADPSGD,
    SGD,
    AllReduceSGD,
    AsyncSGD,
    LocalSGD,
    SlowMo,
    StochasticGradientPush,
)
from offbeat.problems import Digits, LeastSquares
from offbeat.report.tables import comparison_tables, footnotes, write_csv
from offbeat.schedule import Cosine
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
    assert "not reached" in cells(result)[0][4]


def test_the_spread_is_that_over_the_seeds_and_one_seed_has_none():
    learning = dataclasses.replace(BASE, optimizer=functools.partial(torch.optim.SGD, lr=0.1))
    result = compare({"async": AsyncSGD()}, learning, tune="none", seeds=(0, 1, 2))
    (entry,) = result.entries
    values = [run.metrics[-1].accuracy for run in entry.runs]
    mean = sum(values) / 3
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / 2)
    assert entry.spread()["accuracy"] == pytest.approx(deviation)
    assert deviation > 0
    assert cells(result)[0][2] == f"{mean:.1%} ± {100 * deviation:.1f}"
    assert "sample standard deviation over 3 seeds" in footnotes(result)[0]
    alone = compare({"async": AsyncSGD()}, learning, tune="none")
    assert math.isnan(alone.entries[0].spread()["accuracy"])
    assert not any("±" in cell for cell in cells(alone)[0])


def test_at_equal_time_each_run_is_read_when_the_fastest_ended():
    methods = {"sync": AllReduceSGD(), "async": AsyncSGD()}
    result = compare(methods, BASE, rates=(0.1,))
    slow, fast = (entry.runs[0] for entry in result.entries)
    assert result.seconds == fast.metrics[-1].seconds < slow.metrics[-1].seconds
    before = [row for row in slow.metrics if row.seconds <= result.seconds]
    shown = [row[3] for row in cells(result)]
    assert shown == [f"{r.accuracy:.1%}" for r in (before[-1], fast.metrics[-1])]
    assert before[-1].accuracy < slow.metrics[-1].accuracy
    late = compare(methods, BASE, rates=(0.1,), seconds=slow.metrics[-1].seconds)
    assert cells(late)[1][3] == f"{fast.metrics[-1].accuracy:.1%}†"
    assert "†" not in cells(late)[0][3]
    assert any(note.startswith("† ended before") for note in footnotes(late))


def test_tables_are_as_wide_as_they_may_be():
    result = compare({"async": AsyncSGD()}, BASE, tune="none", seeds=(0, 1))
    for width, count in ((130, 1), (80, 2), (60, 2)):
        tables = comparison_tables(result, width)
        assert len(tables) == count
        for table in tables:
            console = Console(width=200, file=io.StringIO())
            console.print(table)
            assert max(map(len, console.file.getvalue().splitlines())) <= width


# Tuning


def test_optuna_tries_the_same_whatever_the_jobs_and_keeps_to_its_range():
    methods = {"async": AsyncSGD(), "sync": AllReduceSGD(), "raising": Raising()}
    options = {"rates": (0.01, 1.0), "tune": "optuna", "trials": 5}
    alone, shared = (compare(methods, BASE, jobs=jobs, **options) for jobs in (1, 2))
    for one, two in zip(alone.entries, shared.entries, strict=True):
        assert one.trials == two.trials
        assert one.rate == two.rate
        assert len(one.trials) == 5
        assert all(0.01 <= trial.rate <= 1.0 for trial in one.trials)
        assert len({trial.rate for trial in one.trials}) == 5
    first, second, raising = alone.entries
    # The first are drawn alike, then each method's own results decide.
    assert [t.rate for t in first.trials[:2]] == [t.rate for t in second.trials[:2]]
    assert [t.rate for t in first.trials] != [t.rate for t in second.trials]
    assert first.rate == best_rate(first.trials)
    assert raising.rate is None
    assert "failed at every rate" in raising.error


def test_without_tuning_the_rate_is_the_experiment_s_own():
    result = compare({"sync": AllReduceSGD()}, by_rate(0.05), tune="none", rates=(1.0, 2.0))
    (entry,) = result.entries
    assert (entry.rate, entry.trials, entry.at_edge) == (0.05, [], False)
    assert entry.runs[0].experiment.optimizer.keywords == {"lr": 0.05, "momentum": 0.5}


def by_rate(rate, **settings):
    optimizer = functools.partial(torch.optim.SGD, lr=rate, momentum=0.5)
    return dataclasses.replace(BASE, optimizer=optimizer, **settings)


# Saved runs


@pytest.fixture
def saved(tmp_path):
    """`saved(name, **settings)` makes a run, and gives its directory."""

    def save(name, rate=0.1, **settings):
        directory = tmp_path / name
        simulate_experiment(by_rate(rate, **settings), directory=directory)
        return directory

    return save


def test_saved_runs_give_the_table_of_the_comparison(saved, tmp_path):
    methods = {"AsyncSGD": AsyncSGD(), "LocalSGD(local_steps=4)": LocalSGD(local_steps=4)}
    for label, method in methods.items():
        for seed in (0, 1):
            saved(f"all/{label}-{seed}", method=method, seed=seed)
    result = compare(methods, by_rate(0.1), tune="none", seeds=(0, 1))
    again = compare_runs([tmp_path / "all"])
    assert cells(again) == cells(result)
    assert footnotes(again) == footnotes(result)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"cluster": Cluster(workers=2)}, "cluster.workers is 4 in {0} and 2 in {1}"),
        ({"budget": Budget(samples=3200)}, "budget.samples is 6400 in {0} and 3200 in {1}"),
        ({"problem": Digits(batch_size=8)}, "problem.batch_size is 16 in {0} and 8 in {1}"),
        ({"problem": LeastSquares()}, "problem is Digits in {0} and LeastSquares in {1}"),
        ({"evaluate_on": "validation"}, "evaluate_on is test in {0} and validation in {1}"),
        ({"schedule": Cosine(total=6400)}, "schedule is Constant in {0} and Cosine in {1}"),
        ({"seed": 1}, "seeds 0 of the experiment in {0} and 1 of that in {1}"),
    ],
)
def test_what_is_not_like_with_like_is_refused_with_both_values(saved, settings, told):
    one, other = saved("one"), saved("other", **({"method": AsyncSGD()} | settings))
    with pytest.raises(ValueError, match="not like with like") as refused:
        compare_runs([one, other])
    assert told.format(one, other) in str(refused.value)
    field = str(refused.value).rpartition("--varying ")[2].rstrip(")")
    every = list(dict.fromkeys([field, "cluster", "problem"]))
    permitted = compare_runs([one, other], varying=every)
    assert len(permitted.entries) == 2


def test_what_varies_on_purpose_is_a_column(saved):
    one, other = saved("one"), saved("other", cluster=Cluster(workers=2, slow={1: 4.0}))
    result = compare_runs([one, other], varying=["cluster"])
    values = [dict(entry.varying) for entry in result.entries]
    assert [value["cluster.workers"] for value in values] == ["4", "2"]
    assert cells(result)[0][1] == "4"
    with pytest.raises(ValueError, match=r"--varying cluster.wrkers: these runs have no such"):
        compare_runs([one, other], varying=["cluster.wrkers"])


def test_rates_may_differ_and_threads_are_noted(saved):
    result = compare_runs([saved("one"), saved("other", rate=0.3, threads=2)])
    assert [entry.rate for entry in result.entries] == [0.1, 0.3]
    assert "threads is not the same for all runs" in footnotes(result)


def test_a_run_twice_is_refused(saved, tmp_path):
    one = saved("one")
    with pytest.raises(ValueError, match="is given twice"):
        compare_runs([one, tmp_path])
    with pytest.raises(ValueError, match="are of one experiment and one seed"):
        compare_runs([one, saved("same")])


def test_the_command_tells_methods_from_directories(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    saved("one")
    assert main(["compare", "one", "--target", "0.5", "--out", "table"]) == 0
    assert "SGD" in capsys.readouterr().out
    assert [path.name for path in Path("table").iterdir()] == ["comparison.csv"]
    for options, told in {
        ("one", "AsyncSGD"): "AsyncSGD is a method and one a directory",
        ("one", "--rates", "1"): "--rates means nothing for saved runs",
        ("./nowhere",): "there is no directory nowhere",
        ("table",): "table is no run directory, and holds none",
        ("SGD", "--varying", "seed"): "--varying is for saved runs",
        ("SGD", "--tune", "best"): "tune must be one of",
        ("SGD", "--tune", "optuna", "--trials", "0"): "trials is 0",
        ("SGD", "--at", "-1"): "the common time is -1 s",
    }.items():
        assert main(["compare", *options]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


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
    assert "failed" in cells(result)[0][1]
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
        ({"seeds": (1, 1)}, "give each of them once"),
        ({"seconds": 0.0}, "the common time is 0 s"),
        ({"trials": 0}, "trials is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, told):
    with pytest.raises(ValueError, match=told):
        compare({"sgd": SGD()}, BASE, **settings)


# The command


def test_a_method_and_its_settings_on_one_word():
    assert spec_of("LocalSGD(local_steps=4)", Method) == LocalSGD(local_steps=4)
    nested = "SlowMo(inner=StochasticGradientPush(topology=Ring), beta=0.25, buffers='keep')"
    inner = StochasticGradientPush(topology=Ring())
    assert spec_of(nested, Method) == SlowMo(inner=inner, beta=0.25, buffers="keep")


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
        "report.html",
        "timeline.png",
    }
    assert out.splitlines()[-2:] == ["saved in out", "report     out/report.html"]
    # Every final run is a run directory that repeats.
    again = ["simulate", "--config", "out/LocalSGD-local_steps=4/experiment.yaml"]
    assert main([*again, "--out", "again"]) == 0
    first = tmp_path / "out/LocalSGD-local_steps=4/model.safetensors"
    assert first.read_bytes() == (tmp_path / "again/model.safetensors").read_bytes()


def cells(result):
    """The table's rows, as lists of text."""
    (table,) = comparison_tables(result, 1000)
    columns = [list(column.cells) for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]
