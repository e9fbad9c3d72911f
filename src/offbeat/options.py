"""Options as they are typed, in the form that jsonargparse reads."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .calls import config_of, is_call
from .userfile import import_path, is_reference

CLASSES = ("method", "problem", "optimizer", "schedule", "partition")
"""The parts of an experiment that name a class."""


def spelled_out(options: Sequence[str]) -> list[str]:
    """Without what only people write: short forms, calls, names in files, flags without a value.

    Raises:
        ValueError: in one line, for a class or a file that cannot be read.
    """
    long = [_imported(_unshortened(option)) for option in options]
    return _without_bare_flags(_without_calls(long))


def value_of(option: str, options: Sequence[str]) -> str | None:
    """The last value given to that option."""
    found = None
    for k, text in enumerate(options):
        if text.startswith(f"{option}="):
            found = text.partition("=")[2]
        elif text == option and k + 1 < len(options):
            found = options[k + 1]
    return found


def _unshortened(option: str) -> str:
    """`--workers` means `--cluster.workers`."""
    short = option.partition("=")[0] == "--workers"
    return f"--cluster.{option.removeprefix('--')}" if short else option


def _imported(option: str) -> str:
    """An option whose value `my_file.py:MyMethod` has become the dotted name of what it names."""
    key, equals, value = option.partition("=")
    if is_reference(option):
        return import_path(option)
    if key.startswith("--") and equals and is_reference(value):
        return f"{key}={import_path(value)}"
    return option


def _without_calls(options: Sequence[str]) -> list[str]:
    """`--method 'LocalSGD(local_steps=4)'` with the call in the form that config files have."""
    result: list[str] = []
    before = ""
    for option in options:
        key, equals, value = option.partition("=")
        if _may_name_a_class(before) and is_call(option):
            result.append(json.dumps(config_of(option)))
        elif equals and _may_name_a_class(key) and is_call(value):
            result.append(f"{key}={json.dumps(config_of(value))}")
        else:
            result.append(option)
        before = option
    return result


def _may_name_a_class(option: str) -> bool:
    part = option.removeprefix("--").partition(".")[0]
    return option.startswith("--") and part in (*CLASSES, "cluster")


def _without_bare_flags(options: Sequence[str]) -> list[str]:
    """`--inject` alone means `--inject true`."""
    result: list[str] = []
    for k, option in enumerate(options):
        following = options[k + 1] if k + 1 < len(options) else ""
        bare = option == "--inject" and following.lower() not in ("true", "false")
        result.append("--inject=true" if bare else option)
    return result
