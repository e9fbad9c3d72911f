"""The user's own loop: the same methods inside a plain PyTorch loop, among real ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from loop_job import main, network, normalised, optimizer_of
from loop_ranks import Ended, assert_fine, rank_and_size, run_ranks
from offbeat import methods
from offbeat.method import Method
from offbeat.methods import DPSGD, METHODS, SGD, AsyncSGD
from offbeat.optim import LAMB, Delayed
from offbeat.problems import IID, Batches, Digits, shard
from offbeat.runtime.errors import RunError
from offbeat.runtime.gradient_log import replay_loop
from offbeat.runtime.loop import distribute
from offbeat.runtime.reactor import GRACE_SECONDS
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.testing import small_experiment
from offbeat.topology import OnePeerExponential

NAMES = ("none", "all")
OF_THE_LOOP = {
    name: method
    for name, method in METHODS.items()
    if not (method.chooses_samples or method.shares_parameters or method.unequal_rounds)
}


def run_job(out: Path, size: int, runs: dict[str, dict]) -> list[Ended]:
    """Let ranks do the runs one after the other."""
    return run_ranks(main, size, out, runs)


def finals(out: Path, size: int) -> list[torch.Tensor]:
    return [torch.load(out / f"final-{rank}.pt", weights_only=True) for rank in range(size)]


def replayed(out: Path, method: Method, size: int) -> torch.Tensor:
    model = network()
    return replay_loop(out, model, optimizer_of(model), method=method, workers=size)


def assert_common(out: Path, method: Method, size: int) -> None:
    models = finals(out, size)
    for other in models[1:]:
        assert torch.equal(models[0], other), "all ranks end with the common model"
    assert torch.equal(replayed(out, method, size), models[0])


@pytest.mark.parametrize("size", [2, 4])
def test_every_method_trains_in_the_user_s_loop_and_replays(size: int, tmp_path: Path):
    runs = {name: {"method": name, "record": True, "consensus": True} for name in OF_THE_LOOP}
    assert_fine(run_job(tmp_path, size, runs))
    for name, method in OF_THE_LOOP.items():
        out = tmp_path / name
        assert_common(out, method(), size)
        results = [json.loads((out / f"result-{rank}.json").read_text()) for rank in range(size)]
        # A rank that is done before the others begin has learnt alone, from stale parameters.
        begun = [result["losses"][0] for result in results]
        assert min(min(result["losses"][-5:]) for result in results) < sum(begun) / size, name
        for result in results:
            assert result["consensus"] == results[0]["consensus"], name
            assert result["lr"] == [0.1, 0.1], "the user's scheduler owns the rate"


def test_batch_norm_and_dropout_train_and_ranks_estimate_the_same_statistics(tmp_path: Path):
    names = ("AsyncSGD", "ADPSGD")
    settings = {"batch_norm": True, "steps": [60, 60]}
    assert_fine(run_job(tmp_path, 2, {name: {"method": name, **settings} for name in names}))
    test = Digits().data().test
    for name in names:
        own, estimated = (
            [torch.load(tmp_path / name / f"{kind}-{rank}.pt") for rank in range(2)]
            for kind in ("own", "estimated")
        )
        for key, value in estimated[0].items():
            assert torch.equal(value, estimated[1][key]), f"{name}: {key}"
        assert not torch.equal(own[0]["1.running_mean"], own[1]["1.running_mean"])
        model = normalised()
        model.load_state_dict(estimated[0])
        right = (model.eval()(test.inputs).argmax(1) == test.targets).double().mean()
        assert right > 0.7, name


def test_uneven_loaders_hang_nobody_and_servers_live_on_the_ranks(tmp_path: Path):
    uneven = {"steps": [10, 25], "record": True, "may_fail": True}
    runs = {name: {"method": name, **uneven} for name in OF_THE_LOOP}
    runs["sharded"] = {"method": "AsyncSGD", "fields": {"servers": 2}, "record": True}
    assert_fine(run_job(tmp_path, 2, runs))
    assert_common(tmp_path / "sharded", AsyncSGD(servers=2), 2)
    for name, method in OF_THE_LOOP.items():
        errors = [tmp_path / name / f"error-{rank}.txt" for rank in (0, 1)]
        if method.survives_loss:
            assert_common(tmp_path / name, method(), 2)
        else:
            # It needs everyone: an error that names who is missing, and no hang.
            left, failed = [error.read_text() for error in errors]
            assert f"worker 0 has left its loop, and {name} does not survive a loss" in failed
            assert "rank 1 is gone; rank 0 awaited" in left


WITH_SERVERS = {name: method for name, method in OF_THE_LOOP.items() if method().server_count}


def test_servers_go_on_on_a_rank_that_has_left_and_learn_who_leaves_after_it(tmp_path: Path):
    runs = {
        f"{name} {steps}": {"method": name, "steps": steps, "record": True}
        for name in WITH_SERVERS
        for steps in ([3, 9, 6], [6, 3, 9], [9, 6, 3])
    }
    began = time.monotonic()
    assert_fine(run_job(tmp_path, 3, runs))
    assert time.monotonic() - began < 60, "nobody waited in vain"
    for run, settings in runs.items():
        assert_common(tmp_path / run, METHODS[settings["method"]](), 3)


INCREMENTS = 6
"""Runs in which averagings are under way when a rank leaves."""


def leaving_one_by_one(out: Path) -> None:
    """Known gradients, so that what all ranks together hold is known, too."""
    rank, _ = rank_and_size()
    means = []
    for _ in range(INCREMENTS):
        model = nn.Linear(1, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        sgd = torch.optim.SGD(model.parameters(), lr=1.0)
        with distribute(model, sgd, method=methods.ADPSGD(), timeout=60) as optimizer:
            for _ in range(5 + 20 * rank):
                model.weight.grad = torch.full((1, 1), -(rank + 1.0), dtype=torch.float64)
                optimizer.step()
        means.append(model.weight.item())
    (out / f"means-{rank}.json").write_text(json.dumps(means))


def test_what_is_asked_of_a_rank_before_it_leaves_is_answered(tmp_path: Path):
    size = 3
    assert_fine(run_ranks(leaving_one_by_one, size, tmp_path))
    mean = sum((5 + 20 * rank) * (rank + 1.0) for rank in range(size)) / size
    for rank in range(size):
        means = json.loads((tmp_path / f"means-{rank}.json").read_text())
        assert means == pytest.approx([mean] * INCREMENTS, rel=1e-9), "an averaging was lost"


def plain_loop(steps: int) -> tuple[torch.Tensor, list[float]]:
    torch.manual_seed(0)
    model = network()
    optimizer = optimizer_of(model)
    data = Digits().data()
    batches = Batches(shard(IID(), data.train.targets, 1)[0], 16, 0, 0)
    losses = []
    for step in range(steps):
        batch = batches.indices(step)
        loss = F.cross_entropy(model(data.train.inputs[batch]), data.train.targets[batch])
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]), losses


def test_one_rank_alone_is_the_plain_loop_to_the_bit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    expected, losses = plain_loop(25)
    torch.manual_seed(0)
    model = network()
    data = Digits().data()
    batches = Batches(shard(IID(), data.train.targets, 1)[0], 16, 0, 0)
    with distribute(model, optimizer_of(model), method=AsyncSGD()) as optimizer:
        for step in range(25):
            batch = batches.indices(step)
            loss = F.cross_entropy(model(data.train.inputs[batch]), data.train.targets[batch])
            loss.backward()
            assert loss.item() == losses[step]
            optimizer.step()
            optimizer.zero_grad()
    final = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    assert torch.equal(final, expected)
    # Nobody reads a trace here, and in a long job it would take all memory.
    records = optimizer.host.records
    assert records.computed == 25
    assert not any(records.trace.rows.values())


def test_models_that_differ_are_refused_on_the_rank_that_differs(tmp_path: Path):
    ended = run_job(tmp_path, 2, {"run": {"method": "AsyncSGD", "hidden": [16, 8]}})
    assert ended[1].returncode != 0
    assert (
        "the models differ: parameter 0.weight has shape (16, 64) on rank 0 and (8, 64) on rank 1"
    ) in ended[1].output
    assert "on rank 0 and (8, 64) on rank 1" in ended[0].output, "the others are told"


def gradients_returned(out: Path, steps: list[int]) -> None:
    """Blocks one after the other; what a rank was told that did not get to an end."""
    rank, _ = rank_and_size()
    said = []
    for seed in range(8):
        torch.manual_seed(seed)
        model = nn.Linear(4, 2)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        method = methods.SyncSGD(returns="gradient", servers=2)
        try:
            with distribute(model, sgd, method=method, timeout=60) as optimizer:
                for _ in range(steps[rank]):
                    model(torch.ones(3, 4)).square().mean().backward()
                    optimizer.step()
        except RunError as error:
            said.append(str(error))
    (out / f"said-{rank}.json").write_text(json.dumps(said))


@pytest.mark.parametrize("steps", [[5, 5], [5, 7], [7, 5]])
def test_servers_that_cannot_spare_a_worker_end_with_it_unless_all_end(
    steps: list[int], tmp_path: Path
):
    began = time.monotonic()
    assert_fine(run_ranks(gradients_returned, 2, tmp_path, steps))
    told = [json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in range(2)]
    if steps[0] == steps[1]:
        assert told == [[], []]
    else:
        assert [len(said) for said in told] == [8, 8]
        assert any("does not survive a loss" in text for said in told for text in said)
        assert time.monotonic() - began < 60, "nobody waited in vain"


@pytest.mark.parametrize("name", ["ADPSGD", "StochasticGradientPush"])
def test_the_others_finish_when_a_rank_dies_that_they_wait_for(name: str, tmp_path: Path):
    run = {"method": name, "dies": [None, 20, None]}
    ended = run_job(tmp_path, 3, {"run": run})
    assert [rank.returncode for rank in ended] == [0, -9, 0], ended[0].output + ended[2].output
    first, last = (torch.load(tmp_path / "run" / f"final-{rank}.pt") for rank in (0, 2))
    assert torch.equal(first, last)


def test_averagings_under_way_at_the_end_are_part_of_the_model(tmp_path: Path):
    runs = {f"{k}": {"method": "ADPSGD", "steps": [5, 5], "record": True} for k in range(40)}
    assert_fine(run_job(tmp_path, 2, runs))
    for name in runs:
        assert_common(tmp_path / name, methods.ADPSGD(), 2)


def test_a_program_without_the_with_block_ends_and_leaves_no_file():
    program = (
        "import os, torch, offbeat; m = torch.nn.Linear(4, 1); print(os.getpid()); "
        "o = torch.optim.SGD(m.parameters(), lr=0.1); "
        "offbeat.distribute(m, o, method=offbeat.methods.SGD())"
    )
    plain = {key: value for key, value in os.environ.items() if key != "WORLD_SIZE"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=plain, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not list(Path("/tmp").glob(f"offbeat-{done.stdout.strip()}-*"))


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves the block", "does not"])
def test_a_loop_in_a_thread_outlives_the_main_one_and_nothing_outlives_the_loop(
    leaves: bool, tmp_path: Path
):
    ended = run_ranks(train_in_a_thread, 2, tmp_path, leaves)
    assert [(rank.returncode, rank.output) for rank in ended] == [(0, "trained\n")] * 2


def train_in_a_thread(out: Path, leaves: bool) -> None:
    def train() -> None:
        while threading.main_thread().is_alive():
            time.sleep(0.01)
        model = network()
        block = distribute(model, optimizer_of(model), method=DPSGD(), timeout=30.0)
        for _ in range(20):
            model(torch.ones(4, 64)).square().sum().backward()
            block.step()
            block.zero_grad()
            time.sleep(0.02)
        if leaves:
            with block:
                pass
        print("trained", flush=True)

    threading.Thread(target=train).start()
    # As at the end of a program, after which nothing waits for multiprocessing's own.
    threading._shutdown()
    os._exit(0)


def test_a_loop_takes_in_itself_what_arrives_also_after_a_pause(tmp_path: Path):
    """The transport's own thread does when the loop pauses; left to itself it would go on so."""
    assert_fine(run_ranks(steps_after_a_pause, 2, tmp_path))
    for rank in range(2):
        taken = json.loads((tmp_path / f"taken-{rank}.json").read_text())
        assert len(taken) == 80
        assert not all(taken[:40])
        assert any(taken[-20:])


