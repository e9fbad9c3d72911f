"""Closed forms and identities of the literature, each of which the simulator has to meet."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offbeat.cluster import Cluster, Constant
from offbeat.collectives import Chunk
from offbeat.experiment import Budget
from offbeat.messages import codec_of, message
from offbeat.methods import (
    ADPSGD,
    DPSGD,
    SGD,
    AdaptiveDelayCompensatedSGD,
    AllReduceSGD,
    AsyncSGD,
    DelayCompensatedSGD,
    LocalSGD,
    PostLocalSGD,
    SlowMo,
    StochasticGradientPush,
    StreamingDiLoCo,
)
from offbeat.methods.async_sgd import Push
from offbeat.methods.dc_asgd import delay_compensated
from offbeat.methods.slowmo import slow_momentum
from offbeat.mixing import mixing_matrix
from offbeat.problems import Digits
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.schedule import Cosine, Steps
from offbeat.spectra import second_eigenvalue
from offbeat.testing import Quadratic, fingerprint, simulated, small_experiment
from offbeat.topology import Exponential, OnePeerExponential, Ring, WeightedGraph

EQUAL = Constant(seconds=0.01)


def free(workers, **settings):
    return Cluster(workers=workers, compute=EQUAL, latency=0.0, bandwidth=float("inf"), **settings)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


# Staleness


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_equal_workers_have_staleness_n_minus_one(n):
    # On a network that costs something, so that the workers take turns.
    cluster = Cluster(workers=n, compute=EQUAL, latency=1e-4, bandwidth=1e6)
    run = simulated(small_experiment(AsyncSGD(), workers=n, cluster=cluster, lr=0.01))
    assert set(run.staleness[:n]) == set(range(n))
    assert set(run.staleness[n:]) == {n - 1}


@pytest.mark.parametrize("n", [2, 5, 16])
def test_equal_workers_in_random_order_have_staleness_n_minus_one_in_the_mean(n):
    run = simulated(small_experiment(AsyncSGD(), workers=n, cluster=free(n), lr=0.01))
    rounds = run.staleness.reshape(-1, n)
    assert (rounds[1:].mean(axis=1) == n - 1).all()
    assert run.staleness.max() <= 2 * (n - 1)


def test_a_worker_four_times_slower_is_overtaken_by_all_the_others():
    n, cluster = 5, free(5, slow={4: 4.0})
    steps = simulated(small_experiment(AsyncSGD(), workers=n, cluster=cluster)).trace.steps
    staleness = steps["staleness"][4 * n :]
    # While the slow one computes once, each of the four others does so four times.
    assert staleness.max() == pytest.approx(16, abs=4)
    assert np.median(staleness) == pytest.approx(3, abs=1)


# Parameter servers


@message
class Load:
    payload: Tensor


@pytest.mark.parametrize("n", [1, 3, 8])
def test_simultaneous_pushes_are_served_one_after_the_other(script, n):
    latency, bandwidth, times = 1e-3, 1e5, []

    async def worker(node):
        if node.rank:
            node.send(0, Load(torch.zeros(100)))
            return
        for _ in range(n):
            await node.recv(Load)
            times.append(node.now)

    script(
        worker, workers=n + 1, cluster=Cluster(workers=n + 1, latency=latency, bandwidth=bandwidth)
    )
    size = codec_of(Load).size(Load(torch.zeros(100)))
    expected = [latency + k * size / bandwidth for k in range(1, n + 1)]
    assert times == pytest.approx(expected, abs=1e-8)


def shared_by(servers, method=AsyncSGD, **settings):
    cluster = Cluster(
        workers=3,
        compute=EQUAL,
        latency=1e-3,
        bandwidth=float("inf"),
        slow={0: 1.0, 1: 1.37, 2: 2.11},
    )
    experiment = small_experiment(method(servers=servers, **settings), workers=3, cluster=cluster)
    return simulated(experiment)


@pytest.mark.parametrize("method", [AsyncSGD, DelayCompensatedSGD])
@pytest.mark.parametrize("servers", [2, 4])
def test_servers_that_share_the_parameters_give_one_servers_result(method, servers):
    one, several = shared_by(1, method), shared_by(servers, method)
    close(several.vector, one.vector)
    for server in range(servers):
        steps = several.trace.steps
        staleness = steps["staleness"][steps["node"] == 3 + server]
        assert staleness.tolist() == one.staleness.tolist()


def test_every_server_counts_the_staleness_of_its_own_part():
    # Each server lives with one worker, whose gradients reach it at once; all else takes long.
    cluster = Cluster(workers=3, latency=0.007, bandwidth=1e5)
    method = AsyncSGD(servers=2, colocated=True)
    run = simulated(small_experiment(method, workers=3, cluster=cluster))
    steps, messages = run.trace.steps, run.trace.messages
    counted = []
    for server in (3, 4):
        pushes = messages[messages["to"] == server]["source"].tolist()
        expected, last = [], {}
        for position, worker in enumerate(pushes):
            expected.append(position - last.get(worker, 0))
            last[worker] = position + 1
        table = steps[steps["node"] == server]
        assert table["staleness"].tolist() == expected
        assert table["version"].tolist() == list(range(len(table)))
        counted.append(expected)
    assert counted[0] != counted[1]


def test_messages_to_a_colocated_server_cost_nothing():
    cluster = Cluster(workers=1, latency=1.0, bandwidth=1.0, compute=EQUAL)
    run = simulated(small_experiment(AsyncSGD(colocated=True), workers=1, cluster=cluster, steps=5))
    assert run.seconds == pytest.approx(0.05)
    assert run.metrics[-1].bytes == 0
    apart = simulated(small_experiment(AsyncSGD(), workers=1, cluster=cluster, steps=5))
    assert apart.seconds > 10


# Delay compensation (Zheng et al. 2017)


@pytest.mark.parametrize("compensated", [DelayCompensatedSGD, AdaptiveDelayCompensatedSGD])
@pytest.mark.parametrize("cluster", [Cluster(workers=4), free(4)], ids=["lognormal", "equal"])
def test_delay_compensation_of_strength_zero_is_asynchronous_sgd_to_the_bit(cluster, compensated):
    plain, none, some = (
        simulated(small_experiment(method, cluster=cluster, momentum=0.9, lr=0.01))
        for method in (AsyncSGD(), compensated(strength=0.0), compensated())
    )
    assert fingerprint(plain) == fingerprint(none)
    assert not torch.equal(plain.vector, some.vector)


@given(st.floats(0.1, 5), st.floats(-3, 3), st.floats(-3, 3))
def test_delay_compensation_is_exact_on_a_parabola_where_lambda_g_squared_is_its_curvature(
    curvature, now, backup
):
    def slope(x):
        return curvature * x

    gradient = torch.tensor([slope(backup)], dtype=torch.double)
    if gradient.abs() < 1e-3:
        return
    strength = curvature / gradient**2
    x, x_bak = torch.tensor([now], dtype=torch.double), torch.tensor([backup], dtype=torch.double)
    compensated = delay_compensated(gradient, x, x_bak, strength)
    assert compensated.item() == pytest.approx(slope(now), abs=1e-9)


def test_delay_compensation_uses_what_the_worker_pulled_last():
    experiment = small_experiment(DelayCompensatedSGD(strength=0.5), workers=3, lr=0.1)
    run, gradient = simulated(experiment), by_hand(experiment)
    pushes = run.trace.messages[run.trace.messages["to"] == 3]["source"].tolist()
    x = torch.zeros(8, dtype=torch.double)
    backups, steps = dict.fromkeys(range(3), x), dict.fromkeys(range(3), 0)
    for worker in pushes:
        g = gradient(backups[worker], worker, steps[worker])
        x = x - 0.1 * (g + 0.5 * g * g * (x - backups[worker]))
        backups[worker] = x
        steps[worker] += 1
    assert len(pushes) == 150
    close(run.vector, x)


def test_adaptive_delay_compensation_is_its_formula_with_a_mean_square_for_each_worker():
    experiment = small_experiment(AdaptiveDelayCompensatedSGD(), workers=3, lr=0.1)
    run, gradient = simulated(experiment), by_hand(experiment)
    pushes = run.trace.messages[run.trace.messages["to"] == 3]["source"].tolist()
    x = torch.zeros(8, dtype=torch.double)
    backups, steps = dict.fromkeys(range(3), x), dict.fromkeys(range(3), 0)
    squares = dict.fromkeys(range(3), torch.zeros(8, dtype=torch.double))
    for worker in pushes:
        g = gradient(backups[worker], worker, steps[worker])
        squares[worker] = 0.95 * squares[worker] + 0.05 * g**2
        strength = 2.0 / (squares[worker] + 1e-7) ** 0.5
        x = x - 0.1 * (g + strength * g * g * (x - backups[worker]))
        backups[worker] = x
        steps[worker] += 1
    assert len(pushes) == 150
    close(run.vector, x)


# Gossip


@pytest.mark.parametrize(
    "topology",
    [
        Ring(),
        Exponential(),
        OnePeerExponential(),
        WeightedGraph(weights=((0.5, 0.3, 0, 0.2), (0.3, 0.6, 0.1, 0),
                               (0, 0.1, 0.7, 0.2), (0.2, 0, 0.2, 0.6))),
    ],
    ids=lambda topology: type(topology).__name__,
)  # fmt: skip
def test_d_psgd_is_its_matrix_form(topology):
    method = DPSGD(topology=topology)
    starts = torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    experiment = small_experiment(method, steps=20, lr=0.05)
    simulation = Simulation(experiment, initial=lambda rank: starts[rank])
    assert simulation.run().error is None
    gradient, x = by_hand(experiment), starts
    for step in range(20):
        slopes = torch.stack([gradient(x[rank], rank, step) for rank in range(4)])
        x = torch.from_numpy(mixing_matrix(topology, 4, step)) @ x - 0.05 * slopes
    close(torch.stack([node.parameters for node in simulation.nodes]), x)


def test_d_psgd_averages_while_gradients_are_computed():
    # Two models of 4 ms each leave a worker and two arrive, some after waiting for their receiver.
    problem = Quadratic(dimension=1000, batch_size=4)
    cluster = Cluster(workers=4, compute=Constant(seconds=0.02), latency=0.0, bandwidth=2e6)
    settings = {"cluster": cluster, "problem": problem, "steps": 10, "lr": 0.01}
    beside, after = (
        simulated(small_experiment(method, **settings)).seconds
        for method in (DPSGD(), StochasticGradientPush(topology=Ring()))
    )
    assert beside == pytest.approx(0.2, abs=1e-3)
    assert after > 0.2 + 9 * 0.008


@pytest.mark.parametrize(
    ("topology", "n"), [(Ring(), 8), (Ring(), 5), (Exponential(), 8), (Exponential(), 12)]
)
def test_gossip_contracts_at_the_second_eigenvalue(topology, n):
    starts = torch.randn(n, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)

    def distance(rounds):
        method = StochasticGradientPush(topology=topology)
        experiment = small_experiment(method, workers=n, steps=rounds, lr=0.0)
        simulation = Simulation(experiment, initial=lambda rank: starts[rank])
        assert simulation.run().error is None
        x = torch.stack([node.parameters for node in simulation.nodes])
        return (x - starts.mean(dim=0)).norm().item()

    # Complex eigenvalues turn as they contract: the rate shows over a stretch.
    early, late = 12, 36
    rate = (distance(late) / distance(early)) ** (1 / (late - early))
    assert rate == pytest.approx(second_eigenvalue(mixing_matrix(topology, n)), rel=0.02)


def test_one_peer_exponential_averages_exactly_within_its_period():
    starts = torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    method = StochasticGradientPush(topology=OnePeerExponential())
    simulation = Simulation(
        small_experiment(method, workers=8, steps=3, lr=0.0), initial=lambda rank: starts[rank]
    )
    assert simulation.run().error is None
    for node in simulation.nodes:
        close(node.parameters, starts.mean(dim=0))


@pytest.mark.parametrize("latency", [1e-3, 0.02])
def test_ad_psgd_s_crossing_offers_average_instead_of_swapping(latency):
    # Equal workers offer to each other at the same instants, for ever.
    experiment = small_experiment(ADPSGD(), workers=2, steps=40, lr=0.0)
    cluster = Cluster(workers=2, compute=Constant(seconds=0.01), latency=latency)
    experiment = dataclasses.replace(experiment, cluster=cluster)
    simulation = Simulation(experiment, initial=lambda rank: torch.full((8,), float(rank)).double())
    assert simulation.run().error is None
    for node in simulation.nodes:
        assert (node.parameters - 0.5).abs().max() < 1e-6


# Local updates, slow momentum, DiLoCo


def by_hand(experiment):
    """Minibatch gradients of a quadratic in closed form: A^T (A x - b) / batch."""
    world = World(experiment)
    A, b = world.data.train.inputs, world.data.train.targets

    def gradient(x, rank, step):
        rows = world.batches[rank].indices(step)
        return A[rows].T @ (A[rows] @ x - b[rows]) / len(rows)

    return gradient


def run_of(method, workers=4, steps=24, lr=0.05, momentum=0.0, **settings):
    experiment = small_experiment(
        method, workers=workers, steps=steps, lr=lr, momentum=momentum, cluster=free(workers),
        **settings,
    )  # fmt: skip
    return simulated(experiment), by_hand(experiment)


def test_all_reduce_is_sgd_on_the_mean_gradient():
    run, gradient = run_of(AllReduceSGD())
    x = torch.zeros(8, dtype=torch.double)
    for step in range(24):
        x = x - 0.05 * torch.stack([gradient(x, rank, step) for rank in range(4)]).mean(dim=0)
    close(run.vector, x)


def test_local_sgd_is_local_steps_and_their_mean():
    run, gradient = run_of(LocalSGD(local_steps=4))
    x = torch.zeros(4, 8, dtype=torch.double)
    for step in range(24):
        x = torch.stack([x[r] - 0.05 * gradient(x[r], r, step) for r in range(4)])
        if (step + 1) % 4 == 0:
            x = x.mean(dim=0).repeat(4, 1)
    close(run.vector, x.mean(dim=0))


def test_post_local_sgd_is_all_reduce_before_its_switch():
    local, _ = run_of(PostLocalSGD(switch=24, local_steps=4))
    reduced, _ = run_of(AllReduceSGD())
    close(local.vector, reduced.vector)
    switched, _ = run_of(PostLocalSGD(switch=8, local_steps=4))
    assert (switched.vector - reduced.vector).abs().max() > 1e-5


def test_post_local_sgd_is_local_sgd_from_its_switch_on():
    run, gradient = run_of(PostLocalSGD(switch=7, local_steps=4))
    x = torch.zeros(4, 8, dtype=torch.double)
    for step in range(24):
        x = torch.stack([x[r] - 0.05 * gradient(x[r], r, step) for r in range(4)])
        if step < 7 or step in (10, 14, 18, 22):
            x = x.mean(dim=0).repeat(4, 1)
    close(run.vector, x.mean(dim=0))
    at_once, _ = run_of(PostLocalSGD(switch=0, local_steps=4))
    local, _ = run_of(LocalSGD(local_steps=4))
    assert fingerprint(at_once) == fingerprint(local)


def test_slow_momentum_each_step_is_large_batch_momentum():
    slow, _ = run_of(SlowMo(inner=SGD(), period=1, alpha=1.0, beta=0.7))
    large, _ = run_of(AllReduceSGD(), momentum=0.7)
    close(slow.vector, large.vector)


@pytest.mark.parametrize("inner", [SGD(), LocalSGD(local_steps=1000), LocalSGD(local_steps=6)])
def test_slow_momentum_without_momentum_is_local_sgd(inner):
    slow, _ = run_of(SlowMo(inner=inner, period=6, alpha=1.0, beta=0.0))
    local, _ = run_of(LocalSGD(local_steps=6))
    close(slow.vector, local.vector)


def test_slow_momentum_with_alpha_one_is_bmuf():
    run, gradient = run_of(SlowMo(inner=SGD(), period=6, alpha=1.0, beta=0.6))
    x, change = torch.zeros(8, dtype=torch.double), torch.zeros(8, dtype=torch.double)
    for block in range(4):
        ends = []
        for rank in range(4):
            y = x.clone()
            for step in range(6 * block, 6 * block + 6):
                y = y - 0.05 * gradient(y, rank, step)
            ends.append(y)
        # Chen and Huo 2016: D <- eta D + zeta G with zeta = 1;  W <- W + D.
        change = 0.6 * change + (torch.stack(ends).mean(dim=0) - x)
        x = x + change
    close(run.vector, x)


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_slow_momentum_of_one_worker_without_momentum_is_lookahead(alpha):
    run, gradient = run_of(SlowMo(inner=SGD(), period=6, alpha=alpha, beta=0.0), workers=1)
    slow = torch.zeros(8, dtype=torch.double)
    for block in range(4):
        fast = slow.clone()
        for step in range(6 * block, 6 * block + 6):
            fast = fast - 0.05 * gradient(fast, 0, step)
        slow = slow + alpha * (fast - slow)
    close(run.vector, slow)


def test_slow_momentum_over_d_psgd_averages_what_the_ring_left_apart():
    run, gradient = run_of(SlowMo(inner=DPSGD(), period=6, alpha=0.9, beta=0.6))
    W = torch.from_numpy(mixing_matrix(Ring(), 4))
    start = change = torch.zeros(8, dtype=torch.double)
    for block in range(4):
        x = start.repeat(4, 1)
        for step in range(6 * block, 6 * block + 6):
            x = W @ x - 0.05 * torch.stack([gradient(x[rank], rank, step) for rank in range(4)])
        change = 0.6 * change + (x.mean(dim=0) - start)
        start = start + 0.9 * change
    close(run.vector, start)


@pytest.mark.parametrize("buffers", ["reset", "keep"])
@pytest.mark.parametrize(
    "schedule",
    [
        Steps(milestones=(16 * 6, 16 * 18), gamma=0.5),
        Steps(milestones=(16 * 10, 16 * 17), gamma=0.5),
        Cosine(total=16 * 24),
    ],
    ids=["between blocks", "inside blocks", "each step"],
)
def test_slow_momentum_over_momentum_divides_by_the_rate_of_the_last_inner_step(schedule, buffers):
    method = SlowMo(inner=SGD(), period=6, alpha=0.9, beta=0.6, buffers=buffers)
    run, gradient = run_of(method, momentum=0.9, lr=0.02, schedule=schedule)
    start = u = torch.zeros(8, dtype=torch.double)
    v = torch.zeros(4, 8, dtype=torch.double)
    for block in range(4):
        x = start.repeat(4, 1)
        if buffers == "reset":
            v = torch.zeros_like(v)
        for step in range(6 * block, 6 * block + 6):
            gamma = 0.02 * schedule.factor(16 * step)
            v = 0.9 * v + torch.stack([gradient(x[rank], rank, step) for rank in range(4)])
            x = x - gamma * v
        # Algorithm 1: u <- beta u + (x_0 - x_tau) / gamma;  x_0 <- x_0 - alpha gamma u.
        u = 0.6 * u + (start - x.mean(dim=0)) / gamma
        start = start - 0.9 * gamma * u
    close(run.vector, start)


def test_slow_momentum_does_not_depend_on_the_unit_of_the_learning_rate():
    start, end = torch.randn(2, 5, dtype=torch.double)
    u = torch.zeros(5, dtype=torch.double)
    x, u = slow_momentum(start, end, u, lr=0.1, alpha=1.0, beta=0.5)
    close(x, end)
    close(u, (start - end) / 0.1)
    again, u = slow_momentum(x, x, u, lr=0.05, alpha=2.0, beta=0.5)
    close(again, x - 2 * 0.05 * 0.5 * (start - end) / 0.1)


def test_diloco_of_one_step_with_plain_outer_sgd_is_data_parallel():
    diloco, _ = run_of(
        StreamingDiLoCo(
            local_steps=1, fragments=1, overlap=0, mixing=0.0, outer_lr=1.0, outer_momentum=0.0
        )
    )
    parallel, _ = run_of(AllReduceSGD())
    close(diloco.vector, parallel.vector)


def test_diloco_with_plain_outer_sgd_is_federated_averaging():
    diloco, _ = run_of(
        StreamingDiLoCo(
            local_steps=6, fragments=1, overlap=0, mixing=0.0, outer_lr=1.0, outer_momentum=0.0
        )
    )
    averaging, _ = run_of(LocalSGD(local_steps=6))
    close(diloco.vector, averaging.vector)


def test_diloco_is_nesterov_on_the_mean_change():
    run, gradient = run_of(
        StreamingDiLoCo(
            local_steps=6, fragments=1, overlap=0, mixing=0.0, outer_lr=0.7, outer_momentum=0.9
        )
    )
    theta, m = torch.zeros(8, dtype=torch.double), torch.zeros(8, dtype=torch.double)
    for block in range(4):
        changes = []
        for rank in range(4):
            x = theta.clone()
            for step in range(6 * block, 6 * block + 6):
                x = x - 0.05 * gradient(x, rank, step)
            changes.append(theta - x)
        delta = torch.stack(changes).mean(dim=0)
        m = 0.9 * m + delta
        theta = theta - 0.7 * (delta + 0.9 * m)
    close(run.vector, theta)


@pytest.mark.parametrize(
    ("fragments", "overlap", "mixing"), [(2, 0, 0.0), (2, 3, 0.5), (4, 5, 0.3)]
)
def test_streaming_diloco_is_its_pseudocode(fragments, overlap, mixing):
    H, n, steps = 6, 3, 30
    run, gradient = run_of(
        StreamingDiLoCo(
            local_steps=H, fragments=fragments, overlap=overlap, mixing=mixing, outer_lr=0.7,
            outer_momentum=0.9,
        ),
        workers=n,
        steps=steps,
    )  # fmt: skip
    x = torch.zeros(n, 8, dtype=torch.double)
    spans = [slice(p * 8 // fragments, (p + 1) * 8 // fragments) for p in range(fragments)]
    theta, m = torch.zeros(8, dtype=torch.double), torch.zeros(8, dtype=torch.double)
    sent = {}
    for t in range(1, steps + 1):
        x = torch.stack([x[r] - 0.05 * gradient(x[r], r, t - 1) for r in range(n)])
        for p, span in enumerate(spans):
            since = t - p * H // fragments
            if since > 0 and since % H == 0:
                sent[p] = (theta[span] - x[:, span]).mean(dim=0)
            if p in sent and (since - overlap) % H == 0:
                delta = sent.pop(p)
                m[span] = 0.9 * m[span] + delta
                theta[span] = theta[span] - 0.7 * (delta + 0.9 * m[span])
                x[:, span] = mixing * x[:, span] + (1 - mixing) * theta[span]
    close(run.vector, x.mean(dim=0))


# Time


@pytest.mark.parametrize("n", [1, 4])
def test_the_time_of_all_reduce_training_is_the_closed_form(n):
    latency, bandwidth, steps = 1e-3, 1e6, 7
    cluster = Cluster(workers=n, compute=EQUAL, latency=latency, bandwidth=bandwidth)
    run = simulated(small_experiment(AllReduceSGD(), workers=n, cluster=cluster, steps=steps))
    chunk = codec_of(Chunk).size(Chunk(torch.zeros(8 // n, dtype=torch.double), 0, 0))
    ring = 2 * (n - 1) * (latency + chunk / bandwidth)
    # The last step's reduction comes after its gradient, where a run's time ends.
    assert run.seconds == pytest.approx(steps * 0.01 + (steps - 1) * ring, abs=1e-7)


@settings(max_examples=20)
@given(st.integers(1, 8), st.integers(1, 40))
def test_the_time_of_asynchronous_training_is_set_by_the_server_link_when_it_is_slow(n, steps):
    # A push takes 1 s on the server's incoming side and a pull 1 s on its outgoing one.
    bandwidth = float(codec_of(Push).size(Push(torch.zeros(8, dtype=torch.double), 0)))
    cluster = Cluster(workers=n, compute=Constant(seconds=1e-6), latency=0.0, bandwidth=bandwidth)
    run = simulated(
        small_experiment(
            AsyncSGD(), workers=n, cluster=cluster, budget=Budget(samples=4 * steps), lr=0.01
        )
    )
    arrived = run.trace.messages["end_ns"][run.trace.messages["kind"] == 0] / 1e9
    assert len(arrived) == steps
    # One worker waits for its own pull before it pushes again; several fill the link.
    apart = 2 if n == 1 else 1
    expected = 1 + apart * np.arange(steps)
    assert arrived == pytest.approx(expected, abs=1e-3)


def test_a_straggler_costs_all_reduce_its_whole_delay_and_asynchronous_sgd_its_share():
    slow = {3: 10.0}
    synchronous = simulated(small_experiment(AllReduceSGD(), cluster=free(4, slow=slow)))
    assert synchronous.seconds == pytest.approx(50 * 0.1)
    asynchronous = simulated(small_experiment(AsyncSGD(), cluster=free(4, slow=slow)))
    rate = 3 / 0.01 + 1 / 0.1
    # The last gradient that is asked for may be the straggler's.
    assert 200 / rate - 0.01 <= asynchronous.seconds <= 200 / rate + 0.1


# Digits: the same in float32 with several tensors


def test_identities_hold_on_a_network_too():
    def digits(method, momentum=0.0):
        return simulated(
            small_experiment(
                method,
                problem=Digits(),
                steps=12,
                cluster=free(4),
                budget=Budget(samples=12 * 4 * 16),
                optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=momentum),
            )
        ).vector

    slow = digits(SlowMo(inner=SGD(), period=1, alpha=1.0, beta=0.7))
    torch.testing.assert_close(slow, digits(AllReduceSGD(), momentum=0.7), rtol=0, atol=1e-5)
    assert math.isfinite(slow.abs().max())


def test_slow_momentum_over_push_begins_each_outer_step_in_agreement():
    method = SlowMo(inner=StochasticGradientPush(), period=5, beta=0.5)
    simulation = Simulation(small_experiment(method, steps=20, cluster=Cluster(workers=4)))
    run = simulation.run()
    assert run.error is None
    assert run.metrics[-1].consensus == 0
    assert run.metrics[-1].loss < run.metrics[0].loss / 10
    assert Quadratic().dimension == run.vector.numel()
