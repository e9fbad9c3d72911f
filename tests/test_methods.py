import dataclasses
import functools
import types

import pytest
import torch

from offbeat.cluster import Cluster, Constant, Fault
from offbeat.methods import (
    ADPSGD,
    BMUF,
    DPSGD,
    METHODS,
    SGD,
    AdaptiveDelayCompensatedSGD,
    AsyncLocalSGD,
    AsyncSGD,
    DiLoCo,
    LocalSGD,
    NoLoCo,
    PostLocalSGD,
    SlowMo,
    SparseAsyncSGD,
    StochasticGradientPush,
    StreamingDiLoCo,
)
from offbeat.methods.dc_asgd import Backups, DelayCompensatedSGD, delay_compensated, mean_square
from offbeat.methods.sgp import PushSum
from offbeat.methods.slowmo import slow_momentum
from offbeat.methods.sparse_async_sgd import dense, part_of
from offbeat.methods.streaming_diloco import Reductions
from offbeat.problems import Split, Supervised
from offbeat.runtime.simulated import Simulation
from offbeat.schedule import Cosine
from offbeat.testing import simulated, small_experiment
from offbeat.topology import BipartiteMatching, Graph, Hypercube, Ring, Star, Topology


def test_every_topology_among_the_settings_is_checked():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(SGD):
        topology: Topology = Hypercube()

    with pytest.raises(ValueError, match="Hypercube"):
        small_experiment(Own(), workers=6)


def test_delay_compensation_by_its_formula():
    g, x, x_bak = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 3.0]), torch.tensor([1.0, 2.0])
    assert delay_compensated(g, x, x_bak, 0.5).tolist() == [1 + 0.5 * 1 * 2, -2 + 0.5 * 4 * 1]
    assert g.tolist() == [1, -2]


def test_the_mean_square_by_its_formula():
    g, before = torch.tensor([2.0, -4.0]), torch.tensor([8.0, 0.0])
    assert mean_square(g, before, 0.75).tolist() == [6 + 1, 4]


def test_slow_momentum_by_its_formula():
    start, end, u = torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([2.0])
    x, u = slow_momentum(start, end, u, lr=0.25, alpha=0.5, beta=0.5)
    assert u.tolist() == [0.5 * 2 + 0.5 / 0.25]
    assert x.tolist() == [1 - 0.5 * 0.25 * 3]


def test_slow_momentum_makes_no_step_at_a_rate_of_zero():
    start, end, u = torch.tensor([[1.0], [0.5], [2.0]])
    x, u = slow_momentum(start, end, u, lr=0.0, alpha=0.5, beta=0.5)
    assert (x.tolist(), u.tolist()) == ([0.5], [2.0])
    # A warm-up begins there, and a schedule may end there.
    run = simulated(
        small_experiment(SlowMo(period=1), schedule=Cosine(total=160, warmup=32), lr=0.1)
    )
    assert run.vector.isfinite().all()
    assert run.metrics[-1].loss < run.metrics[0].loss / 2


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (LocalSGD(local_steps=0), "local_steps is 0; it must be at least 1"),
        (SlowMo(period=0), "period is 0; it must be at least 1"),
        (SlowMo(alpha=0), "alpha is 0; it must be positive"),
        (SlowMo(beta=1), "beta is 1; it must be from 0 to below 1"),
        (DiLoCo(outer_lr=0), "outer_lr is 0; it must be positive"),
        (DiLoCo(outer_lr=float("nan")), "outer_lr is nan; it must be positive"),
        (DiLoCo(outer_momentum=1), "outer_momentum is 1; it must be from 0 to below 1"),
        (StreamingDiLoCo(outer_lr=-1), "outer_lr is -1; it must be positive"),
        (NoLoCo(outer_lr=0), "outer_lr is 0; it must be positive"),
        (AsyncLocalSGD(outer_lr=0), "outer_lr is 0; it must be positive"),
        (SlowMo(inner=AsyncSGD()), "SlowMo cannot wrap AsyncSGD: it averages at the same step"),
        (SlowMo(inner=ADPSGD()), "SlowMo cannot wrap ADPSGD"),
        (SlowMo(inner=LocalSGD(local_steps=0)), "local_steps is 0"),
        *(
            (SlowMo(inner=inner), f"^SlowMo cannot wrap {type(inner).__name__}: it makes outer st")
            for inner in (SlowMo(), BMUF(), DiLoCo(), StreamingDiLoCo(), NoLoCo())
        ),
        (StreamingDiLoCo(overlap=16), "overlap is 16; it must be from 0 to local_steps - 1 = 15"),
        (StreamingDiLoCo(fragments=0), "fragments is 0; it must be from 1 to local_steps = 16"),
        (StreamingDiLoCo(mixing=1.5), "mixing is 1.5; it must be from 0 to 1"),
        (PostLocalSGD(switch=-1), "switch is -1; it must not be negative"),
        (PostLocalSGD(local_steps=0), "local_steps is 0; it must be at least 1"),
        (AdaptiveDelayCompensatedSGD(decay=1), "decay is 1; it must be from 0 to below 1"),
        (AdaptiveDelayCompensatedSGD(epsilon=0), "epsilon is 0; it must be positive"),
        (DPSGD(topology=Graph(edges=((0, 1), (2, 3)))), "no path leads from"),
        (
            DPSGD(topology=Star()),
            "^DPSGD needs a doubly stochastic mixing matrix, and Star of 4 workers has none: row 0 "
            "of the mixing matrix sums to 1.75, not 1: use MetropolisHastings",
        ),
        (AsyncSGD(servers=0), "servers is 0; a parameter server needs at least 1"),
        (AsyncSGD(servers=5, colocated=True), "5 servers cannot be colocated with 4 workers"),
        (StochasticGradientPush(topology=Graph(edges=((0, 1), (2, 3)))), "no path leads from"),
        (ADPSGD(topology=Graph(edges=((0, 1), (5, 2)))), "an edge .5, 2. but 4 workers"),
    ],
)
def test_settings_that_cannot_work_are_refused(method, text):
    with pytest.raises(ValueError, match=text):
        small_experiment(method, workers=4)


