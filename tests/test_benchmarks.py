"""The scripts of benchmarks/: what they import is there, and quick modes run."""

import copy
import importlib
import json
import math
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import offbeat
from offbeat.methods import DPSGD, SGD
from offbeat.runs import Metrics, Run
from offbeat.runtime.forks import server_of_forks
from offbeat.testing import simulated, small_experiment
from offbeat.testing.remains import adopt_orphans
from offbeat.trace import Trace

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """As if one of that folder had been started; what it sets of PyTorch ends with it."""
    monkeypatch.syspath_prepend(FOLDER)
    # Threads that keep both cores awake while they wait for each other take, when other tests have
    # those cores, milliseconds for every turn.
    monkeypatch.setattr("common.cores.PASSES", 2)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def figures_of(name: str, arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """What a script writes; the processes that it has started are gone."""
    before = {process.pid for process in multiprocessing.active_children()}
    out = folder / "figures.json"
    importlib.import_module(name).main([*arguments, "--out", str(out)])
    assert {process.pid for process in multiprocessing.active_children()} == before
    return json.loads(out.read_text())


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_can_be_imported(path: Path):
    assert callable(importlib.import_module(path.stem).main)


MEASURED = {
    "steps": [
        "a step alone",
        "DDP",
        "AllReduceSGD, own loop",
        "StochasticGradientPush, offbeat.run",
    ],
    "mean": ["gloo all_reduce", "node.all_reduce"],
    "server": ["a copy", "push and pull", "AsyncSGD, MLP 64-32-10, batch 32"],
    "scheduler": ["torch.optim.SGD.step alone", "a message and its answer"],
}


@pytest.mark.parametrize("part", MEASURED)
def test_real_runs_quickly(
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    # What is not installed everywhere takes long to start.
    for rival in ("decent_dp", "ray"):
        monkeypatch.setitem(sys.modules, rival, None)
    figures = figures_of("real", [part, "--quick"], tmp_path)
    printed = capsys.readouterr().out
    medians: dict[str, float] = {}
    for found in figures["parts"].values():
        assert found["title"].split(",")[0] in printed
        medians |= found["medians"]
        for ratio in found["ratios"]:
            assert math.isfinite(ratio["value"])
            assert ratio["what"] in printed
    for what in MEASURED[part]:
        # What a step takes above one alone may be lost in the noise of so few.
        assert medians[what] > 0 or (part == "steps" and what != "a step alone")
    if part in ("steps", "server"):
        assert "is not installed: left out" in printed


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("real", ["mean", "--rounds", "0"], "'0' is no number of rounds; give at least 1"),
        ("real", ["mean", "--rounds", "-1"], "'-1' is no number of rounds; give at least 1"),
        ("real", ["mean", "--rounds", "many"], "'many' is no number of rounds; give at least 1"),
        ("real", ["mean", "--out", "no/such.json"], "there is no folder no; make it first"),
        ("straggler", ["--out", "no/such.json"], "there is no folder no; make it first"),
        ("chaos", ["--parts", "--out", "no/such.json"], "there is no folder no; make it first"),
        ("hogwild", ["--quick", "--rounds", "0"], "'0' is no number of rounds"),
        ("hogwild", ["sped"], "there is no part sped; there are speed, limit, delays, density"),
        ("hogwild_processes", ["--quick", "--rounds", "0"], "'0' is no number of rounds"),
        ("optimizers", ["--quick", "--rounds", "0"], "'0' is no number of rounds"),
        ("simulator", ["--quick", "--repeats", "0"], "'0' is no number of rounds"),
        ("real", ["means"], "invalid choice: 'means'"),
    ],
)
def test_options_are_refused_before_anything_is_measured(
    name: str, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(name).main(arguments)
    assert ended.value.code == 2
    assert text in capsys.readouterr().err


def test_figures_are_medians_and_ratios_have_verdicts(capsys: pytest.CaptureFixture[str]):
    figures = importlib.import_module("common.figures")
    part = figures.Part(name="one", title="One thing, ms")
    for value in (3.0, 100.0, 1.0):
        part.add("ours", value)
    part.compare("low", 0.2, 0.25)
    part.compare("high", 4.0, 5, above=True)
    part.compare("free", 7.0)
    part.compare("often", 0.5, also=[k / 100 for k in range(101)])
    assert part.as_json()["medians"] == {"ours": 3.0}
    assert [ratio["met"] for ratio in part.as_json()["ratios"]] == [True, False, None, None]
    assert part.as_json()["ratios"][3]["between"] == pytest.approx((0.05, 0.95), abs=0.01)
    figures.show([part])
    printed = capsys.readouterr().out
    assert "low: 0.2 (target at most 0.25: met)" in printed
    assert "high: 4 (target at least 5: not met)" in printed
    assert "free: 7\n" in printed
    assert re.search(r"often: 0\.5 \[0\.04\d* to 0\.95\d*\]\n", printed)


def test_times_are_read_from_a_trace():
    ours = importlib.import_module("common.ours")
    run = simulated(small_experiment(SGD(), workers=2, steps=15))
    run.trace = Trace()
    ms = 1_000_000
    for k in range(14):
        # Both wait for worker 1, whose gradients take longer, and then for 2 ms.
        run.trace.rows["gradients"].append((0, 10 * k * ms, (10 * k + 5) * ms, 0.0))
        run.trace.rows["gradients"].append((1, 10 * k * ms, (10 * k + 8) * ms, 0.0))
        run.trace.rows["steps"].append((0, (10 * k + 6) * ms, k, 0, 0))
    np.testing.assert_allclose(ours.gap_seconds(run), [0.005] * 3 + [0.002] * 3)
    np.testing.assert_allclose(ours.together_seconds(run), [0.002] * 3)
    assert ours.updates_per_second(run) == pytest.approx(100)
    kind = run.trace.kind("Ping")
    for k in range(12):
        run.trace.rows["messages"].append((0, 1, kind, 8, k * ms, k * ms, k * ms, 0))
    np.testing.assert_allclose(ours.message_seconds(run, "Ping"), [0.001])


@contextmanager
def process_number(place, shown):
    (place.folder / str(place.rank)).write_text(shown)
    yield lambda: (place.folder / f"step-{place.rank}").write_text(str(os.getpid()))


@contextmanager
def works_alone(place):
    with (place.folder / f"alone-{place.rank}").open("w", buffering=1) as file:
        yield lambda: os.write(file.fileno(), b"x")


@contextmanager
def fails(place):
    if place.rank == 1:
        raise ValueError("no such rival")
    yield lambda: None


def test_a_group_works_in_turns_and_leaves_nothing():
    groups = importlib.import_module("common.groups")
    with groups.Group(process_number, "here", beside=works_alone) as group:
        times = group.burst(4, warm=1)
        alone = group.burst(2, warm=1, beside=True)
        folder = Path(group._folder.name)
        numbers = {(folder / f"step-{rank}").read_text() for rank in (0, 1)}
        assert [(folder / f"alone-{rank}").read_text() for rank in (0, 1)] == ["xxx"] * 2
        assert (folder / "1").read_text() == "here"
    assert [len(times), len(alone)] == [8, 4]
    assert min(times) > 0
    assert len(numbers) == 2
    assert str(os.getpid()) not in numbers
    assert not folder.exists()
    assert not any(Path(f"/proc/{number}").exists() for number in numbers)


def _wait_to_be_killed(pipe: Any) -> None:
    groups = importlib.import_module("common.groups")
    with groups.Group(process_number, "here") as group:
        pipe.send([process.pid for process in group._processes])
        time.sleep(60)


def test_stopped_processes_do_not_outlive_a_benchmark_that_is_killed():
    context = server_of_forks()
    ours, theirs = context.Pipe()
    # Not a daemon: it has processes of its own.
    process = context.Process(target=_wait_to_be_killed, args=(theirs,), daemon=False)
    process.start()
    try:
        assert ours.poll(60)
        stopped = ours.recv()
        assert all(Path(f"/proc/{number}").exists() for number in stopped)
    finally:
        process.kill()
        process.join()
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{number}").exists() for number in stopped):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_contestant_that_fails_is_named():
    groups = importlib.import_module("common.groups")
    before = multiprocessing.active_children()
    with pytest.raises(RuntimeError, match=r"test_benchmarks\.fails: ValueError: no such rival"):
        groups.Group(fails)
    assert multiprocessing.active_children() == before


def test_a_clock_keeps_the_times_of_its_last_ticks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    running = importlib.import_module("common.running")
    monkeypatch.setattr(running, "KEPT", 8)
    seconds = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0, 28.0, 36.0, 45.0])
    monkeypatch.setattr(running.time, "perf_counter", lambda: next(seconds))
    clock, reader = running.Clock(tmp_path / "1"), running.Clock(tmp_path / "1")
    assert reader.read() == 0
    for _ in range(10):
        clock.tick()
    assert reader.read() == 10
    assert reader.gaps(6, 3) == [7.0, 8.0, 9.0]
    assert clock.asked == (0, 0)
    reader.ask(2, 1)
    assert clock.asked == (2, 1)
    clock.answer([5.0, 6.0])
    assert reader.asked == (0, 0)
    assert reader.answers(2) == [5.0, 6.0]
    assert reader.gaps(6, 3) == [7.0, 8.0, 9.0]


