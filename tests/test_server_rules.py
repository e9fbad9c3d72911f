"""Parameter servers that scale, drop or gather stale gradients: formulas, identities, and time."""

import dataclasses
import functools
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offbeat.cluster import Cluster, Constant, Pareto
from offbeat.config import build, experiment_parser, parse
from offbeat.experiment import Budget, to_config
from offbeat.methods import (
    SGD,
    AccumulatedAsyncSGD,
    AllReduceSGD,
    AsyncSGD,
    DelayAdaptiveSGD,
    RennalaSGD,
    RingmasterSGD,
    SoftsyncSGD,
)
from offbeat.methods.gathering import Gathered
from offbeat.methods.staleness import ConstantWeight, DelayAdaptive, DropBeyond, InverseStaleness
from offbeat.problems import LeastSquares, Partition
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.schedule import Cosine
from offbeat.testing import Quadratic, fingerprint, simulated, small_experiment

HEAVY = Pareto(seconds=0.01, shape=1.5)


def free(workers, **settings):
    settings.setdefault("compute", Constant(seconds=0.01))
    return Cluster(workers=workers, latency=0.0, bandwidth=float("inf"), **settings)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


# The rules


@pytest.mark.parametrize(
    ("rule", "weights"),
    [
        (ConstantWeight(), [1, 1, 1, 1, 1, 1, 1]),
        (InverseStaleness(), [1, 1, 1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 6]),
        (DropBeyond(), [1, 0, 0, 0, 0, 0, 0]),
        (DropBeyond(limit=3), [1, 1, 1, 1, 0, 0, 0]),
        (DelayAdaptive(), [1, 1, 1, 1, 1, 4 / 5, 4 / 6]),
        (DelayAdaptive(threshold=2), [1, 1, 1, 2 / 3, 2 / 4, 2 / 5, 2 / 6]),
        (RingmasterSGD(delay_threshold=3).rule_of(), [1, 1, 1, 0, 0, 0, 0]),
        (RingmasterSGD(delay_threshold=None).rule_of(), [1, 1, 1, 1, 1, 1, 1]),
        (DelayAdaptiveSGD(threshold=3, late="drop").rule_of(), [1, 1, 1, 1, 0, 0, 0]),
        (RennalaSGD(gradients=9).rule_of(), [1, 0, 0, 0, 0, 0, 0]),
    ],
    ids=repr,
)
def test_the_weight_of_each_staleness(rule, weights):
    assert [rule.weight(staleness, 4) for staleness in range(7)] == weights


@given(st.integers(1, 64), st.integers(1, 10_000), st.floats(0.1, 10))
def test_delay_adaptive_is_the_rate_of_its_theorem(workers, staleness, smoothness):
    lr = 1 / (2 * workers * smoothness)
    rate = min(1 / (2 * smoothness * staleness), lr)
    assert lr * DelayAdaptive().weight(staleness, workers) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (AccumulatedAsyncSGD(global_accumulation=0), "global_accumulation is 0; it must be at"),
        (AccumulatedAsyncSGD(local_accumulation=0), "local_accumulation is 0; it must be at least"),
        (AccumulatedAsyncSGD(rule=DropBeyond(limit=-1)), "limit is -1; it must not be negative"),
        (AccumulatedAsyncSGD(rule=DelayAdaptive(threshold=0)), "threshold is 0; it must be at"),
        (SoftsyncSGD(splitting=5), "splitting is 5; it must be from 1 to the number of workers, 4"),
        (SoftsyncSGD(splitting=0), "splitting is 0; it must be from 1 to the number of workers, 4"),
        (RennalaSGD(gradients=0), "gradients is 0; it must be at least 1"),
        (RingmasterSGD(delay_threshold=0), "delay_threshold is 0; it must be at least 1"),
        (DelayAdaptiveSGD(threshold=0), "threshold is 0; it must be at least 1"),
        (DelayAdaptiveSGD(late="drop"), 'late is "drop"; give the threshold beyond which to drop'),
        (RennalaSGD(servers=0), "servers is 0; a parameter server needs at least 1"),
    ],
    ids=repr,
)
def test_settings_that_cannot_work_are_refused(method, text):
    with pytest.raises(ValueError, match=text):
        small_experiment(method, workers=4)


