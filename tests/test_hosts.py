"""Three machines on lines of 100 Mbit/s: as slow, and in the order, that the simulator says."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType

import pytest
import torch

from machines import Machines
from namespaces import Network, left_over, skip_reason
from offbeat.api import simulate_experiment
from offbeat.cluster import Constant
from offbeat.methods import AllReduceSGD, LocalSGD, StochasticGradientPush
from offbeat.runs import Run
from offbeat.testing import simulated, small_experiment
from offbeat.trace import Trace

COMPUTE = 0.04
"""Seconds of a gradient, of which some 2 ms are work."""
ROUNDS = 16


@pytest.fixture(scope="module")
def hosts() -> Generator[ModuleType]:
    """benchmarks/hosts.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
        yield importlib.import_module("hosts")


@pytest.fixture(scope="module")
def network() -> Generator[Network]:
    if (reason := skip_reason()) is not None:
        pytest.skip(reason)
    with Network(hosts=3, rate="100mbit") as network:
        yield network
    assert left_over() == []


@pytest.fixture(scope="module")
def machines(network: Network) -> Generator[Machines]:
    with Machines(network.hosts) as machines:
        yield machines


def test_rounds_on_slow_lines_take_as_long_as_simulated(
    hosts: ModuleType, machines: Machines, tmp_path: Path
):
    chosen = hosts.experiment(3 * 16 * ROUNDS, 1e-4)
    cluster = dataclasses.replace(chosen.cluster, workers=3, compute=Constant(seconds=COMPUTE))
    seconds: dict[str, float] = {}
    for method in (AllReduceSGD(), StochasticGradientPush(), LocalSGD()):
        name = type(method).__name__
        planned = dataclasses.replace(chosen, method=method, cluster=cluster)
        measured = hosts.run_on(machines, planned, tmp_path / name)
        predicted = simulate_experiment(planned)
        # The same rounds: the models are equal to the bit, or this raises.
        hosts.clocked(predicted, measured)
        seconds[name] = measured.seconds
        # Never sooner than the lines allow; a busy machine may take longer.
        assert 0.8 < measured.seconds / predicted.seconds < 4, name
    # Simulated it is 0.38.
    assert seconds["LocalSGD"] < 0.8 * seconds["AllReduceSGD"]


# benchmarks/hosts.py


def run_of(seconds: list[float]) -> Run:
    """A run of four gradients, evaluated after all and after half of them."""
    run = simulated(small_experiment(AllReduceSGD(), workers=2, steps=2))
    batch = run.experiment.problem.batch_size
    row = run.metrics[-1]
    run.metrics = [dataclasses.replace(row, samples=k * batch, seconds=k) for k in (0, 2, 4)]
    run.trace = Trace()
    rows = [(k % 2, 0, round(1e9 * end), 0.0) for k, end in enumerate(seconds)]
    for row in rows:
        run.trace.rows["gradients"].append(row)
    return run


def test_accuracies_are_timed_by_the_measured_gradients(hosts: ModuleType):
    simulation, measured = run_of([1, 1, 2, 2]), run_of([7, 3, 5, 4])
    assert [row.seconds for row in hosts.clocked(simulation, measured).metrics] == [0, 4, 7]
    measured.vector = measured.vector + torch.eye(1, measured.vector.numel()).view(-1)
    with pytest.raises(
        RuntimeError, match="AllReduceSGD: the final model differs from the simulated by 1"
    ):
        hosts.clocked(simulation, measured)


def test_it_runs_quickly(
    hosts: ModuleType,
    network: Network,
    machines: Machines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def ready(*, hosts: int, rate: str) -> AbstractContextManager[Network]:
        assert (hosts, rate) == (3, "100mbit")
        return nullcontext(network)

    # Machines of its own would need many seconds to start.
    monkeypatch.setattr(hosts, "Network", ready)
    monkeypatch.setattr(hosts, "Machines", lambda _: nullcontext(machines))
    hosts.main(["--quick", "--out", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    assert "all final models are those of the simulator, to the bit" in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert list(figures) == ["AllReduceSGD", "StochasticGradientPush", "LocalSGD"]
    for name, found in figures.items():
        assert f"{name}: a round takes " in printed
        (real,), (virtual,) = found["runs"], found["runs, simulated"]
        # The same models at other times.
        assert real["accuracy"] == virtual["accuracy"] > 0.2
        assert real["lasted"] != virtual["lasted"]
    assert figures["AllReduceSGD"]["median ratio"] == 1


def test_without_permission_it_says_so_in_one_line(
    hosts: ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(hosts, "skip_reason", lambda: "network namespaces need root")
    with pytest.raises(SystemExit, match=r"^hosts.py: network namespaces need root$"):
        hosts.main([])
