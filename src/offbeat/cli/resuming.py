"""Resuming: checkpoints on the command line of `offbeat run`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentParser

from ..options import value_of
from ..runtime import torchrun
from ..runtime.checkpoint import Checkpoint, CheckpointError, latest_checkpoint
from ..runtime.errors import RunError
from .errors import UsageError, one_line


def add_options(parser: ArgumentParser) -> None:
    """The options that write checkpoints and go on from them."""
    parser.add_argument(
        "--checkpoint",
        type=float | None,
        help="seconds between checkpoints, kept in the run directory; none if not given",
    )
    parser.add_argument(
        "--resume",
        type=str | None,
        help="run directory: go on from its last checkpoint, with its experiment and results",
    )


def restarted() -> bool:
    """Whether torchrun has started this job anew after a failure."""
    try:
        return torchrun.present() and torchrun.restarts() > 0
    except RunError as error:
        raise UsageError(one_line(error)) from None


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """The checkpoint to go on from, if any, and what is to be said of others."""

    checkpoint: Checkpoint | None = None
    notes: Sequence[str] = ()


def resumption(options: Sequence[str]) -> tuple[Resumption, list[str]]:
    """Where to go on from, and the options with that experiment below all others.

    A job that torchrun has started anew goes on from the last checkpoint in `--out`, if any.

    Raises:
        UsageError: there is no checkpoint in the directory that `--resume` names.
    """
    named, out = value_of("--resume", options), value_of("--out", options)
    if named is None:
        if not restarted() or out is None:
            return Resumption(), list(options)
        try:
            found, notes = latest_checkpoint(Path(out))
        except CheckpointError:
            return Resumption(), list(options)
        return Resumption(checkpoint=found, notes=notes), list(options)
    if out is not None:
        raise UsageError(f"--resume {named} goes on in that directory: leave --out {out} out")
    if not os.path.isdir(named):
        raise UsageError(f"--resume {named}: there is no such directory")
    try:
        found, notes = latest_checkpoint(Path(named))
    except CheckpointError as error:
        raise UsageError(one_line(error)) from error
    assert found.path is not None
    options = ["--config", str(found.path / "experiment.yaml"), *options]
    return Resumption(checkpoint=found, notes=notes), options