# What a step is made of


def test_gathered_gradients_by_hand():
    gathered = Gathered()
    first = torch.tensor([1.0, 4.0])
    gathered.add(first, 1.0, [7])
    gathered.add(torch.tensor([3.0, 0.0]), 0.5, [5])
    gradient, lr_scale, taken_at = gathered.take()
    assert (gradient * lr_scale).tolist() == [(1 + 1.5) / 2, 4 / 2]
    assert lr_scale == 0.75
    assert taken_at == [7, 5]
    assert first.tolist() == [1, 4]
    assert gathered == Gathered()


def by_hand(experiment, sources, *, count, weight, local=1, total=False):
    """Server and workers replayed in plain numbers: (x, staleness of each applied gradient).

    `sources` are the workers in the order in which the server received their pushes.
    """
    world, n = World(experiment), experiment.cluster.workers
    A, b = world.data.train.inputs, world.data.train.targets
    lr = experiment.optimizer.keywords["lr"]

    def gradient(x, rank, number):
        rows = world.batches[rank].indices(number)
        return A[rows].T @ (A[rows] @ x - b[rows]) / len(rows)

    x, version = torch.zeros(8, dtype=torch.double), 0
    point, taken_at, computed = [x] * n, [0] * n, [0] * n
    gathered, applied = [], []
    for worker in sources:
        numbers = range(computed[worker], computed[worker] + local)
        computed[worker] += local
        tau = version - taken_at[worker]
        if weight(tau) > 0:
            applied += [tau] * local
            gathered += [weight(tau) * gradient(point[worker], worker, k) for k in numbers]
        if len(gathered) == count * local:
            step = torch.stack(gathered).sum(dim=0)
            x = x - lr * (step if total else step / len(gathered))
            version += 1
            gathered = []
        point[worker], taken_at[worker] = x, version
    return x, applied[: len(applied) - len(gathered)]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (AccumulatedAsyncSGD(global_accumulation=3), {"count": 3, "weight": lambda tau: 1.0}),
        (
            AccumulatedAsyncSGD(global_accumulation=3, reduction="sum"),
            {"count": 3, "weight": lambda tau: 1.0, "total": True},
        ),
        (
            AccumulatedAsyncSGD(global_accumulation=1, local_accumulation=4),
            {"count": 1, "weight": lambda tau: 1.0, "local": 4},
        ),
        (
            AccumulatedAsyncSGD(global_accumulation=2, local_accumulation=2, reduction="sum"),
            {"count": 2, "weight": lambda tau: 1.0, "local": 2, "total": True},
        ),
        (
            AccumulatedAsyncSGD(global_accumulation=2, rule=InverseStaleness()),
            {"count": 2, "weight": lambda tau: 1 / max(1, tau)},
        ),
        (SoftsyncSGD(splitting=1), {"count": 5, "weight": lambda tau: 1 / max(1, tau)}),
        (SoftsyncSGD(splitting=2), {"count": 2, "weight": lambda tau: 1 / max(1, tau)}),
        (SoftsyncSGD(splitting=5), {"count": 1, "weight": lambda tau: 1 / max(1, tau)}),
        (RennalaSGD(gradients=3), {"count": 3, "weight": lambda tau: float(tau == 0)}),
        (RennalaSGD(gradients=12), {"count": 12, "weight": lambda tau: float(tau == 0)}),
        (RingmasterSGD(delay_threshold=3), {"count": 1, "weight": lambda tau: float(tau < 3)}),
        (DelayAdaptiveSGD(threshold=2), {"count": 1, "weight": lambda tau: min(1, 2 / (tau or 1))}),
        (DelayAdaptiveSGD(), {"count": 1, "weight": lambda tau: min(1, 5 / (tau or 1))}),
        (
            DelayAdaptiveSGD(threshold=2, late="drop"),
            {"count": 1, "weight": lambda tau: float(tau <= 2)},
        ),
    ],
    ids=lambda value: repr(value) if dataclasses.is_dataclass(value) else "",
)
def test_the_run_is_its_formula(method, expected):
    cluster = Cluster(workers=5, compute=HEAVY, slow={4: 3.0})
    experiment = small_experiment(method, workers=5, steps=40, lr=0.02, cluster=cluster)
    run = simulated(experiment)
    pushes = run.trace.messages[run.trace.messages["to"] == 5]["source"].tolist()
    assert len(pushes) > 40
    x, staleness = by_hand(experiment, pushes, **expected)
    close(run.vector, x)
    assert run.staleness.tolist() == staleness
    assert x.abs().max() > 0.1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (AccumulatedAsyncSGD(global_accumulation=1), AsyncSGD()),
        (AccumulatedAsyncSGD(global_accumulation=1, reduction="sum"), AsyncSGD()),
        (RingmasterSGD(delay_threshold=None), AsyncSGD()),
        (RingmasterSGD(delay_threshold=10**9), AsyncSGD()),
        (DelayAdaptiveSGD(threshold=10**9), AsyncSGD()),
        (SoftsyncSGD(splitting=4, rule=ConstantWeight()), AsyncSGD()),
        (RingmasterSGD(delay_threshold=3), DelayAdaptiveSGD(threshold=2, late="drop")),
        (RingmasterSGD(delay_threshold=1), RennalaSGD(gradients=1)),
        (
            AccumulatedAsyncSGD(global_accumulation=4, rule=InverseStaleness()),
            SoftsyncSGD(splitting=1),
        ),
        (
            AccumulatedAsyncSGD(global_accumulation=6, rule=DropBeyond()),
            RennalaSGD(gradients=6),
        ),
    ],
    ids=repr,
)
@pytest.mark.parametrize("cluster", [Cluster(workers=4), free(4)], ids=["lognormal", "equal"])
def test_methods_that_are_one_another_to_the_bit(one, other, cluster):
    settings = {"cluster": cluster, "momentum": 0.9, "lr": 0.01}
    runs = [simulated(small_experiment(method, **settings)) for method in (one, other)]
    assert fingerprint(runs[0]) == fingerprint(runs[1])


