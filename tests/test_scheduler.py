import asyncio
import time
import types
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from offbeat.cluster import Cluster, Constant
from offbeat.experiment import Budget
from offbeat.messages import message
from offbeat.method import Method, ServerMethod
from offbeat.methods import AsyncSGD
from offbeat.runtime.simulated import Simulation
from offbeat.testing import small_experiment


@message
class Note:
    number: int


@message
class Other:
    number: int


@message
class Never:
    payload: Tensor


def error_of(simulation):
    assert simulation.result.stop == "error"
    return simulation.result.error


def run(method, **settings):
    return Simulation(small_experiment(method, **settings)).run()


# Messages


def test_messages_are_received_by_type_in_order(script):
    read = []

    async def worker(node):
        if node.rank == 0:
            for number in range(3):
                node.send(1, Note(number))
                node.send(1, Other(number))
        else:
            for kind in (Other, Other, Note, Note, Other, Note):
                source, got = await node.recv(kind)
                read.append((source, type(got), got.number))

    assert script(worker).result.error is None
    assert [(s, n) for s, _, n in read] == [(0, 0), (0, 1), (0, 0), (0, 1), (0, 2), (0, 2)]
    assert [kind for _, kind, _ in read] == [Other, Other, Note, Note, Other, Note]


def test_messages_are_received_from_a_named_source(script):
    read = []

    async def worker(node):
        if node.rank < 2:
            await node.sleep(0.1 * node.rank)
            node.send(2, Note(node.rank))
        else:
            for source in (1, 0):
                read.append((await node.recv(Note, source=source))[1].number)

    assert script(worker, workers=3).result.error is None
    assert read == [1, 0]


def test_a_node_may_send_to_itself(script):
    read = []

    async def worker(node):
        node.send(node.rank, Note(7))
        read.append((await node.recv(Note))[0])

    assert script(worker).result.error is None
    assert sorted(read) == [0, 1]


def test_poll_takes_what_is_here_and_never_waits(script):
    polled = []

    async def worker(node):
        if node.rank == 0:
            node.send(1, Note(1))
            node.send(1, Note(2))
            return
        polled.append(node.poll(Note))
        await node.sleep(1.0)
        polled.append(node.poll(Other))
        polled.append(node.poll(Note, source=1))
        polled.extend((node.poll(Note), node.poll(Note), node.poll(Note)))
        polled[3:5] = [(source, got.number) for source, got in polled[3:5]]

    assert script(worker).result.error is None
    assert polled == [None, None, None, (0, 1), (0, 2), None]


def test_two_roles_of_a_node_take_different_types(script):
    read = []

    async def worker(node):
        node.send(1 - node.rank, Note(node.rank))
        node.send(1 - node.rank, Other(node.rank))
        read.append((await node.recv(Note))[1].number)

    async def listener(node):
        read.append(10 + (await node.recv(Other))[1].number)

    assert script(worker, listener).result.error is None
    assert sorted(read) == [0, 1, 10, 11]


def test_a_message_is_by_value(script):
    read = []

    @message
    class Carry:
        payload: Tensor

    async def worker(node):
        if node.rank == 0:
            x = torch.ones(2)
            node.send(1, Carry(x))
            node.send(0, Carry(node.parameters))
            node.mix(scale=0.0, add=torch.ones_like(node.parameters))
            x.zero_()
            read.append((await node.recv(Carry))[1].payload.sum().item())
        else:
            read.append((await node.recv(Carry))[1].payload.sum().item())

    assert script(worker).result.error is None
    assert sorted(read) == [0, 2]


def test_sending_to_no_node_is_refused(script):
    async def worker(node):
        node.send(2, Note(0))

    assert "ValueError: there is no node 2; nodes are 0 to 1" in error_of(script(worker))


def test_sending_what_is_no_message_is_refused(script):
    async def worker(node):
        node.send(1, "hello")

    assert "str is not a message; declare the class with @offbeat.message" in error_of(
        script(worker)
    )


# Sleeping, starting


def test_sleep_takes_virtual_time_only(script):
    woken = []

    async def worker(node):
        await node.sleep(50.0 * node.rank)
        woken.append(node.now)

    began = time.perf_counter()
    assert script(worker).result.error is None
    assert woken == [0, 50]
    assert time.perf_counter() - began < 10


