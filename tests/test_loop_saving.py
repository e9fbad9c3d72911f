"""state_dict and load_state_dict in the user's loop: a job that goes on as if never interrupted."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from loop_job import flat
from loop_ranks import assert_fine, rank_and_size, run_ranks
from offbeat import methods
from offbeat.messages import message
from offbeat.methods import METHODS, SGD
from offbeat.methods.gathering import Gathered, GatheringSGD
from offbeat.node import Node
from offbeat.runtime.errors import RunError
from offbeat.runtime.loop import distribute

IN_LOOPS = [
    method
    for method in METHODS.values()
    if not (method.chooses_samples or method.shares_parameters or method.unequal_rounds)
]
STEPS = 20
SAVED_AT = (7, 10)
"""In the middle of periods, with DiLoCo's fragments on their way; right after a change of rate."""


def model_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def job(method, rank: int, seed: int):
    model = model_of(seed)
    adam = torch.optim.Adam(model.parameters(), lr=0.05)
    optimizer = distribute(model, adam, method=method, timeout=60)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.7)


def steps(model, optimizer, scheduler, rank: int, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(1000 * rank + step)
        x = torch.randn(4, 6, generator=generator)
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


def interrupted(out: Path) -> None:
    rank, _ = rank_and_size()
    for kind in IN_LOOPS:
        model, optimizer, scheduler = job(kind(), rank, 0)
        with optimizer:
            steps(model, optimizer, scheduler, rank, 0, STEPS)
        ends, saved = [flat(model)], None
        for seed, (first, last) in enumerate(pairwise((0, *SAVED_AT, STEPS))):
            model, optimizer, scheduler = job(kind(), rank, seed)
            with optimizer:
                if saved is not None:
                    # What was done before is forgotten, whatever it was.
                    steps(model, optimizer, scheduler, rank, 0, 2)
                    optimizer.load_state_dict(saved[0])
                    scheduler.load_state_dict(saved[1])
                    if kind.synchronous:
                        assert torch.equal(flat(model), saved[2]), kind.__name__
                steps(model, optimizer, scheduler, rank, first, last)
                saved = [optimizer.state_dict(), scheduler.state_dict(), flat(model)]
                torch.save(saved, out / f"saved-{rank}.pt")
                saved = torch.load(out / f"saved-{rank}.pt", weights_only=True)
        ends.append(flat(model))
        torch.save([*ends, gradients_used(optimizer)], out / f"{kind.__name__}-{rank}.pt")


def gradients_used(optimizer) -> int:
    """By the nodes of a rank, be it servers or workers who make steps: in one, dropped, or kept."""
    scheduler = optimizer.host.scheduler
    if scheduler.method.family != "parameter server":
        return scheduler.nodes[optimizer.rank].versions[0]
    servers = [node for node in scheduler.nodes.values() if node.is_server]
    if not issubclass(type(scheduler.method), GatheringSGD):
        return sum(node.versions[0] for node in servers)  # A step is of one gradient.
    return sum(node.samples + len(node.state(Gathered).taken_at) for node in servers)


@pytest.mark.parametrize("size", [2, 3])
def test_a_job_that_is_saved_and_resumed_twice_goes_on(size: int, tmp_path: Path):
    assert_fine(run_ranks(interrupted, size, tmp_path))
    for kind in IN_LOOPS:
        name = kind.__name__
        ends = [torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(size)]
        for other in ends[1:]:
            assert torch.equal(ends[0][1], other[1]), name
        if kind.synchronous:
            assert torch.equal(*ends[0][:2]), f"{name}: not to the bit what it was"
        else:
            assert sum(end[2] for end in ends) == size * STEPS, name


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def test_states_that_do_not_fit_are_refused(tmp_path: Path):
    model, optimizer, scheduler = job(methods.AsyncSGD(), 0, 0)
    with optimizer:
        steps(model, optimizer, scheduler, 0, 0, 3)
        before = flat(model)
        saved = optimizer.state_dict()
        inner = torch.optim.Adam(model.parameters()).state_dict()
        for changed, text in (
            ({"method": "ADPSGD"}, "the state is of method ADPSGD, and this is method AsyncSGD"),
            ({"rank": 3}, "the state is of rank 3, and this is rank 0"),
            ({"world_size": 2}, "the state is of world_size 2, and this is world_size 1"),
            ({"offbeat": 99}, "the state is of form 99, this version reads 2"),
            ({"param_groups": []}, "the state is of 0 parameter groups, the optimizer has 1"),
            ({"nodes": {}}, "it is of nodes [], this rank has [0, 1]"),
            (
                {"nodes": dict.fromkeys(saved["nodes"], torch.zeros(7, dtype=torch.uint8))},
                "damaged: no",
            ),
        ):
            elsewhere = [group | {"lr": 9.0} for group in saved["param_groups"]]
            with pytest.raises(ValueError, match=re.escape(text)):
                optimizer.load_state_dict(saved | {"param_groups": elsewhere} | changed)
        for name in saved.keys() - {"offbeat", "nodes", "state"}:
            lacking = {key: value for key, value in saved.items() if key != name}
            with pytest.raises(ValueError, match=f"the state is damaged: it has no {name}"):
                optimizer.load_state_dict(lacking)
        assert optimizer.param_groups[0]["lr"] == saved["param_groups"][0]["lr"]
        with pytest.raises(ValueError, match="this is no state of a distributed job"):
            optimizer.load_state_dict(inner)
        steps(model, optimizer, scheduler, 0, 3, 4)
        assert not torch.equal(flat(model), before), "none of this has ended the job"
    other = nn.Linear(3, 1)
    optimizer = distribute(other, torch.optim.Adam(other.parameters()), method=methods.AsyncSGD())
    with optimizer, pytest.raises(RunError, match="the models differ: parameter"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps])
