import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from offbeat import testing
from offbeat.citation import citations
from offbeat.cluster import Cluster
from offbeat.compression import E3M0, QSGD
from offbeat.experiment import Budget
from offbeat.messages import MessageError, message
from offbeat.method import Method, ServerMethod
from offbeat.methods import (
    ADPSGD,
    BMUF,
    DPSGD,
    METHODS,
    AccumulatedAsyncSGD,
    AllReduceSGD,
    AsyncLocalSGD,
    AsyncSGD,
    BackupSyncSGD,
    CompressedAllReduceSGD,
    DelayCompensatedSGD,
    DispatchedAsyncSGD,
    Downpour,
    ElasticAveragingSGD,
    GradientTracking,
    LocalSGD,
    PostLocalSGD,
    RelaySGD,
    RennalaSGD,
    RoundRobinSGD,
    SlowMo,
    SparseAsyncSGD,
    StaleSynchronousSGD,
    StochasticGradientPush,
    StreamingDiLoCo,
    SyncSGD,
)
from offbeat.methods.async_sgd import Pull, Push
from offbeat.testing import check_method, fingerprint, simulated, small_experiment
from offbeat.topology import Complete, Exponential, Graph, Line, Topology

VARIANTS = {
    **{name: method() for name, method in METHODS.items()},
    "quantized without error feedback": CompressedAllReduceSGD(
        compressor=QSGD(bits=4), error_feedback=False
    ),
    "two servers": AsyncSGD(servers=2),
    "colocated servers": DelayCompensatedSGD(servers=3, colocated=True),
    "gradient returned": SyncSGD(returns="gradient"),
    "gradient returned by two servers": SyncSGD(returns="gradient", servers=2),
    "two synchronous servers": SyncSGD(servers=2, colocated=True),
    "sparse, two servers": SparseAsyncSGD(servers=2),
    "dispatched, two servers": DispatchedAsyncSGD(servers=2),
    "accumulated on both sides, two servers": AccumulatedAsyncSGD(
        global_accumulation=2, local_accumulation=2, servers=2
    ),
    "Rennala on two servers": RennalaSGD(gradients=3, servers=2, colocated=True),
    "synchronous parallel": StaleSynchronousSGD(bound=0),
    "stale synchronous, two servers": StaleSynchronousSGD(bound=1, servers=2),
    "two backups": BackupSyncSGD(backups=2),
    "round robin of two servers": RoundRobinSGD(servers=2),
    "directed exponential graph": DPSGD(topology=Exponential()),
    "post-local from the start": PostLocalSGD(switch=0, local_steps=4),
    "SlowMo over D-PSGD": SlowMo(inner=DPSGD(), period=5),
    "complete graph": ADPSGD(topology=Complete()),
    "irregular digraph": StochasticGradientPush(
        topology=Graph(edges=((0, 1), (0, 2), (0, 3), (1, 2), (2, 3), (3, 0)), directed=True)
    ),
    "SlowMo over push": SlowMo(inner=StochasticGradientPush(topology=Exponential()), period=5),
    "overlapping push": StochasticGradientPush(
        topology=Graph(edges=((0, 1), (0, 2), (1, 2), (2, 3), (3, 0)), directed=True), overlap=1
    ),
    "SlowMo over overlapping push": SlowMo(inner=StochasticGradientPush(overlap=3), period=5),
    "SlowMo over gradient tracking": SlowMo(inner=GradientTracking(), period=5),
    "SlowMo over relays": SlowMo(inner=RelaySGD(topology=Line()), period=5),
    "SlowMo over all-reduce": SlowMo(inner=AllReduceSGD(), period=3, alpha=0.9),
    "one fragment": StreamingDiLoCo(fragments=1, overlap=0, mixing=0.0, local_steps=5),
    "four fragments": StreamingDiLoCo(fragments=4, overlap=3, local_steps=8),
    "four bits": StreamingDiLoCo(compressor=E3M0(), local_steps=4),
    "Nesterov block momentum": BMUF(local_steps=5, variant="nesterov"),
    "Downpour, two servers": Downpour(servers=2, fetch_every=2, push_every=3, fetch="wait"),
    "asynchronous Nesterov on two servers": AsyncLocalSGD(
        servers=2, local_steps=5, outer_lr=0.1, momentum_period=1, outer_momentum=0.5, dynamic=False
    ),
    "center on two servers": ElasticAveragingSGD(servers=2, local_steps=3),
}
every_variant = pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS.keys())


@every_variant
def test_the_declarations_are_sound(method):
    testing.check_declarations(method)


@every_variant
def test_the_model_at_the_start_is_the_start(method):
    testing.check_start(method)


@every_variant
def test_one_worker_under_the_serial_settings_is_serial_sgd_to_the_bit(method):
    testing.check_serial_equivalence(method)


@every_variant
def test_the_same_seed_gives_the_same_run_to_the_bit(method):
    testing.check_repeats(method)


@every_variant
def test_a_quadratic_is_solved(method):
    testing.check_solves_quadratic(method)


