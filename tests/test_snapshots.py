"""What a gradient is taken at, on a host of a real run: the parameters themselves, or a copy."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from offbeat.messages import message
from offbeat.method import Method
from offbeat.methods import ADPSGD, SGD
from offbeat.node import Node
from offbeat.parameters import Layout
from offbeat.runtime.host import Host
from offbeat.schedule import Constant

SIZE = 200_000


@message
class Halt:
    number: int


@dataclass(frozen=True, kw_only=True)
class Cancelling(Method):
    messages: ClassVar[tuple[type, ...]] = (Halt,)

    async def step(self, node):
        await node.gradient(cancel_on=Halt)


@dataclass(frozen=True, kw_only=True)
class Elsewhere(Method):
    point: Tensor = field(default_factory=lambda: torch.ones(SIZE))

    async def step(self, node):
        await node.gradient(at=self.point)


@dataclass(frozen=True, kw_only=True)
class Late(Method):
    """Asks for a gradient, changes x, and only then awaits the gradient."""

    change: str = "mix"

    async def step(self, node):
        request = node.gradient()
        if self.change == "mix":
            node.mix(scale=0.5)
        elif self.change == "load":
            node.load(torch.zeros(SIZE))
        elif self.change == "apply":
            node.apply(torch.zeros(SIZE), taken_at=0)
        await request


@pytest.fixture
def begun(tmp_path):
    """Runs a method on the only node of a host: (host, node, failures)."""
    started = []

    def begin(method, rank=0, hosts=1, meet=()):
        failures = []
        host = Host(
            method,
            range(hosts),
            rank,
            listen=f"unix:{tmp_path / str(rank)}",
            secret=b"test",
            may_compute=lambda node, request: True,
            on_failure=failures.append,
        )
        started.append(host)
        everyone = [host, *meet]
        addresses = {h.index: h.transport.address for h in everyone}
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda h: h.connect(addresses, timeout=10.0), everyone))
        node = Node(
            rank=rank,
            workers=range(hosts),
            servers=range(hosts, hosts),
            parameters=torch.zeros(SIZE),
            layout=Layout(("x",), ((SIZE,),)),
            runtime=host,
            optimizer_factory=lambda named: torch.optim.SGD([p for _, p in named], lr=0.1),
            schedule=Constant(),
            batch_size=1,
            seed=0,
        )
        host.add(node)
        host.begin(time.monotonic_ns())
        return host, node, failures

    yield begin
    for host in started:
        host.finish()
    with ThreadPoolExecutor() as threads:
        list(threads.map(Host.close, started))


def test_a_role_that_lives_alone_has_its_gradients_at_the_parameters_themselves(begun):
    host, node, _ = begun(SGD())
    for _ in range(2):
        task, request = host.next_request()
        assert request.snapshot is node.parameters
        host.fulfil(task, request, torch.ones(SIZE), 0.0, 0)
    assert node.parameters.eq(-0.2).all()


def test_a_point_that_only_its_role_can_change_is_not_copied(begun):
    method = Elsewhere()
    host, _, _ = begun(method)
    assert host.next_request()[1].snapshot is method.point


@pytest.mark.parametrize("method", [ADPSGD(), Cancelling()], ids=["two roles", "cancelled"])
def test_the_snapshot_is_a_copy_where_something_may_happen_meanwhile(begun, method):
    host, node, _ = begun(method)
    _, request = host.next_request()
    node.mix(add=torch.ones(SIZE))
    assert request.snapshot.eq(0).all()


@pytest.mark.parametrize("change", ["mix", "load", "apply"])
def test_a_gradient_awaited_after_its_parameters_changed_is_refused(begun, change):
    _, _, failures = begun(Late(change=change))
    assert len(failures) == 1
    assert "node 0's parameters were changed between gradient() and its await" in str(failures[0])


def test_a_gradient_may_be_awaited_later_if_nothing_changed(begun):
    host, node, failures = begun(Late(change="nothing"))
    assert host.next_request()[1].snapshot is node.parameters
    assert not failures


def test_large_buffers_are_sent_from_where_they_lie(begun):
    host, node, _ = begun(SGD())
    pool = host.transport.pool
    before = pool.total_bytes
    large, small = host.buffer(node.parameters), host.buffer(torch.zeros(3, 2))
    assert large.shape == node.parameters.shape
    assert small.shape == (3, 2)
    assert pool.total_bytes > before
    used = pool.total_bytes
    scaled = node.scaled(2.0)
    assert torch.equal(scaled, torch.zeros(SIZE))
    assert pool.total_bytes > used


@message
class Part:
    values: Tensor  # (d,)


@dataclass(frozen=True, kw_only=True)
class Rewriting(Method):
    """Sends a vector that it then goes on to write to, or a clone of it."""

    clones: bool = False
    messages: ClassVar[tuple[type, ...]] = (Part,)

    async def step(self, node):
        if node.rank == 0:
            vector = node.scaled(1.0)
            node.send(1, Part(vector.clone() if self.clones else vector))
            vector += 1
        await node.gradient()


@pytest.mark.parametrize("clones", [False, True])
def test_a_vector_written_while_its_receiver_may_read_it_ends_the_run(begun, clones):
    # The receiver takes the message in and never reads it.
    method = Rewriting(clones=clones)
    receiver, _, _ = begun(method, rank=1, hosts=2)
    sender, _, failures = begun(method, rank=0, hosts=2, meet=[receiver])
    if clones:
        assert sender.next_request(timeout=10.0) is not None
        assert not failures
    else:
        assert len(failures) == 1
        assert "Rewriting: a tensor of shape (200000,) was changed after it was sent to host 1" in (
            str(failures[0])
        )
