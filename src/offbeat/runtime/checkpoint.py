"""Checkpoint: the directory from which a real run goes on after its processes have ended.

    DIR/checkpoints/<samples>/node-<rank>.safetensors   a node, as `capture` writes it
                              experiment.yaml           for --config
                              checkpoint.json           the rest; written last

It has its name only once it is whole and on the disk. The last two are kept.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..experiment import Experiment, optimizer_class, to_config
from ..likeness import differing, settings, shown, within
from ..method import Method
from ..runs import Metrics, versions
from .durable import put_back, write_directory
from .status import Status

FORMAT = 2
KEPT = 2
"""Checkpoints of a run: if the last one is torn there is the one before."""
_FIXED = ("method", "problem", "optimizer", "partition", "seed", "device", "cluster.workers")
"""Settings that a run keeps when it is resumed; its budget, say, may be another."""

_States = dict[int, bytes]


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read, or gone on from. The text is one line."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A run between two rounds of every worker.

    Args:
        experiment: its YAML form.
        samples: in gradients computed so far, by all workers; the directory's name.
        seconds: since the run began, pauses and resumptions left out.
        tickets: gradients of the budget that are used up: those computed so far, by all workers.
        steps: gradients applied so far, by all nodes.
        bytes: sent so far.
        metrics: the evaluations so far.
        nodes: the ranks of the nodes that took part.
        versions: of what bits depend on.
        path: the directory; None of one that is not written.
        states: of nodes, by rank, in place of those in the directory.
    """

    experiment: dict[str, Any]
    samples: int
    seconds: float
    tickets: int
    steps: int
    bytes: int
    metrics: tuple[Metrics, ...]
    nodes: tuple[int, ...]
    versions: dict[str, str] = field(default_factory=versions)
    path: Path | None = None
    states: Mapping[int, bytes] = field(default_factory=_States)

    def node(self, rank: int) -> bytes:
        """The state of a node, for `Host.add`.

        Raises:
            CheckpointError: it is not in the checkpoint, or its file is damaged by now.
        """
        if rank in self.states:
            return self.states[rank]
        if self.path is None or rank not in self.nodes:
            raise CheckpointError(f"the checkpoint {self.path} has no node {rank}")
        return _content(self.path, _listed(self.path), _node_file(rank))

    def require_same(self, experiment: Experiment) -> None:
        """Refuse to go on with another method, problem or number of workers.

        Raises:
            CheckpointError: naming the setting, and both values.
        """
        # What is left out of one of them is at its default there.
        made = inspect.signature(optimizer_class(experiment.optimizer)).parameters
        defaults = {f"optimizer.{name}": to_config(p.default) for name, p in made.items()}
        theirs = defaults | settings(self.experiment)
        ours = defaults | settings(to_config(experiment))
        for name in differing(theirs, ours):
            if any(within(name, fixed) for fixed in _FIXED):
                raise CheckpointError(
                    f"the checkpoint {self.path} is of another experiment: {name} is "
                    f"{shown(theirs, name)} there and {shown(ours, name)} here"
                )


def next_pause(statuses: Sequence[Status], method: Method) -> int | dict[int, int] | None:
    """What to do when, after `Host.pause`, everyone is idle and all messages have arrived.

    Args:
        statuses: of all hosts, each of after the pause: `pausing` says so.

    Returns:
        None if every worker is held, or asks for a gradient that the budget refuses: now all can
        be captured. Otherwise the round to pause at instead: some wait for others who were held
        before an earlier round. Where no round does for all, because some need others that are
        further than themselves, each worker's own: the held ones make one more. If it is what is
        paused at already, some wait for what comes in no earlier round, or never: let the run go
        on, and try again later.
    """
    stuck = any(status.stuck for status in statuses)
    if stuck and method.unequal_rounds:
        return {rank: round + 1 for status in statuses for rank, round in status.rounds.items()}
    rounds = {
        # Whoever waits in the middle of a round can be held before the next one at the earliest.
        round + (stuck and rank not in status.paused)
        for status in statuses
        for rank, round in status.rounds.items()
    }
    return max(rounds) if stuck or (method.synchronous and len(rounds) > 1) else None