@every_variant
def test_gradients_are_applied_to_versions_that_there_were(method):
    testing.check_staleness(method)


@every_variant
def test_every_message_is_declared_and_read(method):
    testing.check_messages(method)


@every_variant
def test_workers_agree_when_the_method_says_so(method):
    testing.check_agreement(method)


@every_variant
def test_the_loss_of_workers_is_survived_or_reported(method):
    testing.check_loss_of_workers(method)


@pytest.mark.parametrize("name", METHODS)
def test_staleness_is_zero_where_it_is_bound_to_be_and_only_there(name):
    method = METHODS[name]()
    run = simulated(small_experiment(method, workers=4))
    at_servers = method.family == "parameter server"  # Elsewhere servers make no gradient steps.
    if method.staleness_bound(4) == 0 or not (at_servers or method.shares_parameters):
        assert run.staleness.max() == 0
    else:
        assert run.staleness.max() > 0


@pytest.mark.parametrize("name", METHODS)
def test_only_averaging_beside_a_gradient_changes_parameters_under_a_gradient(name):
    steps = simulated(small_experiment(METHODS[name](), workers=4)).trace.steps
    averaging = ("ADPSGD", "DPSGD", "ElasticAveragingSGD", "GradientTracking")
    assert (steps["mixes"].max() > 0) == (name in averaging)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_reference_and_a_family(name):
    method = METHODS[name]
    assert method.__name__ == name
    assert citations(method)
    assert method.family in ("serial", "all-reduce", "parameter server", "shared memory",
                             "decentralized", "local updates")  # fmt: skip
    assert method.__doc__
    assert "Roles:" in method.__doc__


PRINT_FINGERPRINTS = """
import sys
sys.path.insert(0, {folder!r})
from test_conformance import fingerprints
print(fingerprints())
"""


def fingerprints():
    return {
        name: fingerprint(simulated(small_experiment(method, steps=20)))
        for name, method in VARIANTS.items()
    }


def test_a_fresh_process_with_another_hash_seed_gives_the_same_bits():
    program = PRINT_FINGERPRINTS.format(folder=os.path.dirname(__file__))
    environment = os.environ | {"PYTHONHASHSEED": "4242"}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert output == f"{fingerprints()}\n"


# A user's own method


@dataclass(frozen=True, kw_only=True)
class GlobalAccumulation(ServerMethod):
    """The server makes one step along the mean of every `count` gradients; nobody waits longer."""

    count: int = 2

    messages: ClassVar = (Push, Pull)
    serial: ClassVar = {"count": 1}

    async def serve(self, node):
        pushed = [await node.recv(Push) for _ in range(self.count)]
        mean = sum(push.gradient for _, push in pushed) / self.count
        node.apply(mean, taken_at=[push.taken_at for _, push in pushed])
        for worker, _ in pushed:
            node.send(worker, Pull(node.parameters, node.version))

    async def step(self, node):
        gradient = await node.gradient()
        node.send(node.server, Push(gradient.vector, gradient.version))
        _, pull = await node.recv(Pull)
        node.load(pull.parameters, pull.version)


@message
class Centre:
    parameters: Tensor


def test_a_class_instead_of_a_method_is_told_what_to_write():
    with pytest.raises(AssertionError, match=r"wants an instance: check_method\(SGD\(\)\)"):
        check_method(METHODS["SGD"])


@dataclass(frozen=True, kw_only=True)
class Gossip(Method):
    """Decentralized SGD on a fixed graph, its values exchanged round by round."""

    topology: Topology = field(default_factory=Complete)
    messages = (Centre,)
    synchronous = True

    async def step(self, node):
        gradient = await node.gradient()
        peers = node.peers(self.topology)
        for peer in peers.out:
            node.send(peer, Centre(node.parameters))
        mixed = node.parameters * peers.self_weight
        for peer in peers.into:
            _, got = await node.recv(Centre, source=peer)
            mixed += got.parameters * peers.out[peer]
        node.load(mixed)
        node.apply(gradient)


@pytest.mark.parametrize("method", [GlobalAccumulation(), Gossip()])
def test_a_users_method_is_conforming(method):
    check_method(method)


# What each check is there to find


def fails(text, *bases, **members):
    """A broken method: (the method, what the check says of it)."""
    cls = type("Broken", bases or (AllReduceSGD,), members)
    return dataclass(frozen=True, kw_only=True)(cls)(), text


async def forgets_the_schedule(self, node):
    gradient = await node.gradient()
    node.mix(add=-0.05 * gradient.vector)
    node.apply(torch.zeros_like(gradient.vector), taken_at=gradient.version)


async def rounds_once_more(self, node):
    gradient = await node.gradient()
    node.load(node.parameters + 1.0)
    node.load(node.parameters - 1.0)
    node.apply(gradient)


async def uses_the_hash(self, node):
    gradient = await node.gradient()
    node.apply(gradient.vector * (1 + 1e-9 * len(UNSEEDED)), taken_at=gradient.version)
    UNSEEDED.append(1)


