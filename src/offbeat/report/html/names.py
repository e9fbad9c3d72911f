"""What each run is called in a report: its method, what sets it apart, and whether it was real."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from ...experiment import to_config
from ...labels import label
from ...likeness import differing, settings, shown
from ...runs import Run

UNNAMED = ("evaluator", "threads", "device")
"""Settings that say how a run was computed, not what it is."""

MARKS = {"processes": "real", "loop": "real", "replay": "replay"}
"""What a name adds by mode."""

TOLD = 4
"""Settings that a name holds at most."""


def run_names(runs: Sequence[Run]) -> list[str]:
    """The methods, with the settings in which runs of one method and problem differ."""
    names = [label(run.experiment.method) for run in runs]
    flat = [settings(to_config(run.experiment)) for run in runs]
    groups = list(zip(names, map(problem_key, runs), strict=True))
    for group, count in Counter(groups).items():
        if count == 1:
            continue
        same = [k for k, other in enumerate(groups) if other == group]
        found = {name for k in same for name in differing(flat[same[0]], flat[k])}
        known = dict.fromkeys(name for k in same for name in flat[k])
        apart = [name for name in known if name in found and name not in UNNAMED]
        for k in same:
            told = [_told(flat[k], name) for name in apart[:TOLD]]
            names[k] = ", ".join([group[0], *filter(None, told)])
    return names


def marked(name: str, run: Run) -> str:
    """That name, and after it that the run is not simulated: `AsyncSGD (real)`."""
    mark = MARKS.get(run.mode)
    return name if mark is None else f"{name} ({mark})"


def problem_key(run: Run) -> str:
    """Equal for runs whose metrics may share an axis: of one problem, judged on the same part."""
    experiment = run.experiment
    config = to_config(experiment.problem)
    given = dict(config.get("init_args", {})) if isinstance(config, dict) else {}
    given.pop("batch_size", None)
    name = type(experiment.problem).__qualname__
    return json.dumps([name, experiment.evaluate_on, given], default=str)


def _told(flat: dict[str, object], name: str) -> str:
    """`lr 0.03`; nothing for what is not set."""
    value = flat.get(name)
    if value is None or value in ("", [], {}):
        return ""
    text = shown(flat, name) if isinstance(value, str) else label(value)
    return f"{name.rpartition('.')[2]} {text}"
