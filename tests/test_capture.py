"""Capture: a run that is stopped between rounds goes on to the bit, and what cannot is refused."""

import functools
import itertools
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import offbeat.optim
from offbeat.cluster import Cluster
from offbeat.encoding import EncodingError, encode
from offbeat.experiment import Budget, Experiment
from offbeat.messages import message
from offbeat.method import Method
from offbeat.methods import (
    METHODS,
    SGD,
    AllReduceSGD,
    AsyncSGD,
    BackupSyncSGD,
    StreamingDiLoCo,
    SyncSGD,
)
from offbeat.node import Node
from offbeat.optim import Delayed, NormalDelay
from offbeat.problems import Digits
from offbeat.runtime.capture import CaptureError, capture, read_state, restore
from offbeat.runtime.checkpoint import next_pause
from offbeat.runtime.compute import SerialEvaluator
from offbeat.runtime.control import Capture, Captured, Pause, Proceed
from offbeat.runtime.host import Host
from offbeat.runtime.keeping import MOST_ORDERS, Keeper
from offbeat.runtime.replay import replay_run
from offbeat.runtime.seats import Seat, quiet
from offbeat.runtime.shared import CommonParameters
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.status import Status
from offbeat.runtime.tasks import Finished
from offbeat.runtime.world import World
from offbeat.stepping import UNUSABLE
from offbeat.testing import small_experiment

SYNCHRONOUS = [name for name, method in METHODS.items() if method.synchronous]
SETTINGS = {
    # Some that are not the defaults, so that overlaps, fragments and outer steps are met.
    "StreamingDiLoCo": {"local_steps": 4, "fragments": 3, "overlap": 3},
    "SlowMo": {"period": 3},
    "LocalSGD": {"local_steps": 3},
    "PostLocalSGD": {"local_steps": 2},
    "HierarchicalLocalSGD": {"local_steps": 2, "block_steps": 2},
    "BMUF": {"local_steps": 3, "variant": "nesterov"},
    "DiLoCo": {"local_steps": 3},
}
PATIENCE = 60.0


class Held(Simulation):
    """A simulation whose workers stop before a round; it runs until nothing is left to happen."""

    def __init__(self, experiment: Experiment, at_round: int, saved: Mapping[int, bytes] = {}):
        super().__init__(experiment)
        self.at_round, self.saved = at_round, saved

    def next_round(self, task):
        return task.node.round < self.at_round and super().next_round(task)

    def carry(self) -> dict[int, bytes]:
        for rank in [*self.world.workers, *self.world.servers]:
            self._place(rank, self.world.initial)
            if self.saved:
                restore(self.scheduler, read_state(self.saved[rank]))
        for node in self.nodes:
            self.scheduler.begin(node)
        self.scheduler.drain()
        while self.step():
            pass
        return {node.rank: capture(self.scheduler, node.rank) for node in self.nodes}


def uninterrupted_and_resumed(experiment: Experiment, stop: int, end: int):
    whole = Held(experiment, end).carry()
    halfway = Held(experiment, stop).carry()
    return whole, Held(experiment, end, halfway).carry()


@pytest.mark.parametrize("stop", [1, 5, 9])
@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_a_synchronous_method_goes_on_to_the_bit(name: str, stop: int):
    method = METHODS[name](**SETTINGS.get(name, {}))
    experiment = small_experiment(method, workers=4, momentum=0.9)
    whole, resumed = uninterrupted_and_resumed(experiment, stop, end=14)
    assert resumed == whole  # Parameters, states, momentum, collectives: every byte.


@dataclass(frozen=True, kw_only=True)
class Half:
    """A schedule that changes with every sample, so that a wrong position shows."""

    def factor(self, samples: int) -> float:
        return 1.0 / (1.0 + samples / 100)


def delayed(parameters, lr: float) -> Delayed:
    inner = torch.optim.SGD(parameters, lr=lr, momentum=0.9)
    return Delayed(inner, NormalDelay(mean=1, std=1))