def test_more_fragments_than_tensors_end_the_run_with_the_numbers():
    run = Simulation(small_experiment(StreamingDiLoCo(fragments=9))).run()
    assert "cannot split 4 parameter tensors into 9 parts; ask for 1 to 4" in run.error


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_equal_by_their_settings(name):
    assert METHODS[name]() == METHODS[name]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        METHODS[name]().anything = 1


@pytest.mark.parametrize("overlap", [3, 5])
def test_fragments_of_streaming_diloco_are_under_way_together(overlap):
    method = StreamingDiLoCo(fragments=4, local_steps=6, overlap=overlap)
    simulation = Simulation(small_experiment(method, steps=24))
    together = set()
    step = simulation.step

    def watching():
        more = step()
        for node in simulation.nodes:
            pending = node.state(Reductions).pending
            together.add(frozenset(pending))
        return more

    simulation.step = watching
    assert simulation.run().error is None
    assert max(len(fragments) for fragments in together) > 1


def test_overlap_hides_the_time_of_the_reduction():
    def seconds(overlap):
        cluster = Cluster(workers=4, compute=Constant(seconds=0.01), latency=4e-3)
        method = StreamingDiLoCo(fragments=1, local_steps=5, overlap=overlap)
        return simulated(small_experiment(method, steps=40, cluster=cluster)).seconds

    # Six messages of 4 ms are 24 ms: three steps of 10 ms hide them.
    assert seconds(3) == pytest.approx(0.4, abs=1e-3)
    assert seconds(0) == pytest.approx(0.4 + 7 * 0.024, abs=2e-3)


def test_slow_momentum_keeps_or_resets_the_buffers():
    runs = {
        buffers: simulated(
            small_experiment(SlowMo(period=4, buffers=buffers), momentum=0.9, lr=0.02)
        )
        for buffers in ("reset", "keep")
    }
    assert not torch.equal(runs["reset"].vector, runs["keep"].vector)


def test_push_sum_weights_stay_one_on_a_regular_graph():
    simulation = Simulation(
        small_experiment(StochasticGradientPush(topology=Ring()), workers=5, steps=10)
    )
    assert simulation.run().error is None
    for node in simulation.nodes:
        assert node.state(PushSum).weight == pytest.approx(1, abs=1e-12)


def test_the_model_of_push_sum_is_the_sum_of_x_over_the_sum_of_w():
    faults = (Fault(kind="crash", rank=1, at=0.1),)
    cluster = Cluster(workers=4, latency=0.02, faults=faults)
    simulation = Simulation(small_experiment(StochasticGradientPush(), cluster=cluster))
    run = simulation.run()
    assert run.error is None
    x = torch.stack([node.parameters for node in simulation.nodes])
    w = [node.state(PushSum).weight for node in simulation.nodes]
    assert abs(sum(w) - 3) > 0.1
    torch.testing.assert_close(run.vector, x.sum(dim=0) / sum(w), rtol=0, atol=1e-12)


