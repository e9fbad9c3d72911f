"""Saved runs, side by side, if they are like with like."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..experiment import to_config
from ..labels import label
from ..likeness import differing, settings, shown, within
from ..runs import Run, load_run, run_directories
from .methods import check_goals, learning_rate
from .results import Comparison, Entry, common_seconds

FREE = ("method", "optimizer.lr", "seed")
"""Settings in which methods' runs differ as a matter of course."""

NOTED = ("evaluator", "threads", "device", "evaluate_every")
"""Settings that change the last bits, or how finely runs are looked at: a note says so."""

LISTED = 3
"""Differences that a refusal names."""


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """A run that has been read: where it lies, and its settings by name."""

    where: Path
    run: Run
    flat: dict[str, Any]


def compare_runs(
    directories: Sequence[Path | str],
    *,
    target: float = 0.93,
    seconds: float | None = None,
    varying: Sequence[str] = (),
) -> Comparison:
    """The comparison of saved runs; those that differ in their seed only make one entry.

    Args:
        directories: run directories, directories of them, or directories of sweeps.
        target: the accuracy that time and samples are counted to.
        seconds: the common time of the comparison at equal time; if not given, the end of the run
            that ended first.
        varying: settings that may differ, such as "cluster" or "cluster.workers".

    Raises:
        ValueError: in one line, if the runs cannot be read or are not like with like.
    """
    check_goals(target, seconds)
    found = [_read(where) for where in _directories(directories)]
    first = found[0]
    named = set[str]().union(*(saved.flat for saved in found))
    for field in varying:
        if not any(within(name, field) for name in named):
            raise ValueError(f"--varying {field}: these runs have no such setting")
    _require_alike(found, varying)
    groups = _groups(found)
    if not any(within("seed", field) for field in varying):
        _require_same_seeds(groups)
    differ = [
        name
        for name in dict.fromkeys(n for s in found for n in differing(first.flat, s.flat))
        if name != "seed" and any(within(name, field) for field in varying)
    ]
    entries = [_entry(group, differ, target) for group in groups]
    noted = [
        name
        for name in NOTED
        if len({str(saved.flat.get(name)) for saved in found}) > 1 and name not in differ
    ]
    return Comparison(
        entries=entries,
        experiment=first.run.experiment,
        rates=(),
        seeds=tuple(dict.fromkeys(saved.run.experiment.seed for saved in found)),
        target=target,
        tune="none",
        judged_on=first.run.experiment.evaluate_on,
        seconds=seconds if seconds is not None else common_seconds(entries),
        notes=[f"{name} is not the same for all runs" for name in noted],
    )


def _directories(given: Sequence[Path | str]) -> list[Path]:
    """The run directories that are named, or lie one level below a named one or its cells/.

    Raises:
        ValueError: in one line, where there is none.
    """
    found: list[Path] = []
    for text in given:
        folder = Path(text)
        if not folder.is_dir():
            raise ValueError(f"there is no directory {folder}")
        here = run_directories(folder)
        if not here:
            raise ValueError(f"{folder} is no run directory, and holds none")
        found += here
    places = [folder.resolve() for folder in found]
    for k, folder in enumerate(found):
        if places[k] in places[:k]:
            raise ValueError(f"{folder} is given twice")
    return found


def _read(where: Path) -> _Saved:
    run = load_run(where)
    if not run.metrics:
        raise ValueError(f"{where} holds a run without any evaluation")
    return _Saved(
        where=where, run=run, flat={"mode": run.mode} | settings(to_config(run.experiment))
    )


def _require_alike(found: Sequence[_Saved], varying: Sequence[str]) -> None:
    first = found[0]
    told: dict[str, str] = {}
    for saved in found[1:]:
        for name in differing(first.flat, saved.flat):
            if not any(within(name, field) for field in (*FREE, *NOTED, *varying)):
                one, other = shown(first.flat, name), shown(saved.flat, name)
                told.setdefault(
                    name, f"{name} is {one} in {first.where} and {other} in {saved.where}"
                )
    if told:
        more = f"; and {len(told) - LISTED} more" if len(told) > LISTED else ""
        raise ValueError(
            f"these runs are not like with like: {'; '.join(list(told.values())[:LISTED])}{more}"
            f" (what differs on purpose is permitted by --varying {next(iter(told))})"
        )


def _groups(found: Sequence[_Saved]) -> list[list[_Saved]]:
    """Runs that differ in nothing but their seed, and in what is noted only."""
    groups: dict[str, list[_Saved]] = {}
    for saved in found:
        flat = {k: v for k, v in saved.flat.items() if k not in ("seed", *NOTED)}
        groups.setdefault(json.dumps(flat, sort_keys=True, default=str), []).append(saved)
    for group in groups.values():
        by_seed: dict[int, Path] = {}
        for saved in group:
            twin = by_seed.setdefault(saved.run.experiment.seed, saved.where)
            if twin is not saved.where and saved.run.mode == "simulated":
                raise ValueError(f"{twin} and {saved.where} are of one experiment and one seed")
    return list(groups.values())


def _require_same_seeds(groups: Sequence[Sequence[_Saved]]) -> None:
    seeds = [sorted(saved.run.experiment.seed for saved in group) for group in groups]
    for group, others in zip(groups, seeds, strict=True):
        if others != seeds[0]:
            one, other = (", ".join(map(str, some)) for some in (seeds[0], others))
            raise ValueError(
                f"these runs are not like with like: there are seeds {one} of the experiment in "
                f"{groups[0][0].where} and {other} of that in {group[0].where} (what differs on "
                "purpose is permitted by --varying seed)"
            )


def _entry(group: Sequence[_Saved], differ: Sequence[str], target: float) -> Entry:
    runs = [saved.run for saved in group]
    experiment, flat = runs[0].experiment, group[0].flat
    return Entry(
        label=label(experiment.method),
        method=experiment.method,
        rate=learning_rate(experiment),
        at_edge=False,
        trials=[],
        runs=runs,
        target=target,
        error=next((run.error for run in runs if run.error), None),
        varying={name: shown(flat, name) for name in differ},
    )
