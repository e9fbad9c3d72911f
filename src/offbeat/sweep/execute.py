"""Execution: every cell that is not yet done is simulated and saved, whole or not at all."""

from __future__ import annotations

import fcntl
import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ..compare.methods import simulated
from ..experiment import Experiment
from ..files import PART, whole
from ..likeness import differing, settings, shown
from ..parallel import shared
from ..runs import Run, versions
from .cells import Cell, grid
from .results import Row, columns_of, write_csv

MANIFEST, RESULT, CELLS = "sweep.yaml", "cell.json", "cells"


def sweep(
    experiment: Experiment,
    over: Mapping[str, Sequence[Any]],
    directory: Path | str,
    *,
    jobs: int = 1,
    light: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Simulate an experiment at every combination of some of its settings.

    Args:
        experiment: what all cells have in common.
        over: values by the setting's name: `{"cluster.workers": [1, 2], "seed": [0, 1, 2]}`.
        directory: where the cells are saved. What is done already is not done again.
        jobs: processes that share the work; more than one under `if __name__ == "__main__"` only.
        light: whether cells are saved without their traces.
        progress: called with the name of each cell that has ended.

    Returns:
        A row per cell, the last setting's value varying fastest.

    Raises:
        ValueError: in one line, for whatever cannot work.
    """
    cells = grid(experiment, over)
    return run_cells(cells, Path(directory), jobs=jobs, light=light, progress=progress)


def run_cells(
    cells: Sequence[Cell],
    directory: Path,
    *,
    jobs: int = 1,
    light: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """`sweep`, of cells that are there already. It also writes sweep.csv.

    Raises:
        ValueError: the directory holds another sweep, or another process is at it.
        KeyboardInterrupt: what was done by then is kept.
    """
    (directory / CELLS).mkdir(parents=True, exist_ok=True)
    claim(directory, cells, light)
    with _alone(directory):
        _drop_parts(directory)
        missing = [cell for cell in cells if not is_done(directory, cell)]
        for cell in cells:
            if progress is not None and cell not in missing:
                progress(cell.name)
        try:
            with shared(max(1, min(jobs, len(missing)))) as share:
                for name in share(functools.partial(_run_cell, directory, light), missing):
                    if progress is not None:
                        progress(name)
        finally:
            _drop_parts(directory)
        rows = read_rows(directory, cells)
        write_csv(rows, directory / "sweep.csv")
    return rows


def claim(directory: Path, cells: Sequence[Cell], light: bool) -> None:
    """Write down which sweep this directory is of, or see that it is of this one.

    Raises:
        ValueError: in one line that says what differs.
    """
    mine: dict[str, Any] = {
        "over": columns_of(cells),
        "light": light,
        "versions": {name: str(version) for name, version in versions().items()},
        "experiment": cells[0].config,
    }
    path = directory / MANIFEST
    if not path.exists():
        with whole(path) as part:
            part.write_text(yaml.safe_dump(mine, sort_keys=False))
        return
    try:
        theirs = yaml.safe_load(path.read_text())
        there, here = settings(theirs), settings(yaml.safe_load(yaml.safe_dump(mine)))
    except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if list(theirs["over"]) != list(mine["over"]):
        raise ValueError(
            f"{directory} holds another sweep: over {', '.join(theirs['over'])} there and over "
            f"{', '.join(mine['over'])} here, in that order; choose another directory"
        )
    found = differing(there, here)
    if found:
        name = found[0]
        told = name.removeprefix("experiment.")
        more = f" (and {len(found) - 1} more settings differ)" if len(found) > 1 else ""
        raise ValueError(
            f"{directory} holds another sweep: {told} is {shown(there, name)} there and "
            f"{shown(here, name)} here{more}; choose another directory"
        )


def is_done(directory: Path, cell: Cell) -> bool:
    """Whether that cell was saved, whole."""
    return (directory / CELLS / cell.name / RESULT).is_file()


def read_rows(directory: Path, cells: Sequence[Cell]) -> list[Row]:
    """The rows of all cells, as they were saved.

    Raises:
        ValueError: in one line that names the file that is damaged.
    """
    rows: list[Row] = []
    for cell in cells:
        path = directory / CELLS / cell.name / RESULT
        try:
            stored = json.loads(path.read_text())
            measured = {k: math.nan if v is None else v for k, v in stored["measured"].items()}
            rows.append(Row(cell=cell.name, values=cell.values, error=stored["error"], **measured))
        except (OSError, ValueError, KeyError, TypeError) as error:
            text = " ".join(str(error).split())
            raise ValueError(f"cannot read {path}: {text}; delete its folder") from error
    return rows


def _run_cell(directory: Path, light: bool, cell: Cell) -> str:
    outcome = simulated(cell.experiment)
    part = directory / CELLS / f"{PART}{cell.name}"
    part.mkdir()
    if isinstance(outcome, Run):
        outcome.resolved |= cell.resolved
        outcome.save(part)
        if light:
            (part / "trace.npz").unlink()
    else:
        (part / "experiment.yaml").write_text(yaml.safe_dump(cell.config, sort_keys=False))
    (part / RESULT).write_text(json.dumps(_stored(outcome), indent=2) + "\n")
    # A cell that has its name is whole; what has it and is not done was damaged.
    shutil.rmtree(directory / CELLS / cell.name, ignore_errors=True)
    os.replace(part, directory / CELLS / cell.name)
    return cell.name


def _stored(outcome: Run | str) -> dict[str, Any]:
    if isinstance(outcome, str):
        return {"measured": {}, "error": outcome}
    last, stale = outcome.metrics[-1], outcome.staleness
    measured = {
        "accuracy": last.accuracy,
        "loss": last.loss,
        "seconds": outcome.seconds,
        "samples": last.samples,
        "staleness_mean": float(stale.mean()) if len(stale) else 0.0,
        "staleness_max": int(stale.max()) if len(stale) else 0,
        "bytes": last.bytes,
    }
    finite = {key: value if math.isfinite(value) else None for key, value in measured.items()}
    return {"measured": finite, "error": outcome.error}


def _drop_parts(directory: Path) -> None:
    """What an end in the middle of saving has left."""
    for part in (directory / CELLS).glob(f"{PART}*"):
        shutil.rmtree(part)


@contextmanager
def _alone(directory: Path) -> Generator[None]:
    """Hold the sweep's manifest locked; the lock ends with this process."""
    with (directory / MANIFEST).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at the sweep in {directory}") from None
        yield