def steps_after_a_pause(out: Path) -> None:
    rank, _ = rank_and_size()
    model = network()
    with distribute(model, optimizer_of(model), method=DPSGD(), timeout=30.0) as optimizer:
        taken: list[bool] = []
        receive = optimizer.host._receive

        def noting(*what: Any) -> None:
            taken.append(threading.current_thread() is threading.main_thread())
            receive(*what)

        optimizer.host._receive = noting
        for step in range(80):
            # The message of each step is there long before the gradient is.
            time.sleep(0.005 if step >= 40 else 3 * GRACE_SECONDS)
            model(torch.ones(4, 64)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    (out / f"taken-{rank}.json").write_text(json.dumps(taken[:80]))


def test_gradients_of_a_rank_are_clipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    model = nn.Linear(4, 1, bias=False)
    start = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with distribute(model, optimizer, method=SGD(), clip_norm=0.5) as optimizer:
        (model(torch.full((1, 4), 100.0)).sum()).backward()
        optimizer.step()
    assert torch.linalg.vector_norm(model.weight - start).item() == pytest.approx(0.5, rel=1e-4)


def test_a_group_s_settings_that_are_names_hold_inside_the_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    model, plain = nn.Linear(4, 3), nn.Linear(4, 3)
    plain.load_state_dict(model.state_dict())
    groups = [
        {"params": [w], "adapt": adapt} for w, adapt in zip(model.parameters(), NAMES, strict=True)
    ]
    alone = [
        {"params": [w], "adapt": adapt} for w, adapt in zip(plain.parameters(), NAMES, strict=True)
    ]
    expected = LAMB(alone, lr=0.1)
    with distribute(model, LAMB(groups, lr=0.1), method=SGD()) as optimizer:
        for _ in range(3):
            for trained, stepped in ((model, optimizer), (plain, expected)):
                stepped.zero_grad()
                trained(torch.ones(2, 4)).square().sum().backward()
                stepped.step()
    assert torch.equal(model.weight, plain.weight)
    assert torch.equal(model.bias, plain.bias)


def test_what_cannot_work_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    model = nn.Linear(4, 1)
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match="optimizer LBFGS cannot be used"):
        distribute(model, lbfgs, method=SGD())
    late = Delayed(torch.optim.SGD(model.parameters(), lr=0.1), delay=2)
    with pytest.raises(ValueError, match="optimizer Delayed cannot be distributed: here delays"):
        distribute(model, late, method=SGD())
    partial = torch.optim.SGD([model.weight], lr=0.1)
    with pytest.raises(ValueError, match="parameter bias is not in the optimizer"):
        distribute(model, partial, method=SGD())
    whole = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="clip_norm is -1; it must be positive"):
        distribute(model, whole, method=SGD(), clip_norm=-1.0)
    with pytest.raises(ValueError, match="2 servers need as many ranks"):
        distribute(model, whole, method=methods.AsyncSGD(servers=2))


def test_a_step_after_the_block_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    model = nn.Linear(4, 1)
    with distribute(model, torch.optim.SGD(model.parameters(), lr=0.1), method=SGD()) as optimizer:
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    with pytest.raises(RunError, match="after the with block"):
        optimizer.step()


def test_a_failure_after_the_last_step_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    model = nn.Linear(4, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(RunError, match=r"^a role broke$"),
        distribute(model, sgd, method=SGD()) as optimizer,
    ):
        optimizer.host.fail(RunError("a role broke"))


def test_a_rank_that_has_left_counts_in_the_rounds_that_it_took_part_in():
    # One that is slower hears of it in such a round, and must not do without it there.
    experiment = small_experiment(methods.StochasticGradientPush(), workers=3)
    world = World(experiment)
    node = world.node(0, Simulation(experiment), world.initial)
    node.round = 2
    before = node.peers(OnePeerExponential())
    node.departed.add(1)
    node.rounds_of[1] = 3
    assert node.is_live(1)
    assert node.peers(OnePeerExponential()) == before
    node.round = 3
    assert not node.is_live(1)
