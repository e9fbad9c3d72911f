"""What PyTorch users do in a loop: mixed precision, accumulation, loaders, schedulers, freezing."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import threading
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from loop_job import flat
from loop_ranks import assert_fine, rank_and_size, run_ranks
from offbeat import methods
from offbeat.methods import SGD
from offbeat.parameters import PiecewiseVector
from offbeat.runtime.errors import RunError
from offbeat.runtime.loop import distribute, memories
from offbeat.runtime.loop import optimizer as loop_optimizer
from offbeat.suspensions import Gradient

SYNCHRONOUS = ("AllReduceSGD", "SyncSGD", "DPSGD", "StochasticGradientPush", "LocalSGD", "SlowMo")
ASYNCHRONOUS = ("AsyncSGD", "ADPSGD")
OVERFLOWS = {3: 1, 6: 0}
"""Which rank's gradients overflow at which attempt."""
ATTEMPTS = 12


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))


def inputs(step: int, rank: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * rank + step)
    return torch.randn(4, 6, generator=generator)


def scaler_of() -> GradScaler:
    return GradScaler("cpu", init_scale=1024.0, growth_interval=4)


def attempt(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: GradScaler,
    step: int,
    rank: int,
    unscale: bool,
) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(inputs(step, rank)).float().square().mean()
    if OVERFLOWS.get(step) == rank:
        loss = loss * float("inf")
    scaler.scale(loss).backward()
    if unscale:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=step % 2 == 0)


# Several ranks


def mixed_precision(out: Path) -> None:
    rank, _ = rank_and_size()
    for name in SYNCHRONOUS + ASYNCHRONOUS:
        for unscale in (False, True):
            torch.manual_seed(0)
            model, scaler = small(), scaler_of()
            sgd = torch.optim.SGD(model.parameters(), lr=0.1)
            method, scales = getattr(methods, name)(), []
            with distribute(model, sgd, method=method, scaler=scaler, timeout=60) as optimizer:
                for step in range(ATTEMPTS):
                    attempt(model, optimizer, scaler, step, rank, unscale)
                    scales.append(scaler.get_scale())
                steps = optimizer.node.requests - 1
            kept = {"scales": scales, "steps": steps, "final": flat(model)}
            torch.save(kept, out / f"{name}-{unscale}-{rank}.pt")


def test_ranks_of_a_synchronous_method_skip_a_step_together_and_others_alone(tmp_path: Path):
    assert_fine(run_ranks(mixed_precision, 2, tmp_path))
    expected = {
        "both": [1024.0] * 3 + [512.0] * 3 + [256.0] * 4 + [512.0] * 2,
        0: [1024.0] * 3 + [2048.0] * 3 + [1024.0] * 4 + [2048.0] * 2,
        1: [1024.0] * 3 + [512.0] * 4 + [1024.0] * 4 + [2048.0],
    }
    for name in SYNCHRONOUS + ASYNCHRONOUS:
        for unscale in (False, True):
            kept = [torch.load(tmp_path / f"{name}-{unscale}-{rank}.pt") for rank in range(2)]
            assert torch.equal(kept[0]["final"], kept[1]["final"]), name
            assert kept[0]["final"].isfinite().all(), name
            for rank in range(2):
                skipped, which = (2, "both") if name in SYNCHRONOUS else (1, rank)
                assert kept[rank]["steps"] == ATTEMPTS - skipped, name
                assert kept[rank]["scales"] == expected[which], f"{name} on rank {rank}"