def test_weights_are_seen_by_an_optimizer_that_does_not_see_a_gradient_s_size():
    def run(rule):
        method = AccumulatedAsyncSGD(global_accumulation=1, rule=rule)
        adam = functools.partial(torch.optim.Adam, lr=1e-3)
        return simulated(small_experiment(method, cluster=free(4), steps=5, optimizer=adam)).vector

    # Each of Adam's first steps is about lr long; of 20, all but the first few weigh 1/3.
    whole, scaled = run(ConstantWeight()).abs().max(), run(InverseStaleness()).abs().max()
    assert 0.3 < scaled / whole < 0.6


# Staleness and counting


@pytest.mark.parametrize("splitting", [1, 2, 4, 12])
def test_the_staleness_of_softsync_is_about_n(splitting):
    # Zhang et al.: n in the mean, and hardly ever beyond 2 n.
    run = simulated(
        small_experiment(
            SoftsyncSGD(splitting=splitting), workers=12, lr=0.01, cluster=Cluster(workers=12)
        )
    )
    settled = run.staleness[len(run.staleness) // 4 :]
    assert settled.mean() == pytest.approx(splitting, abs=1)
    assert (settled > 2 * splitting).mean() < 0.01
    contributions = Counter(run.trace.steps["version"].tolist())
    assert set(contributions.values()) == {12 // splitting}


@pytest.mark.parametrize(
    ("gathered", "local", "mean"), [(1, 1, 3), (4, 1, 0.75), (1, 4, 3), (2, 2, 1.5)]
)
def test_the_staleness_of_accumulation_counts_the_server_s_steps(gathered, local, mean):
    # Aji and Heafield's own count, for four equal workers.
    method = AccumulatedAsyncSGD(global_accumulation=gathered, local_accumulation=local)
    cluster = Cluster(workers=4, compute=Constant(seconds=0.01), latency=1e-4, bandwidth=1e6)
    run = simulated(small_experiment(method, steps=64, lr=0.01, cluster=cluster))
    assert run.staleness[64:].mean() == pytest.approx(mean, abs=0.05)


@pytest.mark.parametrize("method", [RennalaSGD(gradients=5), RingmasterSGD(delay_threshold=2)])
def test_a_dropped_gradient_spends_its_samples_and_makes_no_step(method):
    schedule = Cosine(total=200 * 4)
    simulation = Simulation(
        small_experiment(method, cluster=Cluster(workers=4, compute=HEAVY), schedule=schedule)
    )
    run = simulation.run()
    assert run.error is None
    assert len(run.trace.gradients) == 200
    assert run.metrics[-1].samples == 200 * 4
    server = simulation.nodes[4]
    waiting = server.state(Gathered).pushes
    applied = len(run.staleness)
    assert applied < 180
    assert run.metrics[-1].steps == applied
    assert server.version == applied // method.gathers(4)
    # The rate has come down with the budget, not with the steps.
    assert server.samples == 4 * (200 - waiting)
    assert server.optimizer.lr < 0.02 * 0.05 * (1 if waiting == 0 else 10)


def test_a_dropped_gradient_is_answered_with_the_present_parameters():
    run = simulated(
        small_experiment(RennalaSGD(gradients=2), workers=3, cluster=free(3, slow={2: 2.5}))
    )
    messages = run.trace.messages
    pushes = Counter(messages["source"][messages["to"] == 3].tolist())
    pulls = Counter(messages["to"][messages["source"] == 3].tolist())
    assert pushes == pulls
    assert pushes[2] >= 15, "whose gradients come too late works on"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Everyone(Partition):
    """Every worker holds all samples."""

    def shards(self, targets, workers, seed):
        return [torch.arange(len(targets))] * workers


@pytest.mark.parametrize("gradients", [1, 3, 8])
def test_rennala_without_noise_is_gradient_descent_at_any_speeds(gradients):
    # Every minibatch is the whole data, so the mean of S gradients taken at x_k is grad f(x_k).
    problem = Quadratic(batch_size=64)
    cluster = Cluster(workers=4, compute=HEAVY, slow={0: 5.0})
    settings = {"problem": problem, "partition": Everyone(), "lr": 0.3}
    method = RennalaSGD(gradients=gradients)
    run = simulated(small_experiment(method, cluster=cluster, steps=20, **settings))
    assert len(run.trace.gradients) > len(run.staleness), "some were dropped"
    descent = len(run.staleness) // gradients
    alone = simulated(small_experiment(SGD(), workers=1, steps=descent, **settings))
    close(run.vector, alone.vector)


def test_rennala_of_n_gradients_at_equal_speeds_is_synchronous_sgd():
    n, steps = 4, 10
    first, synchronous = (
        simulated(small_experiment(method, workers=n, cluster=free(n), steps=1, lr=0.3))
        for method in (RennalaSGD(gradients=n), AllReduceSGD())
    )
    close(first.vector, synchronous.vector)
    # Whose gradient is not the last of a step begins another at the same point, and drops it if
    # that is over: minibatches are other ones then, and a step may take the time of two gradients
    # and have two of one worker.
    several = small_experiment(RennalaSGD(gradients=n), workers=n, cluster=free(n), lr=0.3)
    run = simulated(several)
    pushes = run.trace.messages[run.trace.messages["to"] == n]["source"].tolist()
    x, fresh = by_hand(several, pushes, count=n, weight=lambda tau: float(tau == 0))
    close(run.vector, x)
    synchronous = simulated(small_experiment(AllReduceSGD(), steps=len(fresh) // n, lr=0.3))
    assert (x - synchronous.vector).abs().max() > 1e-4
    # Only who came last goes on from the next point at once, and may give two gradients there.
    version, taken_at, gave = 0, [0] * n, []
    for worker in pushes:
        gave += [worker] * (taken_at[worker] == version)
        version = len(gave) // n
        taken_at[worker] = version
    assert sorted(gave[:n]) == list(range(n))
    assert len(set(gave[n : 2 * n])) < n
    settings = {"problem": Quadratic(batch_size=64), "partition": Everyone(), "lr": 0.3}
    method, cluster = RennalaSGD(gradients=n), free(n)
    run = simulated(
        small_experiment(method, workers=n, cluster=cluster, steps=2 * steps, **settings)
    )
    made = run.trace.steps
    assert Counter(made["version"].tolist()) == dict.fromkeys(range(made["version"].max() + 1), n)
    ends = made["at_ns"][::n]
    assert {round(float(seconds), 6) for seconds in np.diff(ends) / 1e9} <= {0.01, 0.02}
    assert len(ends) >= steps
    synchronous = simulated(small_experiment(AllReduceSGD(), steps=len(ends), **settings))
    close(run.vector, synchronous.vector)


# Time (Tyurin and Richtárik 2023)


def optimal_time(taus, rounds, noise):
    """min_m (mean_{i<=m} 1/tau_i)^-1 (rounds + noise / m), up to a constant; taus in seconds.

    rounds is L Delta / eps, and noise sigma^2 L Delta / eps^2.
    """
    taus = sorted(taus)
    return min(
        (rounds + noise / m) / (sum(1 / tau for tau in taus[:m]) / m)
        for m in range(1, len(taus) + 1)
    )


PROBLEM = LeastSquares(
    dimension=4, samples=512, condition=1.0, noise=0.05, batch_size=1, double=True
)
WORKERS, GRADIENTS = 4, 8
SLOWNESS = (1, 10, 100, 1000)


def gradient_noise():
    """sigma^2: E |g(x*) - grad f(x*)|^2 of minibatches of one sample, at the optimum."""
    split = PROBLEM.data().train
    residual = split.inputs @ PROBLEM.optimum() - split.targets
    return (split.inputs * residual[:, None]).square().sum(dim=1).mean().item()


def goal():
    """eps, such that S = R = ceil(sigma^2 / eps) is `GRADIENTS`."""
    return gradient_noise() / GRADIENTS


def seconds_until_solved(method, lr, slowness, seconds=None):
    """Virtual seconds from which on |grad f|^2 = 2 (f - min f), for L = 1, stays at most eps.

    One worker takes `slowness` seconds for a gradient and the others one; it has time for two.
    """
    experiment = small_experiment(
        method,
        workers=WORKERS,
        lr=lr,
        problem=PROBLEM,
        cluster=free(WORKERS, compute=Constant(seconds=1.0), slow={WORKERS - 1: float(slowness)}),
        budget=Budget(seconds=seconds or 2.2 * slowness + 200),
        evaluate_every=8,
    )
    rows = simulated(experiment).metrics
    above = [k for k, row in enumerate(rows) if 2 * (row.loss - PROBLEM.minimum()) > goal()]
    assert above[-1] < len(rows) - 1, "it is not solved at the end"
    return rows[above[-1] + 1].seconds


@pytest.mark.parametrize(
    ("method", "lr"),
    [
        (RennalaSGD(gradients=GRADIENTS), 0.25),
        (RingmasterSGD(delay_threshold=GRADIENTS), 1 / (4 * GRADIENTS)),
    ],
    ids=["Rennala", "Ringmaster"],
)
def test_the_time_of_rennala_and_ringmaster_is_optimal_however_slow_one_worker_is(method, lr):
    start = PROBLEM.optimum().square().sum().item() / 2  # f(0) - min f
    ratios = []
    for slowness in SLOWNESS:
        taus = [1.0] * (WORKERS - 1) + [float(slowness)]
        bound = optimal_time(taus, start / goal(), gradient_noise() * start / goal() ** 2)
        ratios.append(seconds_until_solved(method, lr, slowness) / bound)
    assert max(ratios) < 1.5 * min(ratios)
    assert max(ratios) < 1


def test_the_time_of_minibatch_sgd_is_the_slowest_worker_s():
    taken = [seconds_until_solved(AllReduceSGD(), 0.25, s, seconds=60 * s) for s in SLOWNESS]
    assert [t / taken[0] for t in taken] == pytest.approx(SLOWNESS)


def test_asynchronous_sgd_at_the_optimal_rate_is_thrown_back_by_its_slowest_worker():
    # Its first gradient is of the start, and lr times as large still far from the goal.
    lr = 1 / (4 * GRADIENTS)
    assert lr**2 * PROBLEM.optimum().square().sum() > goal()
    equal = seconds_until_solved(AsyncSGD(), lr, 1)
    assert equal < 50
    for slowness in (100, 1000):
        taken = seconds_until_solved(AsyncSGD(), lr, slowness)
        assert slowness <= taken <= slowness + equal


def test_asynchronous_sgd_at_its_own_rate_takes_the_root_of_the_greatest_delay():
    # Koloskova et al.: lr = 1 / (4 L sqrt(tau_max tau_C)), and so a time of O(sqrt(tau_max)).
    def lr(slowness):
        return 1 / (4 * math.sqrt((WORKERS - 1) * slowness * WORKERS))

    hundred, thousand = (seconds_until_solved(AsyncSGD(), lr(s), s) for s in (100, 1000))
    assert hundred > 100
    assert thousand / hundred == pytest.approx(math.sqrt(10), rel=0.1)


def settled(method, slowness, lr=0.5):
    """Virtual seconds from which on a quadratic without noise stays solved to 1e-3 of its loss."""
    experiment = small_experiment(
        method,
        workers=2,
        lr=lr,
        problem=Quadratic(dimension=4, condition=1.0, batch_size=64),
        partition=Everyone(),
        cluster=free(2, compute=Constant(seconds=1.0), slow={1: float(slowness)}),
        budget=Budget(seconds=5.5 * slowness),
        evaluate_every=64,
    )
    rows = simulated(experiment).metrics
    goal = 1e-3 * rows[0].loss
    assert rows[-1].loss < goal
    return max(row.seconds for row in rows if row.loss > goal)


def test_asynchronous_sgd_waits_for_its_slowest_gradient_to_be_forgotten():
    # The Hessian is the identity. Every s seconds the slow worker brings the gradient of the error
    # it has left behind s seconds ago, and only that is left: lr times as large.
    periods = math.ceil(math.log(1e-3) / (2 * math.log(0.5)))
    assert periods == 5
    for slowness in (20, 60):
        fast = settled(RennalaSGD(gradients=1), slowness)
        assert fast < 10
        taken = settled(AsyncSGD(), slowness)
        assert (periods - 1) * slowness <= taken <= periods * slowness + fast
        assert settled(RingmasterSGD(delay_threshold=4), slowness) < 10
    assert settled(DelayAdaptiveSGD(threshold=1), 60) < 10


# The command line


@pytest.mark.parametrize(
    "options",
    [
        ["--method.rule", "DelayAdaptive", "--method.rule.threshold", "3"],
        ["--method.rule", "offbeat.methods.staleness.DelayAdaptive", "--method.rule.threshold=3"],
    ],
)
def test_a_rule_is_given_by_name_and_written_as_it_is_read(options):
    parser = experiment_parser("offbeat")
    method = build(parser, parse(parser, ["--method", "SoftsyncSGD", *options])).method
    assert method == SoftsyncSGD(rule=DelayAdaptive(threshold=3))
    written = to_config(method)["init_args"]["rule"]
    assert written["class_path"] == "offbeat.methods.staleness.DelayAdaptive"
    assert written["init_args"] == {"threshold": 3}
