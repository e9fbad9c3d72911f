"""Loggers: a run's evaluations sent to TensorBoard or Weights & Biases as they come.

Each is a callable for `progress=`, and a context manager that closes what it writes to:

    with offbeat.loggers.TensorBoard("logs") as progress:
        offbeat.simulate(ADPSGD(), progress=progress)
"""

from __future__ import annotations

import importlib
import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal, Self

from .experiment import Experiment, to_config
from .runs import Metrics

LOGGED = ("accuracy", "loss", "consensus", "bytes")
"""Columns of the metrics that are logged, against samples and seconds."""


class Logger(ABC):
    """Called with each evaluation of a run; closed when the run has ended."""

    @abstractmethod
    def __call__(self, row: Metrics) -> None:
        """Log one evaluation. What is not finite, such as an accuracy there is none of, is not."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left and end whatever runs beside."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TensorBoard(Logger):
    """Event files in a directory: `tensorboard --logdir DIR`.

    The step is the number of samples; the wall time is the run's, in seconds, so that TensorBoard's
    RELATIVE axis shows virtual seconds.

    Args:
        directory: of the event files.
        experiment: whose settings are written as text and as hyper-parameters.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, directory: Path | str, experiment: Experiment | None = None) -> None:
        _require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory))
        if experiment is not None:
            lines = [f"| {key} | {value} |" for key, value in settings(experiment).items()]
            table = "\n".join(["| setting | value |", "|---|---|", *lines])
            self._writer.add_text("settings", table, 0, walltime=0)

    def __call__(self, row: Metrics) -> None:
        for name, value in _finite(row).items():
            self._writer.add_scalar(name, value, row.samples, walltime=row.seconds)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Logger):
    """A run of Weights & Biases, with samples or seconds as the axis.

    Args:
        project: that it belongs to.
        mode: "offline" writes below `directory`, for `wandb sync`; "online" sends.
        directory: where its files go; the working directory if not given.
        experiment: whose settings are its config.

    Raises:
        ValueError: wandb is not installed.
    """

    def __init__(
        self,
        project: str = "offbeat",
        *,
        mode: Literal["offline", "online"] = "offline",
        directory: Path | str | None = None,
        experiment: Experiment | None = None,
    ) -> None:
        wandb: Any = _require("wandb", "wandb")
        self._run = wandb.init(
            project=project,
            mode=mode,
            dir=None if directory is None else str(directory),
            config={} if experiment is None else settings(experiment),
            # The system's load says nothing of virtual time, and output is the user's.
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        self._run.define_metric("samples")
        self._run.define_metric("seconds")
        for name in LOGGED:
            self._run.define_metric(name, step_metric="samples")

    def __call__(self, row: Metrics) -> None:
        self._run.log({"samples": row.samples, "seconds": row.seconds, **_finite(row)})

    def close(self) -> None:
        self._run.finish()


def settings(experiment: Experiment) -> dict[str, Any]:
    """Every setting by its dotted name, as the command line would take it."""
    return _flat(to_config(experiment), "")


def _flat(config: Any, path: str) -> dict[str, Any]:
    if not isinstance(config, dict):
        return {path: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = {"class_path": "", "init_args": ""}.get(key, key)
        flat |= _flat(value, ".".join(filter(None, (path, name))))
    return flat


def _finite(row: Metrics) -> dict[str, float]:
    values = {name: getattr(row, name) for name in LOGGED}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _require(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(f"{package} is not installed: pip install 'offbeat[{extra}]'") from None
