"""Run: what a simulation or a real run gives back, and its directory."""

from __future__ import annotations

import csv
import dataclasses
import json
import platform
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .experiment import Experiment, to_config
from .files import PART, whole
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
        buffers: what else the model's state_dict holds, such as batch norm's statistics.
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
    buffers: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    resolved: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The final model's parameters by name."""
        views = self.layout.views(self.vector)
        return dict(zip(self.layout.names, views, strict=True))

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The final model, whole: for `module.load_state_dict(run.state_dict)`."""
        return self.parameters | self.buffers

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
        """Write experiment.yaml, metrics.csv, trace.npz, model.safetensors and run.json.

        A file has its name only once it is whole. run.json comes last: where it is, all are.
        """
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "run.json").unlink(missing_ok=True)
        with whole(directory / "experiment.yaml") as path:
            config = to_config(self.experiment) | self.resolved
            path.write_text(yaml.safe_dump(config, sort_keys=False))
        with whole(directory / "metrics.csv") as path, path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows([[getattr(row, name) for name in COLUMNS] for row in self.metrics])
        with whole(directory / "trace.npz") as path:
            self.trace.save(path)
        with whole(directory / "model.safetensors") as path:
            save_file({name: held.contiguous() for name, held in self.state_dict.items()}, path)
        summary = {
            "mode": self.mode,
            "seconds": self.seconds,
            "stop": self.stop,
            "error": self.error,
            "notes": self.notes,
            "versions": versions(),
            "layout": {"names": self.layout.names, "shapes": self.layout.shapes},
            "bytes": {name: (directory / name).stat().st_size for name in FILES},
        }
        with whole(directory / "run.json") as path:
            path.write_text(json.dumps(summary, indent=2) + "\n")


FILES = ("experiment.yaml", "metrics.csv", "trace.npz", "model.safetensors")
"""A run directory has these and run.json, which is written last."""
COLUMNS = [f.name for f in dataclasses.fields(Metrics)]
"""Columns of metrics.csv."""


def load_run(directory: Path | str) -> Run:
    """A run from its directory, as `Run.save` wrote it.

    Raises:
        ValueError: in one line that names the file that is missing or damaged.
    """
    from .config import load_experiment

    folder = Path(directory)
    if not (folder / "run.json").is_file():
        raise ValueError(
            f"{folder} has no run.json: it is no run directory, or its run did not finish"
        )
    with _readable(folder / "run.json") as path:
        summary = json.loads(path.read_text())
        names, shapes = summary["layout"]["names"], summary["layout"]["shapes"]
        layout = Layout(tuple(names), tuple(tuple(shape) for shape in shapes))
        sizes = summary["bytes"]
        ended = {name: summary[name] for name in ("mode", "seconds", "stop", "error", "notes")}
    with _readable(folder / "experiment.yaml", sizes) as path:
        experiment = load_experiment(path)
    with _readable(folder / "metrics.csv", sizes) as path:
        metrics = _read_metrics(path)
    if not (folder / "trace.npz").exists() and (folder / "cell.json").exists():
        raise ValueError(f"{folder} is of a sweep with --light, which keeps no traces to read")
    with _readable(folder / "trace.npz", sizes) as path:
        trace = Trace.load(path)
    with _readable(folder / "model.safetensors", sizes) as path:
        state = load_file(path)
        vector = layout.flatten([state.pop(name) for name in layout.names])
    return Run(
        experiment=experiment,
        metrics=metrics,
        trace=trace,
        vector=vector,
        layout=layout,
        buffers=state,
        **ended,
    )


def run_directories(folder: Path) -> list[Path]:
    """The directory itself if it is a run's, else those directly below it and below its `cells`."""
    if (folder / "run.json").is_file():
        return [folder]
    below = [*folder.glob("*/run.json"), *folder.glob("cells/*/run.json")]
    return sorted(path.parent for path in below if not path.parent.name.startswith(PART))


def load_parameters(directory: Path, layout: Layout) -> Tensor:
    """The final model (d,) of a run directory.

    Raises:
        ValueError: in one line, if the file is missing or damaged.
    """
    with _readable(directory / "model.safetensors") as path:
        stored = load_file(path)
        return layout.flatten([stored[name] for name in layout.names])


def _read_metrics(path: Path) -> list[Metrics]:
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    if header != COLUMNS:
        raise ValueError(f"its columns are {', '.join(header)}, not {', '.join(COLUMNS)}")
    return [
        Metrics(
            seconds=float(seconds),
            samples=int(samples),
            steps=int(steps),
            loss=float(loss),
            accuracy=float(accuracy),
            consensus=float(consensus),
            bytes=int(sent),
        )
        for seconds, samples, steps, loss, accuracy, consensus, sent in rows
    ]


@contextmanager
def _readable(path: Path, sizes: Mapping[str, int] | None = None) -> Generator[Path]:
    """One line for whatever is wrong with a file of a run directory; `sizes` as they were saved."""
    try:
        found = path.stat().st_size
        if sizes is not None and found != sizes[path.name]:
            raise ValueError(f"it has {found:,} bytes, and had {sizes[path.name]:,} when saved")
        yield path
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except KeyError as error:
        raise ValueError(f"{path} is damaged: it lacks {error}") from error
    except (
        ValueError,
        TypeError,
        OSError,
        EOFError,
        BadZipFile,
        zlib.error,
        SafetensorError,
    ) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def versions() -> dict[str, str]:
    """Of what a run's bits depend on."""
    from . import __version__

    return {
        "offbeat": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
