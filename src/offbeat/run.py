"""Run: what a simulation or a real run gives back, and its directory."""

from __future__ import annotations

import csv
import dataclasses
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from .experiment import Experiment, to_config
from .parameters import Layout
from .trace import Trace


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One evaluation of the model that the nodes stand for at that moment.

    Args:
        seconds: since the run began, virtual or wall.
        samples: in gradients computed so far, by all workers.
        steps: gradients applied so far, by all nodes.
        loss: mean over the evaluated part of the data.
        accuracy: 0..1, NaN where the problem has none.
        consensus: root mean square distance of the workers' parameters to their mean.
        bytes: sent so far.
    """

    seconds: float
    samples: int
    steps: int
    loss: float
    accuracy: float
    consensus: float
    bytes: int


@dataclass(kw_only=True, eq=False)
class Run:
    """A run that has ended. `error` says why, if it ended badly; what it recorded is kept.

    Args:
        mode: "simulated", "processes" or "replay".
        metrics: a row per evaluation.
        trace: what happened when.
        vector: the final model (d,).
        layout: names and shapes of its parameters.
        seconds: when the last gradient was computed.
        stop: why it stopped.
        notes: what the user should know, a line each.
    """

    experiment: Experiment
    mode: str
    metrics: list[Metrics]
    trace: Trace
    vector: Tensor
    layout: Layout
    seconds: float
    stop: str
    error: str | None = None
    notes: list[str] = field(default_factory=list[str])
    resolved: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The final model: for `module.load_state_dict(run.parameters, strict=False)`."""
        views = self.layout.views(self.vector)
        return dict(zip(self.layout.names, views, strict=True))

    @property
    def staleness(self) -> NDArray[np.int64]:
        """Of every gradient applied, in optimizer steps."""
        return self.trace.steps["staleness"]

    @property
    def busy(self) -> NDArray[np.float64]:
        """Share of the run that each worker spent computing (workers,)."""
        table = self.trace.gradients
        spent = np.zeros(self.experiment.cluster.workers)
        np.add.at(spent, table["node"], (table["end_ns"] - table["start_ns"]) / 1e9)
        return spent / self.seconds if self.seconds > 0 else spent

    def reached(self, accuracy: float) -> Metrics | None:
        """The first evaluation with at least that accuracy."""
        return next((row for row in self.metrics if row.accuracy >= accuracy), None)

    def save(self, directory: Path) -> None:
        """Write experiment.yaml, metrics.csv, trace.npz, parameters.safetensors, run.json."""
        directory.mkdir(parents=True, exist_ok=True)
        config = to_config(self.experiment) | self.resolved
        (directory / "experiment.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        names = [f.name for f in dataclasses.fields(Metrics)]
        with (directory / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(names)
            writer.writerows([[getattr(row, name) for name in names] for row in self.metrics])
        self.trace.save(directory / "trace.npz")
        save_file(
            {name: view.contiguous() for name, view in self.parameters.items()},
            directory / "parameters.safetensors",
        )
        summary = {
            "mode": self.mode,
            "seconds": self.seconds,
            "stop": self.stop,
            "error": self.error,
            "notes": self.notes,
            "versions": versions(),
            "layout": {"names": self.layout.names, "shapes": self.layout.shapes},
        }
        (directory / "run.json").write_text(json.dumps(summary, indent=2) + "\n")


def load_parameters(directory: Path, layout: Layout) -> Tensor:
    """The final model (d,) of a run directory."""
    stored = load_file(directory / "parameters.safetensors")
    return layout.flatten([stored[name] for name in layout.names])


def versions() -> dict[str, str]:
    """Of what a run's bits depend on."""
    from . import __version__

    return {
        "offbeat": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