def test_a_rank_s_optimizer_is_no_thing_to_copy(copied: Callable[[object], object]):
    model, optimizer, scheduler = job(SGD(), 0, 0)
    with optimizer:
        with pytest.raises(
            TypeError, match="cannot be copied or pickled; save what its state_dict"
        ):
            copied(optimizer)
        steps(model, optimizer, scheduler, 0, 0, 1)


def test_a_state_is_a_copy_and_a_recorded_job_is_not_resumed(tmp_path: Path):
    model, optimizer, scheduler = job(SGD(), 0, 0)
    with optimizer:
        steps(model, optimizer, scheduler, 0, 0, 3)
        saved = optimizer.state_dict()
        kept = copy.deepcopy(saved)
        steps(model, optimizer, scheduler, 0, 3, 6)
        assert torch.equal(saved["nodes"][0], kept["nodes"][0])
        assert saved["param_groups"] == kept["param_groups"]
    recorded = distribute(
        model, torch.optim.SGD(model.parameters(), lr=0.1), method=SGD(), record=tmp_path
    )
    with recorded, pytest.raises(ValueError, match="a recorded job cannot be resumed"):
        recorded.load_state_dict(saved)


class Jittered(SGD):
    """Draws, in every third round twice before it asks for its gradient, in every second after."""

    async def step(self, node: Node) -> None:
        scale = node.rng.random() + node.rng.random() if node.round % 3 == 0 else 1.0
        gradient = await node.gradient()
        node.apply(gradient, lr_scale=scale if node.round % 2 else scale * node.rng.random())


@pytest.mark.parametrize("saved_after", range(1, 7))
def test_what_was_drawn_before_a_gradient_is_drawn_again(saved_after: int):
    model, optimizer, scheduler = job(Jittered(), 0, 0)
    with optimizer:
        steps(model, optimizer, scheduler, 0, 0, saved_after)
        saved = optimizer.state_dict()
        rates = scheduler.state_dict()
        steps(model, optimizer, scheduler, 0, saved_after, 9)
    uninterrupted = flat(model)
    model, optimizer, scheduler = job(Jittered(), 0, 1)
    with optimizer:
        steps(model, optimizer, scheduler, 0, 0, 2)
        optimizer.load_state_dict(saved)
        scheduler.load_state_dict(rates)
        steps(model, optimizer, scheduler, 0, saved_after, 9)
    assert torch.equal(flat(model), uninterrupted)


@message
class Note:
    number: int


class Talkative(SGD):
    """Hears from another worker, or from itself, before it asks for its gradient."""

    messages = (Note,)

    async def step(self, node: Node) -> None:
        # Each waits for the other, and what it says to itself is here already.
        if node.rank == 0:
            node.send(node.workers[-1], Note(node.round))
        await node.recv(Note)
        if node.rank != 0:
            node.send(0, Note(node.round))
        node.apply(await node.gradient())


def talk(out: Path) -> None:
    rank, _ = rank_and_size()
    model, optimizer, scheduler = job(Talkative(), rank, 0)
    with optimizer:
        steps(model, optimizer, scheduler, rank, 0, 3)
        optimizer.state_dict()


REFUSED = "this method cannot be saved inside a loop: in a round, it reads messages"


def test_who_reads_before_its_gradient_cannot_be_saved(tmp_path: Path):
    ended = run_ranks(talk, 2, tmp_path)
    assert [one.returncode for one in ended] == [1, 1]
    assert any(REFUSED in one.output for one in ended)
    with pytest.raises(RunError, match=REFUSED):
        talk(tmp_path)
