"""Labels: the short text that says what a value is, as a command line would."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from .experiment import optimizer_class


def label(value: Any) -> str:
    """`Name(setting=value)` with the settings that differ from their defaults; else plain text."""
    if isinstance(value, functools.partial):
        settings: Mapping[str, Any] = value.keywords
        return _call(optimizer_class(value).__name__, dict(settings))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        settings = {
            f.name: getattr(value, f.name)
            for f in dataclasses.fields(value)
            if f.init and not _is_default(f, getattr(value, f.name))
        }
        return _call(type(value).__name__, settings)
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(label, value))}]"
    if isinstance(value, set | frozenset):
        # In an order that each process has too.
        return f"{{{', '.join(sorted(map(label, value)))}}}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {label(held)}' for key, held in value.items())}}}"
    return "null" if value is None else str(value)


def file_name(label: str) -> str:
    """The name of a label's file or directory: what a shell takes without quotes."""
    return re.sub(r"[^\w.=,-]+", "-", label).strip("-")


def _call(name: str, settings: Mapping[str, Any]) -> str:
    if not settings:
        return name
    return f"{name}({', '.join(f'{key}={label(held)}' for key, held in settings.items())})"


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    try:
        return bool(value == _default(field))
    except (RuntimeError, ValueError):
        return False  # Arrays are equal in some places.


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
