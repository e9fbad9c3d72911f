"""Which runs a report is of, and what each is called in it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...experiment import to_config
from ...method import Method
from ...runs import Run, load_run


@dataclass(frozen=True, kw_only=True)
class Named:
    """A run under the name that the report gives it; `directory` if it was read from one."""

    name: str
    run: Run
    directory: Path | None = None


def find_runs(directories: Iterable[Path | str]) -> list[Path]:
    """The run directories among and directly below these, and below their `cells`.

    Raises:
        ValueError: in one line, if one of them holds no finished run.
    """
    found: list[Path] = []
    for given in map(Path, directories):
        if not given.is_dir():
            raise ValueError(f"there is no directory {given}")
        if (given / "run.json").is_file():
            found.append(given)
            continue
        below = [*given.iterdir(), *(given / "cells").glob("*")]
        inside = sorted(path for path in below if (path / "run.json").is_file())
        if not inside:
            raise ValueError(
                f"{given} has no run.json: it is no run directory, or of a run unfinished, "
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
            Named(name=str(name), run=run, directory=directory)
            for name, source in runs.items()
            for run, directory in _loaded([source])
        ]
    else:
        loaded = _loaded(runs)
        names = _names([run for run, _ in loaded])
        named = [
            Named(name=name, run=run, directory=directory)
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


def problem_key(run: Run) -> str:
    """Equal for runs whose metrics may share an axis: of one problem, judged on the same part."""
    experiment = run.experiment
    config = to_config(experiment.problem)
    settings = dict(config.get("init_args", {})) if isinstance(config, dict) else {}
    settings.pop("batch_size", None)
    name = type(experiment.problem).__qualname__
    return json.dumps([name, experiment.evaluate_on, settings], default=str)


def method_name(method: Method) -> str:
    """Its class, with the settings that are not the defaults: `LocalSGD(local_steps=4)`."""
    changed = [
        f"{f.name}={_text(getattr(method, f.name))}"
        for f in dataclasses.fields(method)
        if getattr(method, f.name) != _default(f)
    ]
    return type(method).__name__ + (f"({', '.join(changed)})" if changed else "")


def _loaded(sources: Iterable[Run | Path | str]) -> list[tuple[Run, Path | None]]:
    loaded: list[tuple[Run, Path | None]] = []
    for source in sources:
        if isinstance(source, Run):
            loaded.append((source, None))
        else:
            loaded += [(load_run(path), path) for path in find_runs([source])]
    return loaded


def _names(runs: list[Run]) -> list[str]:
    names = [method_name(run.experiment.method) for run in runs]
    configs = [_flat(to_config(run.experiment)) for run in runs]
    problems = [problem_key(run) for run in runs]
    groups = [(name, problem) for name, problem in zip(names, problems, strict=True)]
    for group, count in Counter(groups).items():
        if count == 1:
            continue
        same = [k for k, other in enumerate(groups) if other == group]
        keys = list(dict.fromkeys(key for k in same for key in configs[k]))
        apart = [key for key in keys if len({str(configs[k].get(key)) for k in same}) > 1]
        for k in same:
            settings = [f"{key.rpartition('.')[2]} {configs[k].get(key)}" for key in apart[:4]]
            names[k] = ", ".join([group[0], *settings])
    return names


def _flat(config: Any, path: str = "") -> dict[str, Any]:
    """The leaves of a configuration by their dotted paths; `init_args` is left out of those."""
    if isinstance(config, dict):
        flat: dict[str, Any] = {}
        for key, value in config.items():
            inner = path if key == "init_args" else f"{path}.{key}"
            flat |= _flat(value, inner)
        return flat
    return {path.removeprefix("."): config}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _text(value: Any) -> str:
    if isinstance(value, Method):
        return method_name(value)
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    return str(value)