OPTIMIZERS = {
    name: made
    for module in (torch.optim, offbeat.optim)
    for name, made in vars(module).items()
    if isinstance(made, type)
    and issubclass(made, torch.optim.Optimizer)
    and made is not torch.optim.Optimizer
    and name not in UNUSABLE
} | {"Delayed": delayed}
OF_MATRICES = ("Muon", "LARS", "LAMB", "NormalizedMomentumLARS")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_to_the_bit(name: str):
    settings = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {}
    made = functools.partial(OPTIMIZERS[name], lr=0.01, **settings)
    experiment = small_experiment(AllReduceSGD(), workers=2, optimizer=made, schedule=Half())
    if name in OF_MATRICES:  # It takes no vectors, or takes them otherwise.
        experiment = matrix_experiment(made)
    whole, resumed = uninterrupted_and_resumed(experiment, stop=3, end=6)
    assert resumed == whole


def matrix_experiment(optimizer) -> Experiment:
    from offbeat.problems import Split, Supervised

    split = Split(torch.randn(32, 3, generator=torch.Generator().manual_seed(0)), torch.ones(32, 2))
    problem = Supervised(
        model_factory=lambda: torch.nn.Linear(3, 2, bias=False),
        train=split,
        test=split,
        loss_function=torch.nn.functional.mse_loss,
        batch_size=4,
    )
    return small_experiment(AllReduceSGD(), workers=2, problem=problem, optimizer=optimizer)


def test_an_optimizer_with_memory_would_show_its_loss():
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    experiment = small_experiment(AllReduceSGD(), workers=2, optimizer=adam)
    state = read_state(Held(experiment, 3).carry()[0])
    assert state.optimizer is not None
    assert [float(buffers["step"]) for buffers in state.optimizer.buffers] == [3.0] * len(
        state.parameters
    )


def test_double_precision_parameters_keep_the_optimizer_s_own_types():
    # load_state_dict would make doubles of NAdam's single-precision products.
    experiment = small_experiment(
        AllReduceSGD(), workers=2, optimizer=functools.partial(torch.optim.NAdam, lr=0.01)
    )
    simulation = Held(experiment, 3)
    saved = simulation.carry()
    later = Held(experiment, 3, saved)
    later.carry()
    held, again = (
        [{k: v.dtype for k, v in s.items()} for s in sim.nodes[0].optimizer.inner.state.values()]
        for sim in (simulation, later)
    )
    assert held == again
    assert held


# Real hosts, as threads of this process


