"""The scripts of benchmarks/: what they import is there, and quick modes run."""

import importlib
import importlib.util
import json
import math
import multiprocessing
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import offbeat
from offbeat.methods import SGD
from offbeat.runs import Metrics, Run
from offbeat.testing import simulated, small_experiment
from offbeat.trace import Trace

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """As if one of that folder had been started; what it sets of PyTorch ends with it."""
    monkeypatch.syspath_prepend(FOLDER)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up.
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_it_can_be_imported(path: Path, monkeypatch: pytest.MonkeyPatch):
    assert callable(script(path.stem, monkeypatch).main)


MEASURED = {
    "steps": ["alone", "DDP", "AllReduceSGD, own loop", "StochasticGradientPush, offbeat.run"],
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
    before = {process.pid for process in multiprocessing.active_children()}
    # What is not installed everywhere takes long to start.
    for rival in ("decent_dp", "ray"):
        monkeypatch.setitem(sys.modules, rival, None)
    script("real", monkeypatch).main([part, "--quick", "--out", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    medians: dict[str, float] = {}
    for found in figures["parts"].values():
        assert found["title"].split(",")[0] in printed
        medians |= found["medians"]
        for ratio in found["ratios"]:
            assert math.isfinite(ratio["value"])
            assert ratio["what"] in printed
    for what in MEASURED[part]:
        assert medians[what] > 0
    if part in ("steps", "server"):
        assert "is not installed: left out" in printed
    assert {process.pid for process in multiprocessing.active_children()} == before


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("real", ["mean", "--rounds", "0"], "'0' is no number of rounds; give at least 1"),
        ("real", ["mean", "--rounds", "-1"], "'-1' is no number of rounds; give at least 1"),
        ("real", ["mean", "--rounds", "many"], "'many' is no number of rounds; give at least 1"),
        ("real", ["mean", "--out", "no/such.json"], "there is no folder no; make it first"),
        ("straggler", ["--out", "no/such.json"], "there is no folder no; make it first"),
        ("real", ["means"], "invalid choice: 'means'"),
    ],
)
def test_options_are_refused_before_anything_is_measured(
    name: str,
    arguments: list[str],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    with pytest.raises(SystemExit) as ended:
        script(name, monkeypatch).main(arguments)
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
    assert part.as_json()["medians"] == {"ours": 3.0}
    assert [ratio["met"] for ratio in part.as_json()["ratios"]] == [True, False, None]
    figures.show([part])
    printed = capsys.readouterr().out
    assert "low: 0.2 (target at most 0.25: met)" in printed
    assert "high: 4 (target at least 5: not met)" in printed
    assert "free: 7\n" in printed


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
    np.testing.assert_allclose(ours.step_seconds(run), [0.01] * 6)
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
def fails(place):
    if place.rank == 1:
        raise ValueError("no such rival")
    yield lambda: None


def test_a_group_works_in_turns_and_leaves_nothing():
    groups = importlib.import_module("common.groups")
    with groups.Group(process_number, "here") as group:
        times = group.burst(4, warm=1)
        folder = Path(group._folder.name)
        numbers = {(folder / f"step-{rank}").read_text() for rank in (0, 1)}
        assert (folder / "1").read_text() == "here"
    assert len(times) == 8
    assert min(times) > 0
    assert len(numbers) == 2
    assert str(os.getpid()) not in numbers
    assert not folder.exists()
    assert not any(Path(f"/proc/{number}").exists() for number in numbers)


def test_a_contestant_that_fails_is_named():
    groups = importlib.import_module("common.groups")
    before = multiprocessing.active_children()
    with pytest.raises(RuntimeError, match=r"test_benchmarks\.fails: ValueError: no such rival"):
        groups.Group(fails)
    assert multiprocessing.active_children() == before


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


def test_stragglers_are_timed_to_a_share_of_all_reduce(monkeypatch: pytest.MonkeyPatch):
    straggler = script("straggler", monkeypatch)
    found = straggler.times(
        {
            "AllReduceSGD": [run_with([0.5, 0.9, 0.991, 1.0]), run_with([0.8, 0.7])],
            "AsyncSGD": [run_with([0.98, 0.9]), run_with([0.5, 0.75])],
        }
    )
    # 0.99 of 1.0 and of 0.7: the goal is the final accuracy's, not the best one's.
    assert [t.seconds for t in found["AllReduceSGD"]] == [3, 1]
    assert [t.seconds for t in found["AsyncSGD"]] == [math.inf, 2]
    assert straggler.ratios(found, "AsyncSGD") == [math.inf, 2]
    assert [t.accuracy for t in found["AsyncSGD"]] == [0.9, 0.75]


def test_straggler_runs_quickly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    straggler = script("straggler", monkeypatch)
    straggler.main(["--quick", "--out", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    for name in straggler.METHODS:
        assert f"| {name} |" in printed
        assert figures[name]["rate"] in (0.1, 0.3)
        assert 0 < figures[name]["runs"][0]["accuracy"] < 1
    assert figures["AllReduceSGD"]["median ratio"] == 1
    assert offbeat.Cluster(workers=4, compute=straggler.CLUSTER.compute, slow={0: 4.0}) == (
        straggler.CLUSTER
    )