UNSEEDED = []


async def sleeps_for_ever_longer(self, node):
    gradient = await node.gradient()
    node.apply(gradient)
    UNSEEDED.append(1)
    await node.sleep(1e-6 * len(UNSEEDED))


async def ascends(self, node):
    gradient = await node.gradient()
    node.apply(-0.01 * gradient.vector, taken_at=gradient.version)


async def claims_the_future(self, node):
    gradient = await node.gradient()
    node.apply(gradient, taken_at=gradient.version + 1)


async def claims_the_past(self, node):
    gradient = await node.gradient()
    node.apply(gradient.vector, taken_at=-5)


async def applies_nothing(self, node):
    gradient = await node.gradient()
    node.load(node.parameters - 0.05 * gradient.vector)


async def floods(self, node):
    gradient = await node.gradient()
    node.apply(gradient)
    node.send((node.rank + 1) % node.size, Centre(node.parameters))


async def reads_nine_of_ten(self, node):
    await floods(self, node)
    if node.round % 10:
        await node.recv(Centre)


async def alone(self, node):
    gradient = await node.gradient()
    node.apply(gradient)


async def waits_for_all(self, node):
    gradient = await node.gradient()
    node.apply(gradient)
    await node.barrier()


async def stops_talking(self, node):
    gradient = await node.gradient()
    node.apply(gradient)
    if node.departed:
        await node.sleep(10.0)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (fails("is not serial SGD", step=forgets_the_schedule), "serial_equivalence"),
        (fails("is not serial SGD", step=rounds_once_more), "serial_equivalence"),
        (fails("computed different numbers", step=uses_the_hash), "repeats"),
        (fails("differ in what happened when", step=sleeps_for_ever_longer), "repeats"),
        (fails("took the loss of a quadratic from", step=ascends), "solves_quadratic"),
        (fails("as taken at version 1;", step=claims_the_future), "staleness"),
        (fails("as taken at version -5", step=claims_the_past), "staleness"),
        (fails("applied no gradient", step=applies_nothing), "staleness"),
        (
            fails("its staleness_bound", AsyncSGD, staleness_bound=lambda self, workers: 2),
            "staleness",
        ),
        (fails("sent a Centre, which Broken.messages does not", step=floods), "messages"),
        (fails("unread on node .* 8 times as long", step=floods, messages=(Centre,)), "messages"),
        (fails("unread on node", step=reads_nine_of_ten, messages=(Centre,)), "messages"),
        (fails("hold different parameters", step=alone), "agreement"),
        (fails("stood still", step=stops_talking), "loss_of_workers"),
        (
            fails("survives_loss is True, but", step=waits_for_all, survives_loss=True),
            "loss_of_workers",
        ),
        (fails("stood still", step=stops_talking, survives_loss=True), "loss_of_workers"),
        (fails("returned shape", model=lambda self, nodes: torch.ones(3)), "start"),
        (
            fails("when every node began", model=lambda self, nodes: 2 * nodes[0].parameters),
            "start",
        ),
        (fails("names 'listen', which is not", background=("listen",)), "declarations"),
        (fails("declares a ledger, but", ADPSGD, shares_parameters=True), "declarations"),
        (fails("declares servers, but", AsyncSGD, shares_parameters=True), "declarations"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else value,
)
def test_each_check_finds_what_it_is_there_for(broken, check):
    method, text = broken
    with pytest.raises(AssertionError, match=text):
        getattr(testing, f"check_{check}")(method)


def test_undeclared_messages_are_found():
    class NoMessage:
        pass

    method, _ = fails("", messages=(NoMessage,))
    with pytest.raises(MessageError, match="NoMessage is not a message"):
        testing.check_declarations(method)


def test_a_method_that_is_no_frozen_dataclass_is_found():
    class Undeclared(AllReduceSGD):
        def __init__(self, rate):
            object.__setattr__(self, "rate", rate)

    with pytest.raises(AssertionError, match="Undeclared is no dataclass of its own; declare it"):
        testing.check_declarations(Undeclared(0.1))


def test_serial_equivalence_of_the_server_is_broken_by_a_server_that_forgets_momentum():
    @dataclass(frozen=True, kw_only=True)
    class Forgetful(AsyncSGD):
        async def serve(self, node):
            worker, push = await node.recv(Push)
            node.apply(push.gradient, taken_at=push.taken_at)
            node.optimizer.reset()
            node.send(worker, Pull(node.parameters, node.version))

    with pytest.raises(AssertionError, match="is not serial SGD"):
        testing.check_serial_equivalence(Forgetful())


def test_another_seed_is_another_run():
    one, other = (simulated(small_experiment(LocalSGD(), steps=10, seed=s)) for s in (3, 4))
    assert fingerprint(one) != fingerprint(other)


def test_a_budget_of_seconds_repeats_too():
    experiment = small_experiment(ADPSGD(), cluster=Cluster(workers=4), budget=Budget(seconds=0.3))
    assert fingerprint(simulated(experiment)) == fingerprint(simulated(experiment))
