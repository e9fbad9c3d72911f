"""What came out of a run: its progress, and who met whom where."""

from __future__ import annotations

import functools
import json
import math
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from ..cores import cores_here
from ..files import whole
from .hypergraph import Sparsity
from .schemes import Settings

FILE, ARRAYS = "hogwild.json", "collisions.npz"


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The state after an epoch; the first is that before all.

    Args:
        seconds: of training so far, measured or virtual; without evaluations.
        objective: f(x).
        errors: what else was measured, by its name.
    """

    seconds: float
    objective: float
    errors: dict[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Collisions:
    """How workers met in x, over a whole run.

    Args:
        updates: of each vertex (vertices,) int64.
        collided: of those, the ones before which another worker had updated the vertex since this
            one had read it (vertices,) int64.
        lost: updates that are not in x at the end, as another worker wrote over them (vertices,)
            int64. Exact if simulated; on threads, what counters lost that were added to beside x.
        mean_lag: updates that others finished while one was computed.
        max_lag: the most of them.
    """

    updates: NDArray[np.int64]
    collided: NDArray[np.int64]
    lost: NDArray[np.int64]
    mean_lag: float
    max_lag: int

    @property
    def collision_rate(self) -> float:
        """Fraction of the vertices' updates that collided."""
        return float(self.collided.sum() / max(self.updates.sum(), 1))

    @property
    def loss_rate(self) -> float:
        """Fraction of them that was lost."""
        return float(self.lost.sum() / max(self.updates.sum(), 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A run of a problem under a scheme.

    Args:
        problem: its name and settings, as text.
        settings: of the run; the step is the one that was used.
        simulated: whether the workers, and seconds, are virtual.
        edges: |E|.
        width: coordinates of a vertex.
        sparsity: of the problem.
        optimum: of the objective, where it is known.
        epochs: the start, and the state after each epoch.
        x: at the end (d,).
        collisions: None if nothing was noted.
        machine: processor and cores of a run on threads.
        notes: what a reader of the figures has to know.
    """

    problem: str
    settings: Settings
    simulated: bool
    edges: int
    width: int
    sparsity: Sparsity
    optimum: float | None
    epochs: list[Epoch]
    x: NDArray[Any]
    collisions: Collisions | None = None
    machine: str = ""
    notes: list[str] = field(default_factory=list[str])

    @property
    def seconds(self) -> float:
        return self.epochs[-1].seconds

    @property
    def objective(self) -> float:
        return self.epochs[-1].objective

    @property
    def errors(self) -> dict[str, float]:
        return self.epochs[-1].errors

    @property
    def label(self) -> str:
        """The scheme with what a comparison varies: "hogwild, 2 threads"."""
        kind = "simulated worker" if self.simulated else "thread"
        settings = self.settings
        parts = [settings.scheme, f"{settings.workers} {kind}{'s' * (settings.workers != 1)}"]
        if settings.clusters is not None:
            parts.append(f"{settings.clusters} clusters")
        if settings.adds == "atomic":
            parts.append("atomic")
        if settings.delay:
            parts.append(f"{settings.delay * 1e6:g} us")
        return ", ".join(parts)


_PLAIN = ("problem", "simulated", "edges", "width", "optimum", "machine", "notes")
_LAG = ("mean_lag", "max_lag")
_BY_VERTEX = ("updates", "collided", "lost")


def _to_json(outcome: Outcome) -> dict[str, Any]:
    """All of it but x and what there is of each vertex, as JSON can hold it."""
    found = {name: getattr(outcome, name) for name in _PLAIN}
    met = outcome.collisions
    found |= {
        "settings": asdict(outcome.settings),
        "sparsity": asdict(outcome.sparsity),
        "epochs": [asdict(epoch) for epoch in outcome.epochs],
        "collisions": None if met is None else {name: getattr(met, name) for name in _LAG},
    }
    return _finite(found)


def _finite(data: Any) -> Any:
    """JSON has no infinities."""
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


def _from_json(data: dict[str, Any], met: dict[str, Any]) -> Outcome:
    collisions = data["collisions"]
    return Outcome(
        **{name: data[name] for name in _PLAIN},
        settings=Settings(**data["settings"]),
        sparsity=Sparsity(**data["sparsity"]),
        epochs=[Epoch(**epoch) for epoch in data["epochs"]],
        x=np.empty(0),
        collisions=None if collisions is None else Collisions(**collisions, **met),
    )


def save(outcomes: list[Outcome], directory: Path) -> None:
    """Write hogwild.json and collisions.npz, in a directory that is there."""
    arrays = {
        f"{name}_{k}": getattr(outcome.collisions, name)
        for k, outcome in enumerate(outcomes)
        for name in _BY_VERTEX
        if outcome.collisions is not None
    }
    with whole(directory / ARRAYS) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    with whole(directory / FILE) as part:
        part.write_text(json.dumps(list(map(_to_json, outcomes)), indent=1))


def load(directory: Path) -> list[Outcome]:
    """Read them back, without their x.

    Raises:
        ValueError: in one line, if there are none, or they are damaged.
    """
    path = directory / FILE
    try:
        written: Any = json.loads(path.read_text())
        if not isinstance(written, list) or not written:
            raise ValueError("it holds no list of outcomes")
        with np.load(directory / ARRAYS) as arrays:
            outcomes = list[Outcome]()
            for k, data in enumerate(written):
                names = _BY_VERTEX if data["collisions"] is not None else ()
                outcomes.append(_from_json(data, {name: arrays[f"{name}_{k}"] for name in names}))
            return outcomes
    except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile) as error:
        raise ValueError(f"{path} is no result of `offbeat hogwild`: {error}") from error


@functools.cache
def machine() -> str:
    """This machine's processor, and the cores that this process may use."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            models = [line.partition(":")[2].strip() for line in info if "model name" in line]
        name = models[0] if models else name
    except OSError:
        pass
    cores = cores_here()
    return f"{name}, {cores} core{'s' * (cores != 1)}"