def _is_stopped(number: int) -> bool:
    return "State:\tT (stopped)" in Path(f"/proc/{number}/status").read_text()


def test_a_run_works_in_turns_and_leaves_nothing():
    running = importlib.import_module("common.running")
    problem = importlib.import_module("common.workloads").RandomData(network="small_mlp")
    with running.Running(DPSGD(), problem) as run:
        numbers = [run._process.pid, *run._clocks]
        first = run.burst(20)
        deadline = time.monotonic() + 10
        while not all(map(_is_stopped, numbers)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        second = run.burst(20)
        alone = run.burst(5, beside=True)
        third = run.burst(20)
        folder = Path(run._folder.name)
    assert [len(first), len(second), len(alone), len(third)] == [40, 40, 10, 40]
    # What lies between two turns is no step, nor are those alone.
    assert 0 < min(first + second + alone + third) < 1
    assert len(numbers) == 3
    assert not folder.exists()
    assert not any(Path(f"/proc/{number}").exists() for number in numbers)


def test_a_run_that_fails_is_named():
    running = importlib.import_module("common.running")
    problem = importlib.import_module("common.workloads").RandomData(network="no such")
    before = multiprocessing.active_children()
    with pytest.raises(RuntimeError, match=r"offbeat\.run of DPSGD: KeyError: 'no such'"):
        running.Running(DPSGD(), problem)
    assert multiprocessing.active_children() == before


@pytest.mark.parametrize("name", ["d_psgd", "push_sum"])
def test_gossip_by_hand_is_the_method(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    by_hand, groups = map(importlib.import_module, ("rivals.by_hand", "common.groups"))
    workloads = importlib.import_module("common.workloads")
    problem = workloads.RandomData(network="small_mlp")
    start = problem.model()
    models = [copy.deepcopy(start) for _ in range(2)]
    own = threading.local()
    monkeypatch.setattr(by_hand, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(workloads.RandomData, "model", lambda self: models[own.rank])
    done = threading.Barrier(2)

    def work(rank: int):
        own.rank = rank
        place = groups.Place(rank=rank, size=2, port=0, folder=tmp_path)
        with getattr(by_hand, name)(place, problem) as step:
            for _ in range(3):
                step()
            done.wait(20)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    tensors = [parameters_to_vector(start.parameters()).detach()] * 2
    draws = [workloads.minibatches(problem, rank) for rank in (0, 1)]
    for _ in range(3):
        changes: list[Any] = []
        for x, draw in zip(tensors, draws, strict=True):
            vector_to_parameters(x, start.parameters())
            inputs, targets = draw()
            loss = problem.loss(start(inputs), targets)
            gradients = torch.autograd.grad(loss, list(start.parameters()))
            changes.append(-0.001 * parameters_to_vector(gradients))
        if name == "push_sum":
            changes = [sum(changes) / 2] * 2
        tensors = [sum(tensors) / 2 + change for change in changes]
    for model, x in zip(models, tensors, strict=True):
        torch.testing.assert_close(parameters_to_vector(model.parameters()).detach(), x)


def test_decent_dp_takes_steps():
    pytest.importorskip("decent_dp", reason="decent-dp is not installed")
    groups = importlib.import_module("common.groups")
    decent = importlib.import_module("rivals.decent")
    problem = importlib.import_module("common.workloads").RandomData(network="small_mlp")
    with groups.Group(decent.decent_dp, problem, "ring") as group:
        assert len(group.burst(3)) == 6


def test_rays_server_takes_updates():
    pytest.importorskip("ray", reason="ray is not installed")
    groups = importlib.import_module("common.groups")
    ray_server = importlib.import_module("rivals.ray_server")
    problem = importlib.import_module("common.workloads").RandomData(network="small_mlp")
    with groups.Group(ray_server.updates, problem, 2, size=1) as group:
        assert len(group.burst(3)) == 3


def run_with(accuracies: list[float]) -> Run:
    """A run evaluated once a second."""
    run = simulated(small_experiment(SGD(), workers=1, steps=2))
    run.metrics = [
        Metrics(seconds=k, samples=k, steps=k, loss=0.0, accuracy=a, consensus=0.0, bytes=0)
        for k, a in enumerate(accuracies, start=1)
    ]
    return run


def test_methods_are_timed_to_a_share_of_what_all_reduce_reaches():
    goals = importlib.import_module("common.goals")
    found = goals.times(
        {
            "AllReduceSGD": [run_with([0.5, 0.9, 0.991, 1.0]), run_with([0.8, 0.7])],
            "AsyncSGD": [run_with([0.98, 0.9]), run_with([0.5, 0.75])],
        }
    )
    # 0.99 of 1.0 and of 0.7: the goal is the final accuracy's, not the best one's.
    assert [t.seconds for t in found["AllReduceSGD"]] == [3, 1]
    assert [t.seconds for t in found["AsyncSGD"]] == [math.inf, 2]
    assert goals.ratios(found, "AsyncSGD") == [math.inf, 2]
    assert [t.accuracy for t in found["AsyncSGD"]] == [0.9, 0.75]


def test_straggler_runs_quickly(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = figures_of("straggler", ["--quick"], tmp_path)
    printed = capsys.readouterr().out
    straggler = importlib.import_module("straggler")
    for name in straggler.METHODS:
        assert f"| {name} |" in printed
        assert figures[name]["rate"] in (0.1, 0.3)
        assert 0 < figures[name]["runs"][0]["accuracy"] < 1
    assert figures["AllReduceSGD"]["median ratio"] == 1
    assert offbeat.Cluster(workers=4, compute=straggler.CLUSTER.compute, slow={0: 4.0}) == (
        straggler.CLUSTER
    )


def test_hogwild_runs_quickly(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = figures_of("hogwild", ["--quick"], tmp_path)
    printed = capsys.readouterr().out
    assert list(figures) == ["speed", "limit", "delays", "density"]
    for name, measured in figures["speed"].items():
        assert all(ns > 0 for ns in measured["ns"].values())
        # The same problem: all of them end near each other. Without a penalty these few steps are
        # so large that it is by chance where they end.
        ends = list(measured["objective"].values())
        assert len(ends) == 7
        # An x for each thread has had few edges in so short a time.
        near = [end for name, end in measured["objective"].items() if "HogWild++" not in name]
        assert len(near) == 5
        assert max(near) < 1.01 * min(near) or "without" in name
        assert max(ends) < 1.06 * min(ends) or "without" in name
    assert all(ns > 0 for taken in figures["limit"].values() for ns in taken.values())
    assert "1 thread, blocks of 8" in printed
    assert figures["delays"]["10 simulated workers"]["0"]["hogwild"] > 3
    assert figures["density"]["100"]["collided"] > figures["density"]["2000"]["collided"]


def test_what_was_measured_while_cores_were_far_apart_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
):
    cores = importlib.import_module("common.cores")
    ways, taken = iter([50.0, 60.0, 50.0, 300.0, 70.0, 70.0]), iter([1.0, 1000.0, 3.0])
    monkeypatch.setattr(cores, "transfer", lambda: next(ways))
    trials = cores.Trials()
    for _ in range(3):
        trials.take("one", lambda: next(taken))
    assert trials.values("one") == [1.0, 3.0]
    assert trials.medians() == {"one": 2.0}
    assert (trials.transfer, trials.aside) == (65.0, 1)
    assert "took 65 ns" in str(trials)
    assert "1 of 3 figures" in str(trials)
    monkeypatch.setattr(cores, "transfer", lambda: 300.0)
    trials.take("far", lambda: 7.0)
    assert trials.values("far") == [7.0]
    assert trials.aside == 1


def test_hogwild_of_processes_runs_quickly(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = figures_of("hogwild_processes", ["--quick"], tmp_path)
    printed = capsys.readouterr().out
    variants = ["offbeat, 1 thread", "example, default threads", "example, 1 thread"]
    for name in [*variants, "nothing shared, 1 thread"]:
        assert f"| {name} |" in printed
        assert all(len(figures[f"{name}, {processes}"]) == 1 for processes in (1, 2))
    # On a busy machine some may not get to the end of a step.
    assert sum(rate for rates in figures.values() for rate in rates) > 0


def test_injected_runs_quickly(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = figures_of("injected", ["--quick"], tmp_path)
    printed = capsys.readouterr().out
    assert list(figures) == ["AllReduceSGD", "AsyncSGD", "ADPSGD", "StochasticGradientPush"]
    for name, seconds in figures.items():
        assert f"| {name} | {seconds['simulated']:.2f} | {seconds['measured']:.2f} |" in printed
        # Real gradients take as long as the simulated ones at least.
        assert seconds["measured"] > 0.8 * seconds["simulated"] > 0.1


def test_transport_runs_quickly(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = figures_of("transport", ["--quick"], tmp_path)
    assert "300,000 in slot" in capsys.readouterr().out
    for way in ("unix", "tcp"):
        assert list(figures[way]) == ["64", "300000"]
        for found in figures[way].values():
            assert found["copy"][0] > 0
            for kind in ("copied", "in slot"):
                came, was_read, answered = found[kind]
                assert 0 < came < was_read < answered


def test_optimizers_have_the_shapes_of_a_resnet_50():
    shapes = list(importlib.import_module("optimizers").resnet50_shapes())
    assert len(shapes) == 161
    assert sum(math.prod(shape) for shape in shapes) == 25_557_032


def test_optimizers_run_quickly_without_timm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delitem(sys.modules, "rivals.timm_optimizers", raising=False)
    monkeypatch.setitem(sys.modules, "timm", None)
    figures = figures_of("optimizers", ["--quick"], tmp_path)
    assert list(figures["medians"]) == ["LARS", "LAMB", "torch.optim.SGD", "torch.optim.AdamW"]
    assert all(value > 0 for value in figures["medians"].values())
    assert figures["ratios"] == []
    assert "timm is not installed: left out" in capsys.readouterr().out


@pytest.mark.usefixtures("timm")
def test_optimizers_run_quickly_beside_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    figures = figures_of("optimizers", ["--quick"], tmp_path)
    whats = ["LARS / the faster timm Lars", "LAMB / the faster timm Lamb"]
    assert [ratio["what"] for ratio in figures["ratios"]] == whats
    assert len(figures["medians"]) == 8
    printed = capsys.readouterr().out
    assert all(f"{what}: " in printed for what in whats)


def test_simulator_runs_quickly(capsys: pytest.CaptureFixture[str]):
    importlib.import_module("simulator").main(["--quick"])
    printed = capsys.readouterr().out
    for rival in ("simulator", "plain, 1 thread", "plain, 2 threads"):
        assert [float(n) > 0 for n in re.findall(rf"  {rival} +(\d+) gradients/s", printed)] == (
            [True, True]
        )
    assert re.search(r"^ +8(?: +\d+){4}$", printed, re.MULTILINE)
    assert re.search(r"message, sent and received +\d", printed)


def test_crossings_are_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    crossings = importlib.import_module("crossings")
    # All of them are in test_crossings.py.
    monkeypatch.setattr(crossings, "SCHEMES", ("SGP", "D-PSGD"))
    crossings.main()
    printed = capsys.readouterr().out
    assert "| D-PSGD | 3.840 | 3.840 | 15.6 |\n| SGP | 2.020 | 2.020 | 29.7 |" in printed
    assert "| D-PSGD | SGP | 1.92 | 1.92 |" in printed


def test_chaos_says_what_it_has_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = ["--parts", "workers", "--only", "ADPSGD", "--runs", "1"]
    try:
        (outcome,) = figures_of("chaos", few, tmp_path)
    finally:
        adopt_orphans(adopt=False)
    printed = capsys.readouterr().out
    assert outcome["wrong"] == []
    assert f"ok    workers ADPSGD {outcome['what']}" in printed
    assert re.search(r"workers +ADPSGD +1 +1 +0 ", printed)
