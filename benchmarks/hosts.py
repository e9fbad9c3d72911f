"""Four machines on lines of 100 Mbit/s: do gossip and local steps beat all-reduce, for real?

    python benchmarks/hosts.py
    python benchmarks/hosts.py --quick

Needs root, `ip` and `tc`. Every machine is a network namespace on one switch; each line is held
down to 100 Mbit/s by `tc tbf`. On each runs `offbeat run --join`, with one worker: the handwritten
digits and a network of 250,000 parameters, so that a whole model passes a line in 80 ms. Each
gradient sleeps out what the cluster says it takes, for the machines share their cores.

Rates are chosen as common/contest.py says, and the goal is that of common/goals.py; accuracies are
those on the test part.

An evaluation would pull every model through the lines that are measured. So the real runs are not
evaluated on their way: the methods are synchronous, so that a run's model after so many samples is
that of the simulated run with the same seed, and only its time is measured. That the final models
are equal to the bit is checked.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
import yaml
from common import options
from common.contest import in_turns, print_notes, tune
from common.goals import REFERENCE, as_json, lasted, ratio, table, times
from common.ours import NEVER

import offbeat
from offbeat.cluster import Lognormal
from offbeat.experiment import to_config
from offbeat.method import Method
from offbeat.methods import AllReduceSGD, LocalSGD, StochasticGradientPush
from offbeat.runs import Run, load_run

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from machines import Machines
from namespaces import Network, NetworkHost, skip_reason

METHODS: dict[str, Method] = {
    "AllReduceSGD": AllReduceSGD(),
    "StochasticGradientPush": StochasticGradientPush(),
    "LocalSGD": LocalSGD(),
}
RATE, BANDWIDTH = "100mbit", 12.5e6
"""Of a line, in `tc`'s words and in bytes per second."""

ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], 29300)) as server:
    print("listening", flush=True)
    other, _ = server.accept()
    with other:
        while data := other.recv(1):
            other.send(data)
"""
PING = """
import socket, statistics, sys, time
with socket.create_connection((sys.argv[1], 29300)) as other:
    other.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    def there_and_back(_):
        began = time.perf_counter()
        other.send(b"x")
        other.recv(1)
        return time.perf_counter() - began
    print(statistics.median(map(there_and_back, range(500))))
"""


def run_on(machines: Machines, experiment: offbeat.Experiment, folder: Path) -> Run:
    """The experiment on all machines, not evaluated on its way; `folder` is its run directory.

    Raises:
        RuntimeError: it ended badly.
    """
    config = to_config(dataclasses.replace(experiment, evaluate_every=NEVER))
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        machines.begin(["--config", file.name], folder)
        machines.finish()
    return load_run(folder)


def latency(hosts: Sequence[NetworkHost]) -> float:
    """Half of the median time that a byte takes there and back, in seconds."""
    with hosts[1].start([sys.executable, "-c", ECHO, hosts[1].address]) as server:
        assert server.stdout is not None
        server.stdout.readline()
        found = hosts[0].run([sys.executable, "-c", PING, hosts[1].address])
    return float(found.stdout) / 2


def experiment(samples: int, waiting: float, workers: int = 4) -> offbeat.Experiment:
    """`waiting` is the lines' latency in seconds."""
    return offbeat.Experiment(
        method=METHODS[REFERENCE],
        problem=offbeat.problems.Digits(hidden=3333),
        cluster=offbeat.Cluster(
            workers=workers,
            compute=Lognormal(seconds=0.02, sigma=0.2),
            bandwidth=BANDWIDTH,
            latency=waiting,
        ),
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        budget=offbeat.Budget(samples=samples),
        evaluate_every=192,
        evaluator="serial",
        inject=True,
    )


def clocked(simulated: Run, measured: Run) -> Run:
    """The measured run, with the simulated one's evaluations at the times of its own gradients.

    An evaluation after n gradients of all workers is at the end of the n-th, as in the simulator.

    Raises:
        RuntimeError: their final models differ.
    """
    if not torch.equal(simulated.vector, measured.vector):
        apart = (simulated.vector - measured.vector).abs().max().item()
        name = type(measured.experiment.method).__name__
        raise RuntimeError(f"{name}: the final model differs from the simulated by {apart:g}")
    ends = np.sort(measured.trace.gradients["end_ns"]) / 1e9
    batch = measured.experiment.problem.batch_size
    rows = [
        dataclasses.replace(row, seconds=float(ends[row.samples // batch - 1]))
        if row.samples
        else row
        for row in simulated.metrics
    ]
    return dataclasses.replace(measured, metrics=rows)


def main(arguments: Sequence[str] | None = None) -> None:
    asked = options.parser(__doc__).parse_args(arguments)
    if (reason := skip_reason()) is not None:
        raise SystemExit(f"hosts.py: {reason}")
    began = time.monotonic()
    workers = 3 if asked.quick else 4
    seeds = range(1) if asked.quick else range(3)
    with ExitStack() as stack:
        network = stack.enter_context(Network(hosts=workers, rate=RATE))
        waiting = latency(network.hosts)
        machines = stack.enter_context(Machines(network.hosts))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        chosen = experiment(480 if asked.quick else 9_600, waiting, workers)
        tuned = tune(METHODS, chosen, seeds=seeds, quick=asked.quick)

        def for_real(simulated: Run) -> Run:
            planned = simulated.experiment
            folder = scratch / f"{type(planned.method).__name__}-{planned.seed}"
            return clocked(simulated, run_on(machines, planned, folder))

        runs = in_turns(tuned, for_real)
    predicted = times({entry.label: entry.runs for entry in tuned.entries})
    found = times(runs)
    print(f"\n{workers} machines on {os.cpu_count()} cores, lines of 100 Mbit/s, ", end="")
    print(f"{1e6 * waiting:.0f} us;")
    print(f"gradients {chosen.cluster.compute}; {chosen.budget.samples:,} samples, ", end="")
    print(f"{len(seeds)} seeds\n")
    print(table(tuned, predicted, found), end="\n\n")
    assert chosen.quota is not None
    for name in METHODS:
        real, virtual = (1000 * lasted(of, name) / chosen.quota for of in (found, predicted))
        print(f"{name}: a round takes {real:.0f} ms, simulated {virtual:.0f} ms")
    for name in METHODS:
        if name != REFERENCE:
            own, virtual = ratio(found, name), ratio(predicted, name)
            print(f"{name}: {own:.2f} of all-reduce's time to the goal, simulated {virtual:.2f}")
        print_notes(name, runs[name])
    seconds = time.monotonic() - began
    print(f"all final models are those of the simulator, to the bit; {seconds:.0f} s")
    options.write(as_json(tuned, predicted, found), asked.out)


if __name__ == "__main__":
    main()