def test_delay_compensation_backs_up_what_each_worker_was_sent():
    simulation = Simulation(small_experiment(DelayCompensatedSGD(), workers=3, steps=10))
    assert simulation.run().error is None
    *workers, server = simulation.nodes
    for node in workers:
        assert torch.equal(server.state(Backups).sent[node.rank], node.parameters)


def test_the_model_of_several_servers_is_put_together_in_order():
    simulation = Simulation(small_experiment(AsyncSGD(servers=3), workers=2, steps=10))
    run = simulation.run()
    assert run.error is None
    held = torch.cat([node.parameters for node in simulation.nodes if node.is_server])
    assert torch.equal(run.vector, held)


def test_ad_psgd_averages_while_gradients_are_computed():
    run = simulated(small_experiment(ADPSGD(), workers=4, steps=40))
    mixes = run.trace.steps["mixes"]
    # Its own averaging once, and on average one of a neighbour's.
    assert mixes.mean() == pytest.approx(2, abs=0.3)
    assert run.staleness.max() == 0


def test_a_worker_alone_needs_no_partner():
    for method in (ADPSGD(), StochasticGradientPush(), LocalSGD(), SlowMo()):
        assert simulated(small_experiment(method, workers=1, steps=20)).stop == "samples"


def test_random_matchings_are_let_in_as_symmetric():
    assert simulated(small_experiment(DPSGD(topology=BipartiteMatching()), steps=20)).error is None


# Sparse gradients


def test_a_sparse_vector_is_cut_at_the_shards_and_put_together_again():
    indices, values = torch.tensor([0, 3, 4, 9]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    cut = [part_of(indices, values, span) for span in (slice(0, 4), slice(4, 9), slice(9, 10))]
    assert [places.tolist() for places, _ in cut] == [[0, 3], [0], [0]]
    assert [part.tolist() for _, part in cut] == [[1, 2], [3], [4]]
    assert {places.dtype for places, _ in cut} == {torch.int32}
    assert part_of(indices, values, slice(0, 1 << 31))[0].dtype == torch.int64
    assert dense(*cut[0], torch.ones(4)).tolist() == [1, 0, 0, 2]


def few_hot(samples=64, width=100):
    """A linear model of samples that have four features each, of a hundred."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.zeros(samples, width)
    hot = torch.rand(samples, width, generator=generator).topk(4).indices
    inputs.scatter_(1, hot, 1.0)
    split = Split(inputs, inputs @ torch.randn(width, 1, generator=generator))
    return Supervised(
        model_factory=functools.partial(torch.nn.Linear, width, 1),
        train=split,
        test=split,
        loss_function=torch.nn.functional.mse_loss,
        batch_size=2,
    )


@pytest.mark.parametrize("servers", [1, 2])
def test_sparse_pushes_give_the_bits_of_whole_ones_and_fewer_bytes(servers):
    cluster = Cluster(workers=4, latency=0.0, bandwidth=float("inf"))
    settings = {"problem": few_hot(), "cluster": cluster, "momentum": 0.9, "lr": 0.003}
    whole, sparse = (
        simulated(small_experiment(method(servers=servers), **settings))
        for method in (AsyncSGD, SparseAsyncSGD)
    )
    assert torch.equal(whole.vector, sparse.vector)
    assert whole.staleness.tolist() == sparse.staleness.tolist()

    def pushed(run):
        messages = run.trace.messages
        return messages["bytes"][messages["to"] >= 4].sum()

    assert pushed(sparse) < pushed(whole) / 2


@types.coroutine
def watched(node, round, seen):
    """Go through a round, and note the parameters wherever others may look at them."""
    answer = None
    while True:
        try:
            awaited = round.send(answer)
        except StopIteration:
            return
        seen.append(node.parameters.clone())
        answer = yield awaited


@pytest.mark.parametrize("name", ["DPSGD", "GradientTracking", "RelaySGD", "ChocoSGD"])
def test_the_parameters_are_a_model_wherever_a_worker_waits(name):
    """A loop's module is made of them, and is what its user has left after an error."""
    kind, seen = METHODS[name], []

    class Watched(kind):
        async def step(self, node):
            if node.round == 0:
                node.load(torch.ones_like(node.parameters))
            await watched(node, kind.step(self, node), seen)

    # Of equal workers that learn nothing every average is what they began with.
    simulated(small_experiment(Watched(), workers=5, steps=4, lr=0.0))
    assert len(seen) > 2 * 4 * 5
    for parameters in seen:
        torch.testing.assert_close(parameters, torch.ones_like(parameters))
