"""What repeats a run: its experiment as YAML, and the command."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from ...experiment import to_config
from .sources import Named


def settings_text(named: Named) -> str:
    """The run's experiment.yaml."""
    if named.directory is not None:
        return (named.directory / "experiment.yaml").read_text()
    config = to_config(named.run.experiment) | named.run.resolved
    return yaml.safe_dump(config, sort_keys=False)


def repeat_command(named: Named) -> str:
    """The command that repeats the run, from the working directory where the report was made."""
    command = "simulate" if named.run.mode == "simulated" else "run"
    path = Path("experiment.yaml")
    if named.directory is not None:
        path = named.directory / path
    return shlex.join(["offbeat", command, "--config", str(path)])
