"""Which runs a report is of, and in which order."""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...labels import file_name
from ...runs import Run, load_run, run_directories
from .names import marked, problem_key, run_names


@dataclass(frozen=True, kw_only=True)
class Named:
    """A run under the name that the report gives it; `directory` if it was read from one."""

    name: str
    run: Run
    directory: Path | None = None


def find_runs(directories: Iterable[Path | str]) -> list[Path]:
    """The run directories among and directly below these, and below their `cells`.

    Those of a comparison are in the order of its comparison.csv, all others in that of their names.

    Raises:
        ValueError: in one line, if one of them holds no finished run.
    """
    found: list[Path] = []
    for given in map(Path, directories):
        if not given.is_dir():
            raise ValueError(f"there is no directory {given}")
        order = _order(given / "comparison.csv")
        # Sorting keeps the order of what is not in the table.
        inside = sorted(run_directories(given), key=lambda p: order.get(p.name, len(order)))
        if not inside:
            raise ValueError(
                f"{given} has no run.json: it is no run directory, or its run did not finish, "
                "and no directory of such"
            )
        found += inside
    return list(dict.fromkeys(found))


def named_runs(runs: Mapping[str, Run | Path | str] | Iterable[Run | Path | str]) -> list[Named]:
    """Every run with a name of its own: the one given, or its method with what sets it apart.

    Raises:
        ValueError: in one line, if there are none, or one cannot be read.
    """
    if isinstance(runs, Mapping):
        named = [
            Named(name=marked(str(name), run), run=run, directory=directory)
            for name, source in runs.items()
            for run, directory in _loaded([source])
        ]
    else:
        loaded = _loaded(runs)
        names = run_names([run for run, _ in loaded])
        named = [
            Named(name=marked(name, run), run=run, directory=directory)
            for name, (run, directory) in zip(names, loaded, strict=True)
        ]
    if not named:
        raise ValueError("there is no run to report on; give at least one run directory")
    keys = [(entry.name, problem_key(entry.run)) for entry in named]
    seen: Counter[tuple[str, str]] = Counter()
    for k, (entry, key) in enumerate(zip(named, keys, strict=True)):
        seen[key] += 1
        if keys.count(key) > 1:
            named[k] = dataclasses.replace(entry, name=f"{entry.name} ({seen[key]})")
    return named


def _loaded(sources: Iterable[Run | Path | str]) -> list[tuple[Run, Path | None]]:
    loaded: list[tuple[Run, Path | None]] = []
    for source in sources:
        if isinstance(source, Run):
            loaded.append((source, None))
        else:
            loaded += [(load_run(path), path) for path in find_runs([source])]
    return loaded


def _order(table: Path) -> dict[str, int]:
    """The place of each run in a comparison's table, by the name of its directory."""
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = list(csv.DictReader(file))
    order: dict[str, int] = {}
    for k, row in enumerate(rows):
        method = row.get("method") or ""
        for text in (method, f"{method} seed {row.get('seed')}"):
            order.setdefault(file_name(text), k)
    return order