def test_what_is_started_runs_beside_and_is_awaited_for_its_result(script):
    order = []

    async def slow(node, seconds):
        await node.sleep(seconds)
        order.append(seconds)
        return seconds * 2

    async def worker(node):
        first, second = node.start(slow(node, 2.0)), node.start(slow(node, 1.0))
        order.append("started")
        order.extend([await first, await second, await first])

    assert script(worker, workers=1).result.error is None
    assert order == ["started", 1.0, 2.0, 4.0, 2.0, 4.0]


def test_what_fails_raises_where_it_is_awaited(script):
    caught = []

    async def fails(node):
        await node.sleep(1.0)
        raise KeyError("lost")

    async def worker(node):
        try:
            await node.start(fails(node))
        except KeyError as error:
            caught.append(error.args)

    assert script(worker, workers=1).result.error is None
    assert caught == [("lost",)]


# Gradients that a message cancels


def test_a_message_cancels_a_gradient_and_stays_to_be_read(script):
    seen = {}

    async def worker(node):
        if node.rank == 1:
            await node.sleep(0.004)
            node.send(0, Note(3))
            return
        seen["cancelled"] = await node.gradient(cancel_on=Note), node.now
        seen["read"] = (await node.recv(Note))[1].number
        seen["at once"] = (await node.gradient(cancel_on=Note)).loss > 0

    cluster = Cluster(workers=2, compute=Constant(seconds=0.01), latency=0.0)
    simulation = script(worker, cluster=cluster)
    assert simulation.result.error is None
    gradient, when = seen["cancelled"]
    assert gradient is None
    assert when == pytest.approx(0.004, abs=1e-6)
    assert (seen["read"], seen["at once"]) == (3, True)
    assert len(simulation.result.trace.gradients) == 1


def test_a_message_that_is_here_already_cancels_at_once(script):
    seen = []

    async def worker(node):
        if node.rank == 1:
            node.send(0, Note(3))
            return
        await node.sleep(1.0)
        seen.append(await node.gradient(cancel_on=Note))
        seen.append(node.now)

    assert script(worker).result.error is None
    assert seen == [None, 1.0]


def test_other_messages_cancel_nothing(script):
    seen = []

    async def worker(node):
        if node.rank == 1:
            node.send(0, Other(3))
            return
        seen.append(await node.gradient(cancel_on=Note))

    assert script(worker).result.error is None
    assert seen[0].vector.shape == (8,)


def test_a_cancelled_gradient_takes_the_minibatch_with_it(script):
    losses = []

    async def worker(node):
        if node.rank == 1:
            node.send(0, Note(3))
            return
        await node.gradient(cancel_on=Note)
        await node.recv(Note)
        losses.append((await node.gradient()).loss)

    async def undisturbed(node):
        if node.rank == 0:
            await node.gradient()
            losses.append((await node.gradient()).loss)

    assert script(worker).result.error is None
    assert script(undisturbed).result.error is None
    assert losses[0] == losses[1]


# Deadlocks


@dataclass(frozen=True, kw_only=True)
class Everybody(Method):
    """Everyone waits for someone else to begin."""

    messages = (Never, Other)
    background = ("listen",)

    async def step(self, node):
        await node.recv(Never, source=1 - node.rank)
        await node.gradient()

    async def listen(self, node):
        await node.recv(Other)


def test_a_deadlock_ends_at_once_with_each_node_role_and_type():
    result = run(Everybody(), workers=2)
    assert result.stop == "error"
    assert result.error == (
        "deadlock at 0 s: every role waits and no message is on its way: "
        "node 0 (worker) awaits recv(Never, source=1); node 0 (listen) awaits recv(Other); "
        "node 1 (worker) awaits recv(Never, source=0); node 1 (listen) awaits recv(Other)"
    )
    assert len(result.metrics) >= 1


@dataclass(frozen=True, kw_only=True)
class Later(ServerMethod):
    """The server forgets to answer."""

    messages = (Note,)

    async def serve(self, node):
        await node.recv(Note)

    async def step(self, node):
        gradient = await node.gradient()
        node.apply(gradient)
        node.send(node.server, Note(0))
        await node.recv(Never)


def test_a_deadlock_in_the_middle_says_when_and_names_the_server():
    result = run(Later(), workers=3)
    assert "deadlock at 0.0" in result.error
    assert "node 2 (worker) awaits recv(Never)" in result.error
    assert "node 3 (server) awaits recv(Note)" in result.error


def test_a_deadlock_of_many_nodes_names_some(script):
    async def worker(node):
        await node.recv(Never)

    assert error_of(script(worker, workers=12)).endswith(
        "node 7 (worker) awaits recv(Never); and 4 more"
    )


