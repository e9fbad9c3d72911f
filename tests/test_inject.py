"""Real runs whose gradients take as long as the cluster says."""

import functools
import threading
from itertools import islice

import numpy as np
import pytest
import torch

import offbeat
from offbeat.cli import main
from offbeat.cluster import Cluster, Constant, Fault, Lognormal
from offbeat.config import build, experiment_parser, load_experiment, parse
from offbeat.experiment import Budget
from offbeat.methods import ADPSGD, SGD
from offbeat.runtime.pace import Pace, Punctuality
from offbeat.testing import small_experiment

SETTINGS = {
    "problem": offbeat.problems.LeastSquares(),
    "optimizer": functools.partial(torch.optim.SGD, lr=0.01),
}
BATCH = SETTINGS["problem"].batch_size


def lasted(run, rank):
    """Seconds of each of that worker's gradients in turn."""
    rows = run.trace.gradients[run.trace.gradients["node"] == rank]
    return (rows["end_ns"] - rows["start_ns"]) / 1e9


def pace(**settings):
    cluster = Cluster(workers=2, **settings)
    return Pace(small_experiment(SGD(), cluster=cluster, budget=Budget(seconds=1), inject=True))


# What is injected


def test_real_gradients_last_as_long_as_the_simulated_ones_at_least():
    settings = SETTINGS | {
        "cluster": Cluster(workers=2, compute=Lognormal(seconds=0.03, sigma=0.3), slow={1: 2.0}),
        "budget": Budget(samples=BATCH * 60),
        "seed": 3,
    }
    simulated = offbeat.simulate(ADPSGD(), **settings)
    real = offbeat.run(ADPSGD(), inject=True, **settings)
    assert real.error is None
    for rank in range(2):
        times = lasted(real, rank)
        drawn = list(islice(settings["cluster"].compute_times(rank, seed=3), len(times)))
        assert len(times) > 10
        assert (times >= np.array(drawn) - 1e-6).all()
    assert 0.9 < real.seconds / simulated.seconds < 2.0


def test_a_slow_fault_stretches_what_is_injected():
    slow = Fault(kind="slow", rank=0, at=0.0, factor=6.0)
    cluster = Cluster(workers=2, compute=Constant(seconds=0.02), faults=(slow,))
    run = offbeat.run(
        SGD(), cluster=cluster, inject=True, budget=Budget(samples=BATCH * 20), **SETTINGS
    )
    assert lasted(run, 0)[-5:].min() >= 6 * 0.02
    assert np.median(lasted(run, 1)) < 6 * 0.02


def test_gradients_that_take_longer_than_injected_are_told():
    cluster = Cluster(workers=2, compute=Constant(seconds=1e-6))
    run = offbeat.run(
        SGD(), cluster=cluster, inject=True, budget=Budget(samples=BATCH * 20), **SETTINGS
    )
    assert run.notes == [
        f"worker {rank}: 10 of 10 gradients took longer than injected" for rank in range(2)
    ]


def test_without_injection_the_machine_sets_the_pace():
    cluster = Cluster(workers=2, compute=Constant(seconds=3600.0))
    run = offbeat.run(SGD(), cluster=cluster, budget=Budget(samples=BATCH * 20), **SETTINGS)
    assert (run.error, run.notes, len(run.trace.gradients)) == (None, [], 20)


def test_the_end_of_a_run_wakes_who_still_waits():
    cluster = Cluster(workers=2, compute=Constant(seconds=3600.0))
    run = offbeat.run(SGD(), cluster=cluster, inject=True, budget=Budget(seconds=0.2), **SETTINGS)
    assert (run.error, run.stop) == (None, "seconds")
    assert run.seconds < 60


def test_the_simulator_knows_no_other_times():
    settings = SETTINGS | {"cluster": Cluster(workers=2), "budget": Budget(samples=320)}
    experiment = offbeat.Experiment(method=SGD(), inject=True, **settings)
    injected = offbeat.api.simulate_experiment(experiment)
    assert injected.seconds == offbeat.simulate(SGD(), **settings).seconds


# Pace


def test_the_pace_is_that_of_the_simulator():
    drawn = Cluster(workers=2, slow={1: 3.0}).compute_times(1, seed=0)
    mine = pace(slow={1: 3.0})
    for _ in range(300):
        assert mine.injected(1) == round(next(drawn) * 1e9)
    mine.slowdown = 5.0
    assert mine.injected(1) == pytest.approx(5e9 * next(drawn), abs=1)


def test_what_took_too_long_already_is_not_held_and_counted():
    mine = pace()
    mine.injected(0)
    mine.hold(0, took=2000, injected=1000)
    mine.hold(0, took=500, injected=1000)
    assert mine.punctuality == {0: Punctuality(late=1, gradients=2)}


def test_a_gradient_is_let_go_when_the_run_ends():
    mine = pace()
    mine.injected(0)
    waiting = threading.Thread(target=mine.hold, args=(0, 0, 3600 * 10**9), daemon=True)
    waiting.start()
    mine.end()
    waiting.join(timeout=30)
    assert not waiting.is_alive()


# The option


@pytest.mark.parametrize(
    ("options", "inject"),
    [
        ([], False),
        (["--inject"], True),
        (["--inject", "--seed", "3"], True),
        (["--inject", "true"], True),
        (["--inject=false"], False),
        (["--inject", "false"], False),
    ],
)
def test_the_option_alone_means_true(options, inject):
    parser = experiment_parser("offbeat run")
    assert build(parser, parse(parser, ["--method", "SGD", *options])).inject is inject


def test_an_injected_run_is_replayed_to_the_bit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["run", "--method", "AsyncSGD", "--problem", "LeastSquares", "--workers", "2"]
    argv += ["--cluster", "one-straggler", "--inject", "--budget.samples", "320", "--out", "real"]
    assert main(argv) == 0
    loaded = load_experiment(tmp_path / "real" / "experiment.yaml")
    assert (loaded.inject, loaded.cluster.slow) == (True, {0: 4.0})
    assert main(["replay", "real"]) == 0
    assert "equal to the bit" in capsys.readouterr().out