def constants_and_loaders(out: Path) -> None:
    """Frozen parameters and buffers are rank 0's; a loader's workers hold no connection."""
    rank, _ = rank_and_size()
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    nn.init.normal_(model[1].running_mean)
    model[0].requires_grad_(False)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with begun(small()):
        pass  # Now the job's store is connected.
    before = sockets()
    with distribute(model, sgd, method=methods.AllReduceSGD(), timeout=60) as optimizer:
        torch.save(model.state_dict(), out / f"start-{rank}.pt")
        own = sockets() - before
        assert own
        data = torch.utils.data.TensorDataset(inputs(0, rank), torch.zeros(4, 2))
        loader = torch.utils.data.DataLoader(
            data, batch_size=2, num_workers=2, worker_init_fn=Reporter(out / f"sockets-{rank}")
        )
        for _ in range(2):
            for x, y in loader:
                model.eval() if rank == 0 else model.train()
                (model(x) - y).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        reported = [path.read_text().split() for path in out.glob(f"sockets-{rank}-*")]
        assert len(reported) >= 2
        for held in reported:
            assert not own & set(held), "a loader's worker holds a connection of its rank"
    torch.save(model.state_dict(), out / f"end-{rank}.pt")


class Reporter:
    """Writes down what sockets a loader's worker has."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, worker: int) -> None:
        path = self.path.with_name(f"{self.path.name}-{worker}-{os.getpid()}")
        path.write_text(" ".join(sockets()))


def sockets() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:
            continue  # The descriptor of the listing itself.
        if target.startswith("socket:"):
            found.add(target)
    return found


def test_constants_are_rank_0_s_and_loaders_workers_hold_no_connections(tmp_path: Path):
    assert_fine(run_ranks(constants_and_loaders, 2, tmp_path))
    starts, ends = (
        [torch.load(tmp_path / f"{when}-{rank}.pt") for rank in range(2)]
        for when in ("start", "end")
    )
    for key, value in starts[0].items():
        assert torch.equal(value, starts[1][key]), key
    assert torch.equal(ends[0]["0.weight"], starts[0]["0.weight"]), "what is frozen stays"
    assert torch.equal(ends[0]["2.weight"], ends[1]["2.weight"])
    assert torch.equal(ends[0]["1.running_mean"], starts[0]["1.running_mean"]), "in eval mode"
    assert not torch.equal(ends[1]["1.running_mean"], starts[1]["1.running_mean"])
    assert not torch.equal(ends[0]["2.weight"], starts[0]["2.weight"])


# One rank, against PyTorch alone


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def twice(train, make=torch.optim.SGD, model=small, **settings) -> None:
    """`train(model, optimizer, user's optimizer)` alone and inside distribute: the same bits."""
    finals = []
    for inside in (False, True):
        torch.manual_seed(0)
        module = model()
        optimizer = make(module.parameters(), **settings)
        if inside:
            with distribute(module, optimizer, method=SGD()) as distributed:
                train(module, distributed, optimizer)
        else:
            train(module, optimizer, optimizer)
        finals.append(flat(module))
    assert torch.equal(*finals)
    torch.manual_seed(0)
    assert not torch.equal(finals[0], flat(model())), "it trained"


@pytest.mark.parametrize("unscale", [False, True])
def test_a_gradscaler_does_what_it_does_alone(unscale: bool):
    def train(model, optimizer, user):
        scaler = scaler_of()
        for step in range(ATTEMPTS):
            attempt(model, optimizer, scaler, step, 0, unscale)
        assert scaler.get_scale() == 2048.0, "once halved, twice doubled"

    twice(train, lr=0.1, momentum=0.9)


def test_several_backward_passes_to_a_step():
    def train(model, optimizer, user):
        for step in range(12):
            (model(inputs(step)).square().mean() / 3).backward()
            if step % 3 == 2:
                optimizer.step()
                optimizer.zero_grad(set_to_none=step % 2 == 0)

    twice(train, torch.optim.Adam, lr=0.1)


def test_a_closure():
    def train(model, optimizer, user):
        for step in range(5):

            def closure(step: int = step) -> torch.Tensor:
                optimizer.zero_grad()
                loss = model(inputs(step)).square().mean()
                loss.backward()
                return loss

            assert optimizer.step(closure).item() > 0

    twice(train, lr=0.1)


@pytest.mark.parametrize("on_user_s", [False, True])
def test_schedulers_on_either_optimizer_and_hooks(on_user_s: bool):
    calls = []

    def train(model, optimizer, user):
        scheduled = user if on_user_s else optimizer
        schedulers = [
            torch.optim.lr_scheduler.OneCycleLR(scheduled, max_lr=0.1, total_steps=20),
            torch.optim.lr_scheduler.ReduceLROnPlateau(scheduled, patience=1),
        ]
        if optimizer is not user:
            optimizer.register_step_post_hook(lambda *_: calls.append("post"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for step in range(12):
                model(inputs(step)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                schedulers[0].step()
                schedulers[1].step(1.0)

    twice(train, torch.optim.AdamW, lr=0.1)
    assert calls == ["post"] * 12


def test_hooks_and_the_profiler_see_each_step_that_they_are_there_for():
    seen = []
    hook = register_optimizer_step_pre_hook
    model = small()
    user = torch.optim.SGD(model.parameters(), lr=0.1)
    with distribute(model, user, method=SGD()) as optimizer:

        def step() -> None:
            model(inputs(0)).square().mean().backward()
            optimizer.step()

        step()
        everybody_s = hook(lambda stepped, args, kwargs: seen.append((stepped, args, kwargs)))
        own = optimizer.register_step_pre_hook(lambda *_: seen.append(["own"]))
        step()
        everybody_s.remove()
        own.remove()
        # The last is what the method does in it.
        assert [call[0] for call in seen] == [optimizer, "own", optimizer.node.optimizer.inner]
        assert seen[0][1:] == ((optimizer,), {})
        seen.clear()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step()
        step()
        optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        optimizer.step(lambda: model(inputs(1)).square().mean().backward())
    assert seen == ["after"]
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["Optimizer.step#DistributedOptimizer.step"] == 1


def test_a_scheduler_may_have_come_before():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    before = model[0].weight.detach().clone()
    with distribute(model, optimizer, method=SGD()) as distributed:
        model(inputs(0)).square().mean().backward()
        gradient = model[0].weight.grad.clone()
        distributed.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    torch.testing.assert_close(model[0].weight, before - 0.1 * gradient)


def test_a_rate_that_is_a_tensor():
    def train(model, optimizer, user):
        for step in range(6):
            model(inputs(step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            user.param_groups[0]["lr"] *= 0.5

    twice(train, lambda parameters: torch.optim.SGD(parameters, lr=torch.tensor(0.5)))


def test_parameters_that_get_no_gradient_count_as_zero_and_frozen_ones_stay():
    model = nn.ModuleList([nn.Linear(6, 2), nn.Linear(6, 2), nn.Linear(6, 2)])
    model[2].requires_grad_(False)
    before = [layer.weight.detach().clone() for layer in model]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    with distribute(model, optimizer, method=SGD()) as distributed:
        model[0](inputs(0)).sum().backward()
        distributed.step()
    assert model[0].weight.grad is not None
    assert torch.allclose(model[1].weight, before[1] * (1 - 0.1 * 0.5)), "decay acts on it"
    assert torch.equal(model[2].weight, before[2])


def test_what_the_optimizer_remembers_goes_on_inside():
    def train(model, optimizer, user):
        for step in range(3):
            model(inputs(step)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    finals = []
    for inside in (False, True):
        torch.manual_seed(0)
        model = small()
        adam = torch.optim.Adam(model.parameters(), lr=0.1, amsgrad=True)
        train(model, adam, adam)
        if inside:
            with distribute(model, adam, method=SGD()) as optimizer:
                train(model, optimizer, adam)
        else:
            train(model, adam, adam)
        finals.append(flat(model))
    assert torch.equal(*finals)


def rounds(model, optimizer) -> None:
    for step in range(3):
        model(inputs(step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("method", [SGD(), methods.SyncSGD(), methods.LocalSGD()], ids=str)
@pytest.mark.parametrize("after", ["alone", "in a second block"])
@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD])
def test_what_the_optimizer_remembers_inside_goes_on_after_the_block(method, after, make):
    settings = {"momentum": 0.9} if make is torch.optim.SGD else {"amsgrad": True}
    finals, states = [], []
    for inside in (False, True):
        torch.manual_seed(0)
        model = small()
        optimizer = make(model.parameters(), lr=0.1, **settings)
        if inside:
            with distribute(model, optimizer, method=method) as distributed:
                rounds(model, distributed)
        else:
            rounds(model, optimizer)
        states.append(copy.deepcopy(optimizer.state_dict()["state"]))
        if inside and after != "alone":
            with distribute(model, optimizer, method=method) as distributed:
                rounds(model, distributed)
        else:
            rounds(model, optimizer)
        finals.append(flat(model))
    assert torch.equal(*finals)
    assert len(states[0]) == len(list(model.parameters()))
    for key, state in states[0].items():
        for name, value in state.items():
            torch.testing.assert_close(states[1][key][name], value, rtol=0, atol=0)


class Counting(torch.optim.Optimizer):
    """A rate that falls with the steps, which are counted in the group, and momentum in the state.

    Of each parameter it also keeps what cannot be written down.
    """

    def __init__(self, params, lr: float, keeps: object = None) -> None:
        super().__init__(params, {"lr": lr, "steps": 0})
        self.keeps = keeps

    def step(self, closure=None) -> None:
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["kept"] = self.keeps
                state["sum"] = 0.5 * state.get("sum", 0.0) + parameter.grad
                parameter.data.sub_(state["sum"], alpha=group["lr"] / group["steps"])


@pytest.mark.parametrize("method", [SGD(), methods.SyncSGD()], ids=str)
@pytest.mark.parametrize("scheduled", [False, True])
def test_what_an_optimizer_counts_in_its_groups_goes_on_inside_and_after(method, scheduled):
    finals, counts = [], []
    for inside in (False, True):
        torch.manual_seed(0)
        model = small()
        optimizer = Counting(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9 if scheduled else 1.0)

        def train(stepped, model=model, schedule=schedule):
            for step in range(4):
                model(inputs(step)).square().mean().backward()
                stepped.step()
                stepped.zero_grad()
                schedule.step()

        if inside:
            with distribute(model, optimizer, method=method) as distributed:
                train(distributed)
                saved = distributed.state_dict()
                distributed.load_state_dict(saved)
                train(distributed)
        else:
            train(optimizer)
            train(optimizer)
        train(optimizer)
        finals.append(flat(model))
        counts.append([group["steps"] for group in optimizer.param_groups])
    assert torch.equal(*finals)
    assert counts == [[12], [12]]


def own_settings(out: Path) -> None:
    """A rank's settings stay its own where the server, on another rank, has other ones."""
    rank, _ = rank_and_size()
    torch.manual_seed(0)
    model = small()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1 * rank)
    with distribute(model, sgd, method=methods.AsyncSGD(), timeout=60) as optimizer:
        for step in range(4):
            model(inputs(step, rank)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            sgd.param_groups[0]["momentum"] = 0.5 + 0.1 * rank
        before = [{k: v for k, v in group.items() if k != "params"} for group in sgd.param_groups]
    after = [{k: v for k, v in group.items() if k != "params"} for group in sgd.param_groups]
    assert after == before


@pytest.mark.parametrize("size", [1, 2])
def test_settings_after_the_block_are_the_rank_s_own(size: int, tmp_path: Path):
    assert_fine(run_ranks(own_settings, size, tmp_path))


def unwritable(out: Path) -> None:
    """What a server's optimizer remembers but cannot tell stays on its rank, and ends nothing."""
    rank, _ = rank_and_size()
    torch.manual_seed(0)
    model = small()
    optimizer = Counting(model.parameters(), lr=0.1, keeps=threading.Lock())
    with distribute(model, optimizer, method=methods.SyncSGD(), timeout=60) as distributed:
        rounds(model, distributed)
    assert [group["steps"] for group in optimizer.param_groups] == [3]
    assert len(optimizer.state) == (4 if rank == 0 else 0)


def test_states_that_cannot_travel_are_named(tmp_path: Path):
    ended = run_ranks(unwritable, 2, tmp_path)
    assert_fine(ended)
    line = "offbeat: rank 0 cannot tell the others what its server's optimizer remembers of 0.weig"
    assert line in ended[0].output
    assert ended[1].output == ""


def test_memories_travel_in_parts_that_frames_can_hold(monkeypatch):
    states = {"small": {"sum": torch.ones(2)}, "large": {"sum": torch.ones(1000)}}
    held = memories.Memories(states=states, groups={0: {"steps": 3}})
    parts, left_out = held.written()
    assert (len(parts), left_out) == (3, [])
    again = memories.Memories()
    for part in parts:
        again.add(memories.Memories.read(part))
    assert torch.equal(again.states["large"]["sum"], torch.ones(1000))
    assert again.groups == held.groups
    monkeypatch.setattr(memories, "LONGEST_PART", 2000)
    assert held.written()[1] == ["large"]


def memory_of_servers(out: Path) -> None:
    """Two servers, one on each rank, remember what goes to both optimizers."""
    rank, _ = rank_and_size()
    torch.manual_seed(0)
    model = small()
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    method = methods.SyncSGD(servers=2)
    with distribute(model, adam, method=method, timeout=60) as optimizer:
        for step in range(4):
            model(inputs(step, rank)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.save({"state": adam.state_dict()["state"], "final": flat(model)}, out / f"{rank}.pt")


def test_every_rank_gets_what_servers_remember(tmp_path: Path):
    assert_fine(run_ranks(memory_of_servers, 2, tmp_path))
    torch.manual_seed(0)
    model = small()
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    for step in range(4):
        sum(model(inputs(step, rank)).square().mean() / 2 for rank in range(2)).backward()
        adam.step()
        adam.zero_grad()
    expected = adam.state_dict()["state"]
    for rank in range(2):
        kept = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(kept["final"], flat(model), rtol=1e-4, atol=1e-5)
        assert kept["state"].keys() == expected.keys()
        for key, state in expected.items():
            for name, value in state.items():
                torch.testing.assert_close(kept["state"][key][name], value, rtol=1e-4, atol=1e-5)


def test_a_frozen_parameter_s_state_stays_its_own():
    model = small()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rounds(model, sgd)
    model[0].requires_grad_(False)
    before = sgd.state[model[0].weight]["momentum_buffer"].clone()
    with distribute(model, sgd, method=SGD()) as optimizer:
        rounds(model, optimizer)
    assert torch.equal(sgd.state[model[0].weight]["momentum_buffer"], before)


# What is refused


class OneLate(SGD):
    """Each gradient is applied a step late, although the loop uses its tensors again by then."""

    held: ClassVar[list[Gradient]] = []

    async def step(self, node):
        self.held.append(await node.gradient())
        if len(self.held) > 1:
            node.apply(self.held.pop(0))


@pytest.mark.parametrize("large", [False, True])
def test_a_gradient_that_a_method_keeps_is_its_own(monkeypatch, large):
    if large:
        monkeypatch.setattr(loop_optimizer, "COPIED", 0)
    monkeypatch.setattr(OneLate, "held", [])
    model = nn.Linear(3, 1, bias=False)
    nn.init.zeros_(model.weight)
    model.weight.grad = torch.zeros(1, 3)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    with distribute(model, sgd, method=OneLate()) as optimizer:
        for k in (1.0, 10.0, 100.0):
            model.weight.grad.fill_(k)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    assert model.weight.tolist() == [[-11.0] * 3]


def test_nobody_reads_a_gradient_while_it_is_copied(monkeypatch):
    """A coroutine beside the worker may be reading it, in the transport's thread."""
    owned, keep = [], PiecewiseVector.keep

    def watched(pieces):
        owned.append(optimizer.host.lock._is_owned())
        keep(pieces)

    monkeypatch.setattr(loop_optimizer, "COPIED", 0)
    monkeypatch.setattr(OneLate, "held", [])
    monkeypatch.setattr(PiecewiseVector, "keep", watched)
    model = small()
    with distribute(model, torch.optim.SGD(model.parameters()), method=OneLate()) as optimizer:
        model(inputs(0)).sum().backward()
        optimizer.step()
    assert owned == [True]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_gradients_may_have_a_graph_of_their_own():
    ends = []
    for distributed in (True, False):
        torch.manual_seed(0)
        model = small()
        sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        job = distribute(model, sgd, method=SGD()) if distributed else contextlib.nullcontext(sgd)
        with job as optimizer:
            for step in range(3):
                model(inputs(step)).square().mean().backward(create_graph=True)
                optimizer.step()
                optimizer.zero_grad()
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_the_module_computes_with_the_worker_s_own_parameters():
    model = small()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with distribute(model, sgd, method=SGD()) as optimizer:
        own = optimizer.node.parameters.data_ptr()
        for step in range(3):
            assert model[0].weight.data_ptr() == own
            model(inputs(step)).sum().backward()
            optimizer.step()
        before = flat(model)
        with optimizer.consensus() as common:
            assert common[0].weight.data_ptr() != own
            with torch.no_grad():
                common[0].weight.zero_()
        assert model[0].weight.data_ptr() == own
        assert torch.equal(flat(model), before)


def begun(model: nn.Module):
    return distribute(model, torch.optim.SGD(model.parameters(), lr=0.1), method=SGD())


def test_what_may_not_change_inside_the_block():
    model = small()
    user = torch.optim.SGD(model.parameters(), lr=0.1)
    with distribute(model, user, method=SGD()) as optimizer:
        model(inputs(0)).sum().backward()
        with pytest.raises(ValueError, match="parameter groups cannot be added inside the block"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        with pytest.raises(RunError, match=r"call step\(\) of the one that distribute"):
            user.step()
        optimizer.step()
        optimizer.zero_grad()
        model[0].requires_grad_(False)
        model(inputs(0)).sum().backward()
        with pytest.raises(ValueError, match=r"parameter 0\.weight was frozen inside the block"):
            optimizer.step()
        model[0].requires_grad_(True)
        user.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        with pytest.raises(ValueError, match="parameter groups cannot be added inside the block"):
            optimizer.step()
        user.param_groups.pop()
    model(inputs(0)).sum().backward()
    user.step()  # After the block it is the user's own again.


def test_models_and_optimizers_that_do_not_fit_are_refused():
    model = small()
    with pytest.raises(ValueError, match="the model has no parameter that requires gradients"):
        begun(small().requires_grad_(False))
    others = torch.optim.SGD([*model.parameters(), nn.Parameter(torch.ones(3))], lr=0.1)
    with pytest.raises(ValueError, match=r"shape \(3,\) that is not in the model"):
        distribute(model, others, method=SGD())
    model[2].double()
    with pytest.raises(ValueError, match=r"differ in dtype: 0\.weight has torch\.float32, 2\.weig"):
        begun(model)
    model = small()
    replaced = torch.optim.SGD(model.parameters(), lr=0.1)
    replaced.step = lambda closure=None: None
    scheduled = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.optim.lr_scheduler.StepLR(scheduled, 1)
    of_scheduler: Any = scheduled.step
    scheduled.step = functools.wraps(of_scheduler)(lambda closure=None: of_scheduler(closure))
    for optimizer in (replaced, scheduled):
        with pytest.raises(ValueError, match="the step of this SGD has been replaced on the obj"):
            distribute(model, optimizer, method=SGD())
    model = small()
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="model is a SGD; it must be a torch Module"):
        distribute(plain, model, method=SGD())
    with pytest.raises(ValueError, match="optimizer is a function; it must be a torch Optimizer"):
        distribute(model, small, method=SGD())
    with pytest.raises(ValueError, match=r"the class SGD; give one made of it, as in method=SGD"):
        distribute(model, plain, method=SGD)
    with pytest.raises(
        ValueError, match=r"method is 'SGD'; give a method, as in method=ADPSGD\(\)"
    ):
        distribute(model, plain, method="SGD")
    lazy = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(2))
    with pytest.raises(ValueError, match=r"1\.weight has no shape yet: let the model compute a ba"):
        distribute(lazy, torch.optim.SGD(lazy.parameters(), lr=0.1), method=SGD())
    plain = torch.optim.SGD(small().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="timeout is 0; it must be positive"):
        distribute(small(), plain, method=SGD(), timeout=0)