class Team:
    """All hosts of an experiment, each with a thread of its own for its gradients."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        saved: Mapping[int, bytes] = {},
        journals: Path | None = None,
        allowed: int = 1_000_000,
    ) -> None:
        self.world = World(experiment)
        self.method = experiment.method
        self.failures: list[BaseException] = []
        self.ticked = threading.Event()
        self.tickets = iter(range(allowed))
        folder.mkdir(parents=True, exist_ok=True)
        self.hosts = [
            Host(
                experiment.method,
                self.world.hosts,
                index,
                listen=f"unix:{folder}/{index}",
                secret=b"secret",
                may_compute=lambda node, request: next(self.tickets, None) is not None,
                on_failure=self.failures.append,
                on_tick=self.ticked.set,
                journals=journals,
            )
            for index in range(self.world.host_count())
        ]
        self.seats = [
            Seat(host=i, ranks=[r for r, at in enumerate(self.world.hosts) if at == i])
            for i in range(len(self.hosts))
        ]
        addresses = {host.index: host.transport.address for host in self.hosts}
        self.each(lambda host: host.connect(addresses, timeout=30.0))
        for rank, at in enumerate(self.world.hosts):
            node = self.world.node(rank, self.hosts[at], self.world.initial)
            self.hosts[at].add(node, saved.get(rank))
        # Made in one thread: PyTorch's fork_rng can deadlock when two threads call it at once.
        world = self.world
        self.evaluators = [
            SerialEvaluator(world.make_module(), world.problem.loss, world.data.train)
            for _ in self.hosts
        ]
        self.threads = [threading.Thread(target=self._compute, args=(host,)) for host in self.hosts]

    def each(self, act) -> None:
        with ThreadPoolExecutor(len(self.hosts)) as pool:
            list(pool.map(act, self.hosts))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for host in self.hosts:
            host.finish()
        for thread in self.threads:
            if thread.is_alive():
                thread.join(PATIENCE)
        self.each(lambda host: host.close(timeout=5.0))
        if self.failures:
            raise self.failures[0]

    def begin(self) -> None:
        for host in self.hosts:
            host.begin(0)
        for thread in self.threads:
            thread.start()

    def _compute(self, host: Host) -> None:
        torch.set_num_threads(1)  # It counts for this thread only.
        evaluator = self.evaluators[host.index]
        try:
            while (asked := host.next_request()) is not None:
                task, request = asked
                job = self.world.job(task.node.rank, request)
                evaluator.evaluate_unseeded(job)
                host.fulfil(task, request, job.vector, job.loss, host.elapsed)
        except BaseException as error:
            self.failures.append(error)

    def settle(self) -> None:
        """Wait until everyone is idle and every message has arrived."""
        deadline = time.monotonic() + PATIENCE
        while not self.failures:
            self.ticked.wait(10.0)
            self.ticked.clear()
            for seat, host in zip(self.seats, self.hosts, strict=True):
                seat.status = host.status()
            if quiet(self.seats, set()):
                return
            if time.monotonic() > deadline:
                alive = [thread.is_alive() for thread in self.threads]
                raise AssertionError(f"never quiet; computing {alive}: {self.seats}")

    def pause(self, at_round: int = 0) -> list[int | dict[int, int]]:
        """Hold every worker; the rounds that were paused at."""
        asked: list[int | dict[int, int]] = []
        upcoming: int | dict[int, int] | None = at_round
        while upcoming is not None:
            assert upcoming not in asked, "some worker is in the middle of a round for good"
            asked.append(upcoming)
            for host in self.hosts:
                host.pause(upcoming)
            self.settle()
            upcoming = next_pause([seat.status for seat in self.seats], self.method)
        return asked

    def proceed(self) -> None:
        for host in self.hosts:
            host.proceed()

    def capture(self) -> dict[int, bytes]:
        return {rank: data for host in self.hosts for rank, data in host.capture().items()}

    def rounds(self) -> set[int]:
        return {r for host in self.hosts for r in host.status().rounds.values()}


def digits(method: Method, workers: int = 3, samples: int = 1600) -> Experiment:
    return Experiment(
        method=method,
        problem=Digits(),
        cluster=Cluster(workers=workers),
        optimizer=functools.partial(torch.optim.SGD, lr=0.1, momentum=0.5),
        budget=Budget(samples=samples),
    )


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_real_hosts_stop_and_go_on_to_the_bit(name: str, tmp_path: Path):
    experiment = digits(METHODS[name](**SETTINGS.get(name, {})))
    with Team(experiment, tmp_path / "whole") as team:
        team.hosts[0].pause(7)
        for host in team.hosts:
            host.pause(7)
        team.begin()
        team.pause(7)
        whole = team.capture()
    with Team(experiment, tmp_path / "first") as team:
        for host in team.hosts:
            host.pause(3)
        team.begin()
        assert team.pause(3) == [3]
        assert team.rounds() == {3}
        halfway = team.capture()
    with Team(experiment, tmp_path / "second", halfway) as team:
        for host in team.hosts:
            host.pause(7)
        team.begin()
        team.pause(7)
        assert team.capture() == whole


@pytest.mark.parametrize("name", [name for name in METHODS if name != "Hogwild"])
def test_any_method_can_be_paused_anywhere_and_its_run_still_replays(name: str, tmp_path: Path):
    experiment, journals = digits(METHODS[name]()), tmp_path / "journals"
    journals.mkdir()
    with Team(experiment, tmp_path / "sockets", journals=journals, allowed=200) as team:
        for host in team.hosts:
            host.pause(2)
        team.begin()
        team.pause(2)
        team.proceed()
        team.pause()
        held = team.capture()
        team.proceed()
        assert {host.status().pausing for host in team.hosts} == {None}
        team.settle()
        vector = experiment.method.model([n for h in team.hosts for n in h.snapshots()])
    assert len(held) == len(team.world.hosts)
    assert torch.equal(replay_run(experiment, journals).vector, vector)


@pytest.mark.parametrize("name", ["AsyncSGD", "ADPSGD", "DispatchedAsyncSGD", "StreamingDiLoCo"])
def test_a_resumed_run_replays_from_where_it_was_resumed(name: str, tmp_path: Path):
    experiment, journals = digits(METHODS[name]()), tmp_path / "journals"
    journals.mkdir()
    with Team(experiment, tmp_path / "first") as team:
        for host in team.hosts:
            host.pause(5)
        team.begin()
        team.pause(5)
        saved = team.capture()
    with Team(experiment, tmp_path / "second", saved, journals, allowed=60) as team:
        team.begin()
        team.settle()
        vector = experiment.method.model([n for h in team.hosts for n in h.snapshots()])
        rounds = team.rounds()
    assert max(rounds) > 5
    assert torch.equal(replay_run(experiment, journals).vector, vector)


def held_apart(experiment: Experiment, folder: Path, at_round: int = 3) -> Team:
    """Node 0 in a round for which it needs the others, whom a pause holds before it."""
    team = Team(experiment, folder)
    for host in team.hosts:
        host.pause(at_round + (host.index == 0))
    team.begin()
    team.settle()
    return team


@pytest.mark.parametrize("name", ["AllReduceSGD", "SyncSGD", "DPSGD", "StochasticGradientPush"])
def test_workers_that_wait_for_paused_ones_are_brought_to_one_round(name: str, tmp_path: Path):
    with held_apart(digits(METHODS[name]()), tmp_path) as team:
        statuses = [host.status() for host in team.hosts]
        assert [status.paused for status in statuses[:3]] == [set(), {1}, {2}]
        assert [status.rounds for status in statuses[:3]] == [{0: 3}, {1: 3}, {2: 3}]
        assert next_pause(statuses, team.method) == 4
        assert team.pause(4) == [4]
        assert team.rounds() == {4}
        assert len(team.capture()) == len(team.world.hosts)


def test_a_worker_that_waits_for_those_who_are_further_is_helped_by_one_more_round(tmp_path: Path):
    # A step is of two gradients. Nodes 1 and 2 make five rounds while node 0 is held, and are held
    # themselves when it waits for one of them: no round that is the same for all would do.
    with Team(digits(BackupSyncSGD()), tmp_path) as team:
        for host in team.hosts:
            host.pause({0: 0, 1: 5, 2: 5})
        team.begin()
        team.settle()
        for host in team.hosts:
            host.pause({0: 2, 1: 5, 2: 5})
        team.settle()
        statuses = [host.status() for host in team.hosts]
        assert [status.rounds for status in statuses[:3]] == [{0: 1}, {1: 5}, {2: 5}]
        assert [status.paused for status in statuses[:3]] == [set(), {1}, {2}]
        with pytest.raises(CaptureError, match=r"^node 0 \(worker\) awaits recv\(Pull.* middle"):
            team.hosts[0].capture()
        assert team.pause() == [0, {0: 2, 1: 6, 2: 6}]
        states = [read_state(data) for _, data in sorted(team.capture().items())]
        assert [state.round for state in states[:3]] == [2, 6, 6]
        assert states[3].versions == (6,)  # Five steps of nodes 1 and 2, and one of node 0's.


def held(order: int, rounds: dict[int, int], *, stuck: bool = False) -> Status:
    """Of a host whose nodes but the first are held."""
    return Status(
        idle=True, parked=False, stuck=stuck, waiting=[], sent={}, received={}, rounds=rounds,
        pausing=order, paused=set(rounds) - {0}, computed=0, steps=0, bytes_sent=0, departed=set(),
    )  # fmt: skip


def test_a_report_of_the_pause_before_is_none_of_this_one():
    # A report takes a while; the members may have gone on and computed since.
    told, seat = [], Seat(host=0, ranks=[0, 1])
    keeper = Keeper(every=1.0, method=AllReduceSGD(), tell=told.append, write=print, note=print)
    keeper.begin(use=lambda nodes: keeper.cancel())
    seat.status = held(1, {0: 3, 1: 3})
    keeper.all_quiet([seat])
    keeper.captured(0, Captured(asked=1, nodes={}))
    keeper.use_if_complete([seat])
    assert told == [Pause(order=1, at_round=0), Capture(asked=1), Proceed()]
    keeper.begin()
    keeper.all_quiet([seat])
    assert told[3:] == [Pause(order=2, at_round=0)]
    seat.status = held(2, {0: 5, 1: 5})
    keeper.all_quiet([seat])
    assert told[4:] == [Capture(asked=2)]


def test_who_waits_for_good_is_not_waited_for_for_ever():
    # The held ones go on by a round at every order, and node 0 waits all the same.
    told, notes, asked = [], [], itertools.count()
    seat = Seat(host=0, ranks=[0, 1])
    keeper = Keeper(
        every=1.0, method=BackupSyncSGD(), tell=told.append, write=print, note=notes.append
    )
    keeper.begin()
    while keeper.busy:
        seat.status = held(told[-1].order, {0: 3, 1: next(asked)}, stuck=True)
        keeper.all_quiet([seat])
    assert told[:2] == [Pause(order=1, at_round=0), Pause(order=2, at_round={0: 4, 1: 1})]
    assert (len(told), told[-1]) == (MOST_ORDERS + 1, Proceed())
    assert notes == ["no checkpoint: some worker is in the middle of a round for good"]


def test_a_node_in_the_middle_of_a_round_is_not_captured(tmp_path: Path):
    with held_apart(digits(SyncSGD()), tmp_path) as team:
        with pytest.raises(CaptureError, match=r"^node 0 \(worker\) awaits recv\(Pull.* middle"):
            team.hosts[0].capture()
        # It has read one of three gradients already.
        with pytest.raises(CaptureError, match=r"^node 3 \(server\) awaits recv\(Push, source=1\)"):
            team.hosts[3].capture()
        assert list(team.hosts[1].capture()) == [1]


def test_what_a_worker_started_must_have_ended(tmp_path: Path):
    method = StreamingDiLoCo(local_steps=3, fragments=1, overlap=2)
    with held_apart(digits(method), tmp_path, at_round=2) as team:
        statuses = [host.status() for host in team.hosts]
        assert [status.paused for status in statuses] == [{0}, {1}, {2}]
        with pytest.raises(CaptureError, match=r"^node 0 \(_reduce\) awaits recv\("):
            team.hosts[0].capture()
        assert next_pause(statuses, team.method) == 3
        assert team.pause(3) == [3]
        (kept,) = read_state(team.hosts[0].capture()[0]).states
        assert [type(task) for task in kept.pending.values()] == [Finished]
        assert kept.pending[0].result.shape == team.world.initial.shape


def quota_team(experiment: Experiment, folder: Path, allowed: int, saved=None) -> Team:
    team = Team(experiment, folder, saved or {})
    for host in team.hosts:
        host._may_compute = lambda node, request: request.step < allowed
    team.begin()
    team.settle()
    return team


@pytest.mark.parametrize("name", ["AllReduceSGD", "SlowMo", "SyncSGD", "LocalSGD"])
def test_a_run_whose_budget_is_spent_goes_on_with_a_larger_one(name: str, tmp_path: Path):
    experiment = digits(METHODS[name]())
    with quota_team(experiment, tmp_path / "whole", 7) as team:
        whole = team.capture()
    with quota_team(experiment, tmp_path / "first", 4) as team:
        assert team.pause() == [0]
        saved = team.capture()
        assert {read_state(data).round for rank, data in saved.items() if rank < 3} == {4}
        assert {read_state(data).requests for rank, data in saved.items() if rank < 3} == {4}
    with quota_team(experiment, tmp_path / "second", 7, saved) as team:
        assert team.capture() == whole


@message
class Ask:
    number: int


@message
class Answer:
    number: int


@dataclass
class Counted:
    asked: int = 0


@dataclass(frozen=True, kw_only=True)
class Courteous(Method):
    """Asks its neighbour for something before it computes, and reads the answer afterwards."""

    lazy: bool = True
    synchronous = True
    background = ("answer",)
    messages = (Ask, Answer)

    async def step(self, node: Node) -> None:
        if self.lazy:
            await node.gradient()
        node.send(1 - node.rank, Ask(node.round))
        if not self.lazy:
            await node.gradient()
        await node.recv(Answer)

    async def answer(self, node: Node) -> None:
        peer, ask = await node.recv(Ask)
        node.send(peer, Answer(ask.number))


@dataclass(frozen=True, kw_only=True)
class Announcing(Courteous):
    """Its background role speaks first."""

    async def answer(self, node: Node) -> None:
        node.send(1 - node.rank, Answer(-1))
        peer, ask = await node.recv(Ask)
        node.send(peer, Answer(ask.number))


def test_what_was_sent_before_the_budget_was_spent_is_not_sent_again(tmp_path: Path):
    with quota_team(digits(Courteous(), 2), tmp_path / "a", 3) as team:
        assert sorted(team.capture()) == [0, 1]
    text = r"node 0 \(worker\) awaits gradient\(\) in the middle of a round, and cannot be captured"
    with (
        quota_team(digits(Courteous(lazy=False), 2), tmp_path / "b", 3) as team,
        pytest.raises(CaptureError, match=text),
    ):
        team.hosts[0].capture()


def test_a_background_role_that_speaks_first_is_not_begun_anew(tmp_path: Path):
    with (
        quota_team(digits(Announcing(), 2), tmp_path, 3) as team,
        pytest.raises(CaptureError, match=r"node 0 \(answer\) awaits recv\(Ask\) in the middle"),
    ):
        team.hosts[0].capture()


@dataclass(frozen=True, kw_only=True)
class Pairing(Courteous):
    """Its background role reads two messages a round."""

    async def answer(self, node: Node) -> None:
        await node.recv(Ask)
        await node.recv(Ask)


def test_a_background_role_that_has_read_what_was_there_is_not_begun_anew(tmp_path: Path):
    with Team(digits(Pairing(), 2), tmp_path) as team:
        scheduler = team.hosts[0].scheduler
        for host in team.hosts:
            host.pause()
        team.begin()
        team.settle()
        assert sorted(team.capture()) == [0, 1]
        scheduler.deliver(0, 1, Ask(0))
        scheduler.deliver(0, 1, Ask(1))  # The round that begins next finds this one there.
        scheduler.deliver(0, 1, Ask(2))
        scheduler.drain()
        assert scheduler.mailboxes[0].unread() == []
        with pytest.raises(CaptureError, match=r"node 0 \(answer\) awaits recv\(Ask\) in the mid"):
            capture(scheduler, 0)


@dataclass(frozen=True, kw_only=True)
class Starting(Courteous):
    """Starts before its gradient what is over at once."""

    background = ()

    async def step(self, node: Node) -> None:
        started = node.start(self._count(node))
        await node.gradient()
        await started

    async def _count(self, node: Node) -> None:
        node.state(Counted).asked += 1


def test_what_was_started_before_the_budget_was_spent_is_not_started_again(tmp_path: Path):
    with (
        quota_team(digits(Starting(), 2), tmp_path, 3) as team,
        pytest.raises(CaptureError, match=r"node 0 \(worker\) awaits gradient\(\) in the middle"),
    ):
        team.hosts[0].capture()


def test_the_round_after_a_pause_can_be_begun_anew(tmp_path: Path):
    with Team(digits(AllReduceSGD()), tmp_path) as team:
        for host in team.hosts:
            host._may_compute = lambda node, request: request.step < 3
            host.pause(3)
        team.begin()
        assert team.pause(3) == [3]
        held = team.capture()
        team.proceed()
        team.settle()
        assert all(host.status().parked for host in team.hosts)
        assert team.capture() == held


def test_messages_that_nobody_has_read_are_kept(tmp_path: Path):
    with quota_team(digits(AsyncSGD(), 1), tmp_path / "a", 2) as team:
        scheduler = team.hosts[0].scheduler
        scheduler.deliver(0, 1, Ask(5))
        scheduler.deliver(0, 1, Ask(6))
        counts = dict(scheduler.mailboxes[0].counts)
        saved = team.capture()
    state = read_state(saved[0])
    assert [(s, n, m.number) for s, n, m in state.unread] == [(1, 2, 5), (1, 3, 6)]
    with Team(digits(AsyncSGD(), 1), tmp_path / "b", saved) as team:
        mailbox = team.hosts[0].scheduler.mailboxes[0]
        assert mailbox.counts == counts == {1: 4}
        assert [message.number for _, message in mailbox.unread()] == [5, 6]
        team.begin()


def test_a_pause_outlives_neither_the_stop_nor_a_departure(tmp_path: Path):
    with Team(digits(SGD(), 2), tmp_path) as team:
        for host in team.hosts:
            host.pause(1)
        team.begin()
        team.settle()
        team.hosts[0].leave()
        assert team.hosts[0].finished
        team.hosts[1].stop()
        status = team.hosts[1].status()
        assert (status.parked, status.stuck, status.paused) == (True, False, set())
        team.hosts[1].proceed()
        assert team.hosts[1].status().rounds == {1: 1}


def a_state(**settings) -> tuple[Held, bytes]:
    simulation = Held(small_experiment(SGD(), workers=1, **settings), 2)
    return simulation, simulation.carry()[0]


def test_everything_that_a_node_knows_comes_back():
    simulation, before = a_state(problem=Digits())
    node = simulation.nodes[0]
    node.rng.random()
    node.departed, node.first_round = {3, 1}, {2: 5}
    node.versions[0], node.round, node.requests, node.samples = 9, 8, 7, 6
    node._mixes, node._mixes_at_snapshot = 5, 4
    node._collectives = {(node.workers, None): 3, ((0, 5), 2): 1}
    node.states = {Counted: Counted(asked=2)}
    node.optimizer.inner.param_groups[0]["lr"] = 0.25
    node.optimizer._base_rates, node.optimizer._scale = [0.5], 0.5
    data = capture(simulation.scheduler, 0)
    fresh, again = a_state(problem=Digits())
    assert again == before
    restore(fresh.scheduler, read_state(data))
    assert capture(fresh.scheduler, 0) == data
    restored = fresh.nodes[0]
    assert (
        restored.rng.random()
        == node.rng.random()
        != simulation.world.node(0, simulation, simulation.world.initial).rng.random()
    )
    for name in ("departed", "first_round", "versions", "round", "requests", "samples", "states"):
        assert getattr(restored, name) == getattr(node, name), name
    for name in ("_mixes", "_mixes_at_snapshot", "_collectives"):
        assert getattr(restored, name) == getattr(node, name), name
    assert (restored.optimizer.lr, restored.optimizer._scale) == (0.25, 0.5)
    assert restored.parameters.data_ptr() != node.parameters.data_ptr()


def test_a_state_of_another_model_is_refused():
    small, _ = a_state()
    _, other = a_state(problem=Digits())
    with pytest.raises(CaptureError, match=r"^the models differ: parameter \S+ of node 0 has sha"):
        restore(small.scheduler, read_state(other))


def test_a_state_of_other_numbers_or_of_another_node_is_refused():
    """torch would cast the numbers without a word."""
    simulation, data = a_state()
    state = read_state(data)
    halves = {name: saved.half() for name, saved in state.parameters.items()}
    with pytest.raises(
        CaptureError, match=r"is of torch.float\d\d here and torch.float16 in the ch"
    ):
        restore(simulation.scheduler, replace(state, parameters=halves))
    with pytest.raises(CaptureError, match="this is the state of node 7, which is elsewhere"):
        restore(simulation.scheduler, replace(state, rank=7))


def test_a_state_of_other_optimizers_is_refused():
    def grouped(parameters):
        first, *rest = list(parameters)
        return torch.optim.SGD([{"params": [first]}, {"params": rest}], lr=0.1)

    two, _ = a_state(problem=Digits(), optimizer=grouped)
    _, one = a_state(problem=Digits())
    with pytest.raises(CaptureError, match=r"is of 1 groups and 4 parameters, and it has 2 and 4"):
        restore(two.scheduler, read_state(one))


def test_what_is_no_state_is_refused():
    with pytest.raises(CaptureError, match="this is a dict, and no state of a node"):
        read_state(encode({}))
    with pytest.raises(EncodingError):
        read_state(b"")


def test_states_declared_in_functions_are_found_by_type():
    @dataclass
    class Local:
        values: Tensor

    simulation, _ = a_state()
    simulation.nodes[0].states[Local] = Local(torch.ones(2))
    data = capture(simulation.scheduler, 0)
    with pytest.raises(EncodingError, match="or give the class in types"):
        read_state(data)
    (held,) = read_state(data, types=[Local]).states
    assert torch.equal(held.values, torch.ones(2))


def test_what_cannot_be_kept_is_refused_by_name():
    simulation, _ = a_state()
    simulation.nodes[0].states[Counted] = Ask(1)
    with pytest.raises(CaptureError, match="node 0 keeps a Ask as its Counted"):
        capture(simulation.scheduler, 0)
    simulation.nodes[0].states = {Counted: Counted(asked=threading.Lock())}  # type: ignore[arg-type]
    with pytest.raises(EncodingError, match=r"^states.0.asked: _thread.lock cannot be encoded"):
        capture(simulation.scheduler, 0)


def test_an_outer_optimizer_that_is_not_asked_for_again_is_kept():
    method = StreamingDiLoCo(local_steps=2, fragments=1, overlap=0)
    experiment = small_experiment(method, workers=2)
    saved = Held(experiment, 5).carry()
    assert Held(experiment, 5, saved).carry() == saved


def test_an_optimizer_with_a_state_of_no_parameter_is_refused():
    simulation, _ = a_state()
    simulation.nodes[0].optimizer.inner.state["steps"] = 3  # type: ignore[index]
    with pytest.raises(CaptureError, match="SGD keeps state of no parameter"):
        capture(simulation.scheduler, 0)


def test_shared_parameters_are_refused():
    simulation, _ = a_state()
    simulation.nodes[0].shared = CommonParameters(simulation.nodes[0].parameters)
    with pytest.raises(CaptureError, match="SGD cannot be checkpointed: its workers share their"):
        capture(simulation.scheduler, 0)


def test_a_node_s_file_is_read_as_the_documentation_says(tmp_path: Path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text()
    simulation, data = a_state(problem=Digits())
    folder = tmp_path / "runs" / "long" / "checkpoints" / "20480"
    folder.mkdir(parents=True)
    (folder / "node-0.safetensors").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    model = simulation.world.make_module()
    blocks = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, {"model": model})
    assert capsys.readouterr().out == "2 (2,) 0.05\n"
    layout = simulation.world.layout
    assert torch.equal(layout.flatten(list(model.parameters())), simulation.nodes[0].parameters)