def save_checkpoint(directory: Path, checkpoint: Checkpoint, nodes: Mapping[int, bytes]) -> Path:
    """Write a checkpoint of the run in `directory`, and drop all but the last two.

    Those of more samples go too: they are of a course of the run that was given up.

    Raises:
        CheckpointError: it cannot be written; those that were there are there still.
    """
    folder = directory / "checkpoints"
    path = folder / str(checkpoint.samples)
    contents = {_node_file(rank): nodes[rank] for rank in checkpoint.nodes}
    contents["experiment.yaml"] = yaml.safe_dump(checkpoint.experiment, sort_keys=False).encode()
    try:
        write_directory(path, contents | {"checkpoint.json": _summary(checkpoint, contents)})
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"the checkpoint {path} cannot be written: {reason}") from error
    earlier = [samples for samples in _committed(folder) if samples <= checkpoint.samples]
    for samples in _committed(folder):
        if samples not in earlier[-KEPT:]:
            shutil.rmtree(folder / str(samples), ignore_errors=True)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in that directory; every file of it is read and compared with its sum.

    Raises:
        CheckpointError: what is missing, damaged or of a newer version.
    """
    summary = _listed(path)
    for name in summary["files"]:
        _content(path, summary, name)
    try:
        found = Checkpoint(
            experiment=yaml.safe_load(_content(path, summary, "experiment.yaml")),
            samples=int(summary["samples"]),
            seconds=float(summary["seconds"]),
            tickets=int(summary["tickets"]),
            steps=int(summary["steps"]),
            bytes=int(summary["bytes"]),
            metrics=tuple(_metrics(row) for row in summary["metrics"]),
            nodes=tuple(int(rank) for rank in summary["nodes"]),
            versions=dict(summary["versions"]),
            path=path,
        )
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path / 'checkpoint.json'} is damaged: {_line(error)}") from error
    return found


def latest_checkpoint(directory: Path) -> tuple[Checkpoint, list[str]]:
    """The last whole checkpoint of the run in `directory`, and a note for each that is not whole.

    Raises:
        CheckpointError: there is none.
    """
    notes: list[str] = []
    for samples in reversed(_committed(directory / "checkpoints")):
        try:
            return load_checkpoint(directory / "checkpoints" / str(samples)), notes
        except CheckpointError as error:
            notes.append(f"{error}; the checkpoint before it is taken")
    if notes:
        raise CheckpointError(notes[0].rpartition(";")[0] + ", and there is no other")
    raise CheckpointError(f"{directory} has no checkpoint to resume from")


def _node_file(rank: int) -> str:
    return f"node-{rank}.safetensors"


def _committed(folder: Path) -> list[int]:
    """The numbers of samples of the checkpoints that are there, in order."""
    if not folder.is_dir():
        return []
    put_back(folder)
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _summary(checkpoint: Checkpoint, contents: Mapping[str, bytes]) -> bytes:
    described = {
        "format": FORMAT,
        **{
            name: getattr(checkpoint, name)
            for name in ("samples", "seconds", "tickets", "steps", "bytes", "nodes", "versions")
        },
        "metrics": [
            {k: None if math.isnan(v) else v for k, v in dataclasses.asdict(row).items()}
            for row in checkpoint.metrics
        ],
        "files": {
            name: {"bytes": len(content), "crc32": zlib.crc32(content)}
            for name, content in contents.items()
        },
    }
    return (json.dumps(described | {"crc32": _sum(described)}, indent=2) + "\n").encode()


def _sum(summary: Mapping[str, Any]) -> int:
    """Of what checkpoint.json says beside this."""
    said = {name: value for name, value in summary.items() if name != "crc32"}
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def _listed(path: Path) -> dict[str, Any]:
    """What checkpoint.json says."""
    file = path / "checkpoint.json"
    try:
        summary = json.loads(file.read_bytes())
        version, sums = summary["format"], summary["files"]
        whole = all(isinstance(s["bytes"] + s["crc32"], int) for s in sums.values())
    except FileNotFoundError:
        raise CheckpointError(f"{path} has no checkpoint.json: it is no checkpoint") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged: {_line(error)}") from error
    if version != FORMAT or not whole:
        raise CheckpointError(
            f"{path} was written by another version of offbeat: it has format {version}, and this "
            f"one reads {FORMAT}"
        )
    if summary.get("crc32") != _sum(summary):
        raise CheckpointError(f"{file} is damaged: its contents have changed")
    return summary


def _content(path: Path, summary: Mapping[str, Any], name: str) -> bytes:
    """Of a file that checkpoint.json lists, as it was written."""
    file = path / Path(name).name
    expected = summary["files"].get(name)
    if expected is None:
        raise CheckpointError(f"{path / 'checkpoint.json'} is damaged: it lists no {name}")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    if len(content) != expected["bytes"]:
        raise CheckpointError(
            f"{file} is damaged: it has {len(content):,} bytes, and had {expected['bytes']:,}"
        )
    if zlib.crc32(content) != expected["crc32"]:
        raise CheckpointError(f"{file} is damaged: its contents have changed")
    return content


def _metrics(row: Mapping[str, Any]) -> Metrics:
    values: dict[str, Any] = {k: math.nan if v is None else v for k, v in row.items()}
    return Metrics(**values)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
