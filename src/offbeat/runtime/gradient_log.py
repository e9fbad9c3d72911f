"""Gradient log: what a user's loop handed over, kept so that the job can be replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..method import Method
from ..node import Node
from ..suspensions import GradientRequest
from .compute import EvaluationBuffer
from .replay import Replay
from .team import Team
from .trained import Trained


class GradientLog:
    """What a rank's loop began with and handed over, raw, for replay: vectors (d,) in order."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._folder = folder
        self._rank = rank
        self._file = gradients_path(folder, rank).open("wb")
        self._settings = settings_path(folder, rank).open("w")

    def begin(self, start: Tensor) -> None:
        if self._rank == 0:
            torch.save(start, self._folder / "start.pt")

    def append(self, vector: Tensor) -> None:
        self._file.write(vector.detach().cpu().contiguous().numpy().tobytes())

    def retuned(self, settings: list[dict[str, Any]]) -> None:
        self._settings.write(json.dumps(settings) + "\n")

    def close(self) -> None:
        self._file.close()
        self._settings.close()


def settings_path(folder: Path, rank: int) -> Path:
    return folder / f"node-{rank}.settings"


def gradients_path(folder: Path, rank: int) -> Path:
    return folder / f"node-{rank}.gradients"


def replay_loop(
    directory: str | Path,
    model: nn.Module,
    optimizer: Optimizer,
    *,
    method: Method,
    workers: int,
    seed: int = 0,
) -> Tensor:
    """Run a job recorded by `distribute(..., record=directory)` again in this process.

    `model` and `optimizer` are made as the job made them, `method`, `workers` and `seed` are the
    job's. Returns the common model (d,), equal to the job's to the bit.

    Raises:
        JournalError: a journal is missing, damaged, or of another job.
    """
    folder = Path(directory)
    trained = Trained(model, optimizer)
    buffer = EvaluationBuffer(trained)
    start = torch.load(folder / "start.pt", weights_only=True)
    buffer.flat.copy_(start)
    team = Team(trained.named, optimizer, buffer, method, workers, seed)
    logs = {
        rank: torch.from_file(
            str(gradients_path(folder, rank)),
            size=gradients_path(folder, rank).stat().st_size // start.element_size(),
            dtype=start.dtype,
        ).view(-1, len(start))
        for rank in range(workers)
    }

    def recorded(node: Node, request: GradientRequest) -> tuple[Tensor, float]:
        return logs[node.rank][request.step], float("nan")

    changes = {
        rank: [json.loads(line) for line in settings_path(folder, rank).read_text().splitlines()]
        for rank in range(workers)
    }

    def settings(node: Node, change: int) -> list[dict[str, Any]]:
        # A server lives on the rank of its own number.
        rank = node.rank - workers if node.is_server else node.rank
        return changes[rank][change]

    follower = Replay(method, folder, recorded, settings)
    for rank in range(workers + method.server_count):
        follower.add(team.node(rank, follower))
    follower.follow()
    return method.model(list(follower.scheduler.nodes.values()))
