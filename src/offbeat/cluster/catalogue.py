"""Catalogue: clusters that have a name, as YAML files in `presets/`."""

from __future__ import annotations

import difflib
from importlib import resources
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from .description import Cluster

Config = dict[str, Any]


def preset_names() -> list[str]:
    """The names of all presets."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir())


def about(name: str) -> str:
    """What that preset is, in one line."""
    return str(_read(name)["about"])


def preset(name: str, *, workers: int | None = None) -> Cluster:
    """The cluster of that name, such as `preset("one-straggler", workers=16)`.

    Args:
        name: one of those that `offbeat clusters` lists.
        workers: how many, instead of the preset's own number. With fewer of them what the preset
            says of the others is left out.

    Raises:
        ValueError: there is no such preset.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Cluster, "cluster")
    parsed = parser.parse_object({"cluster": preset_config(name, workers)})
    return Cluster(**vars(parser.instantiate(parsed).cluster))


def preset_config(name: str, workers: int | None = None) -> Config:
    """The preset as the YAML form of a `Cluster`; arguments and errors as of `preset`."""
    config: Config = _read(name)["cluster"]
    if workers is None:
        return config
    return _trimmed(config | {"workers": workers}, workers)


def _trimmed(config: Config, workers: int) -> Config:
    """Without what names workers that are not there. Presets name no servers."""
    for key in ("slow", "computes", "access"):
        if key in config:
            config[key] = {node: value for node, value in config[key].items() if node < workers}
    if "faults" in config:
        config["faults"] = [fault for fault in config["faults"] if fault["rank"] < workers]
    for key, nodes in (("sites", "nodes"), ("outages", "isolated")):
        kept = [
            entry | {nodes: [node for node in entry[nodes] if node < workers]}
            for entry in config.get(key, [])
        ]
        if key in config:
            config[key] = [entry for entry in kept if entry[nodes]]
    if not config.get("sites"):
        config.pop("backbone", None)
    return config


def _read(name: str) -> Config:
    names = preset_names()
    if name not in names:
        close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"
        raise ValueError(f"there is no cluster {name}; {hint}")
    content: Config = yaml.safe_load(_folder().joinpath(f"{name}.yaml").read_text())
    return content


def _folder() -> Any:
    return resources.files("offbeat.cluster").joinpath("presets")