def test_a_collective_that_one_worker_does_not_join_is_a_deadlock(script):
    async def worker(node):
        if node.rank:
            await node.all_reduce(torch.ones(1))

    assert "node 1 (worker) awaits all_reduce(group of 2)" in error_of(script(worker))


def test_the_end_of_the_budget_is_no_deadlock():
    result = run(AsyncSGD(), workers=3, steps=5)
    assert (result.stop, result.error) == ("samples", None)


# What a role must not do


@types.coroutine
def bare():
    yield "something of another world"


@pytest.mark.parametrize(
    ("awaits", "text"),
    [
        (lambda: asyncio.sleep(0), "awaited None"),
        (bare, "awaited 'something of another world'"),
    ],
)
def test_awaiting_something_foreign_names_node_and_role(script, awaits, text):
    async def worker(node):
        await node.sleep(0.0)

    async def listener(node):
        if node.rank == 1:
            await awaits()

    error = error_of(script(worker, listener))
    assert error.startswith(f"Script on node 1 (listener) {text}; a role may await only what its")


def test_awaiting_asyncio_sleep_names_node_and_role(script):
    async def worker(node):
        if node.rank == 1:
            await asyncio.sleep(0.1)

    assert error_of(script(worker)).startswith("Script on node 1 (worker) raised RuntimeError: no")


def test_a_role_cannot_swallow_the_refusal(script):
    async def worker(node):
        try:
            await bare()
        except Exception:
            await node.sleep(0.0)

    assert "awaited 'something of another world'" in error_of(script(worker))


@dataclass(frozen=True, kw_only=True)
class Hasty(Method):
    async def step(self, node):
        node.mix(scale=1.0)


def test_a_step_that_awaits_nothing_is_refused():
    assert run(Hasty(), workers=2).error == (
        "Hasty on node 0 (worker) repeats for ever without awaiting anything that takes time; "
        "await node.gradient(), node.recv(...) or node.sleep(...) in it, and read the messages "
        "that cancel"
    )


@dataclass(frozen=True, kw_only=True)
class HastyBeside(Method):
    background = ("listen",)

    async def step(self, node):
        await node.gradient()

    async def listen(self, node):
        pass


@dataclass(frozen=True, kw_only=True)
class HastyServer(ServerMethod):
    async def step(self, node):
        await node.gradient()

    async def serve(self, node):
        pass


@dataclass(frozen=True, kw_only=True)
class Deaf(Method):
    async def step(self, node):
        node.send(node.rank, Note(0))
        while True:
            await node.gradient(cancel_on=Note)


@pytest.mark.parametrize(
    ("method", "role"), [(HastyBeside(), "listen"), (HastyServer(), "server"), (Deaf(), "worker")]
)
def test_no_role_spins_for_ever(method, role):
    error = run(method, workers=1).error
    assert error is not None
    assert f"({role}) repeats for ever without awaiting anything that takes time" in error


@dataclass(frozen=True, kw_only=True)
class Faulty(Method):
    background = ("listen",)
    at_rank: int = 2

    async def step(self, node):
        await node.gradient()

    async def listen(self, node):
        await node.sleep(0.005)
        if node.rank == self.at_rank:
            raise ZeroDivisionError("by nothing")


def test_an_exception_names_node_role_and_line():
    result = run(Faulty(), workers=3)
    line = Faulty.listen.__code__.co_firstlineno + 3
    assert result.error == (
        f"Faulty on node 2 (listen) raised ZeroDivisionError: by nothing (test_scheduler.py:{line})"
    )
    assert result.stop == "error"
    assert len(result.metrics) >= 1


def test_an_exception_in_what_nobody_awaits_ends_the_run(script):
    async def fails(node):
        await node.sleep(1.0)
        raise KeyError("lost")

    async def worker(node):
        node.start(fails(node))
        await node.sleep(2.0)

    assert "on node 0 (fails) raised KeyError: 'lost'" in error_of(script(worker, workers=1))


def test_roles_are_closed_when_the_run_is_over(script):
    closed = []

    async def worker(node):
        try:
            await node.sleep(10.0)
        finally:
            closed.append(node.rank)

    assert script(worker, budget=Budget(seconds=1.0)).result.stop == "seconds"
    assert closed == [0, 1]


def test_rounds_are_counted():
    simulation = Simulation(small_experiment(AsyncSGD(), workers=2, steps=10))
    assert simulation.run().error is None
    *workers, server = simulation.nodes
    assert server.round == sum(node.round for node in workers) == 20
