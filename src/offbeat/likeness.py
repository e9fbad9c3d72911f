"""Likeness: in which settings experiments differ, by the names that a command line has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABSENT = object()


def settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """An experiment's YAML form as `{"cluster.workers": 4, "optimizer": "SGD", ...}`."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = f"{prefix}{key}"
        if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
            flat[path] = value
        elif "class_path" in value:
            flat[path] = value["class_path"]
            flat |= settings(value.get("init_args") or {}, f"{path}.")
        elif value:
            flat |= settings(value, f"{path}.")
        else:
            flat[path] = {}
    return flat


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names under which two experiments' settings differ, in order.

    Where classes differ their own settings are left out: they say no more.
    """
    found: list[str] = []
    for name in {**one, **other}:
        below = any(within(name, above) for above in found)
        if not below and one.get(name, ABSENT) != other.get(name, ABSENT):
            found.append(name)
    return found


def within(name: str, field: str) -> bool:
    """Whether a setting is that field, or one of its parts."""
    return name == field or name.startswith(f"{field}.")


def shown(flat: Mapping[str, Any], name: str) -> str:
    """A setting's value, as text."""
    if name not in flat:
        return "not set"
    value = flat[name]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str) and "(" not in value:
        return value.rpartition(".")[2]
    return "null" if value is None else str(value)
