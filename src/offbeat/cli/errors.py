"""Errors of the command line: one line that says what was wrong, the value, and what to do."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jsonargparse import ArgumentParser

from .. import cluster, compression, optim, schedule
from ..methods import METHODS
from ..methods.staleness import StalenessRule
from ..problems import PROBLEMS, Partition
from ..topology import TOPOLOGIES


class UsageError(ValueError):
    """Bad input; the text is one line for the user."""


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The known names that look like `name`, as the end of a sentence; else `otherwise`."""
    by_lower = {k.lower(): k for k in known}
    by_lower |= {"".join(c for c in k if c.isupper()).lower(): k for k in by_lower.values()}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    names = dict.fromkeys(by_lower[k] for k in close)
    return f"; did you mean {' or '.join(names)}?" if names else otherwise


def explain(error: Exception, parser: ArgumentParser) -> str:
    """One line out of jsonargparse's nested messages."""
    text = str(error)
    unknown = re.match(r"unrecognized arguments: (\S+)", text)
    if unknown:
        return _unknown_option(unknown[1].partition("=")[0], parser)
    keys: list[str] = re.findall(r'Parser key "([^"]+)"', text)
    path = ".".join(keys)
    path = re.sub(r"\b(\w+)\.\1\b", r"\1", path)
    group = re.search(r"Group '([^']+)' does not accept option '([^']+)'", text)
    if group:
        return _unknown_option(f"--{group[1]}.{group[2]}", parser)
    unaccepted = re.search(r"Option '([^']+)' is not accepted", text)
    if unaccepted:
        return _unaccepted(unaccepted[1], path, text, parser)
    missing = re.search(r"arguments? (?:is|are) required: (.+)", text)
    if missing:
        return _missing(missing[1], path)
    name = re.search(r"Expected a dot import path string: (\S+)", text)
    kind = keys[-1].rpartition(".")[2] if keys else ""
    if name and "Union" not in text and kind in KINDS:
        return _unknown_class(name[1], path, kind)
    absent = re.search(r"No module named|has no attribute '", text)
    named = re.search(r"given class_path '([^']+)'|Got value: ([\w.]+)", text)
    if absent and kind in KINDS:
        wanted: str = (named[1] or named[2]) if named else re.findall(r"'([^']+)'", text)[-1]
        return _unknown_class(wanted, path, kind)
    foreign = re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", text)
    if foreign:
        return (
            f"{path}: {foreign[1]} is no {foreign[2]}; name a subclass of it, or a function "
            f"whose result is annotated `-> {foreign[2]}`"
        )
    value = re.search(r"(?:Got value|Given value): (.+?)(?:\. Got value: .*)?$", text, re.MULTILINE)
    got = f", not {one_line(value[1])!r}" if value else ""
    choices = re.search(r"Expected a typing\.Literal\[([^\]]+)\]", text)
    if choices:
        return f"{path} must be one of {choices[1]}{got}"
    types: list[str] = list(dict.fromkeys(re.findall(r"Expected a <class '([\w.]+)'>", text)))
    if types:
        return f"{path} must be {' or '.join(TYPES.get(t, t) for t in types)}{got}"
    last = text.strip().rpartition("\n")[2] if keys else text
    return f"{path}: {one_line(last)}" if path else one_line(last)


TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "dict": "a mapping",
    "NoneType": "null",
}

KINDS: dict[str, tuple[str, Sequence[str], str]] = {
    "method": ("method", list(METHODS), "`offbeat methods` lists them"),
    "inner": ("method", list(METHODS), "`offbeat methods` lists them"),
    "topology": ("topology", list(TOPOLOGIES), ""),
    "compressor": (
        "compressor",
        [c.__name__ for c in compression.Compressor.__subclasses__()],
        "",
    ),
    "rule": ("staleness rule", [c.__name__ for c in StalenessRule.__subclasses__()], ""),
    "problem": ("problem", list(PROBLEMS), ""),
    "compute": ("compute time", [c.__name__ for c in cluster.ComputeTime.__subclasses__()], ""),
    "partition": ("partition", [c.__name__ for c in Partition.__subclasses__()], ""),
    "schedule": ("schedule", [c.__name__ for c in schedule.Schedule.__subclasses__()], ""),
    "optimizer": (
        "optimizer",
        [
            name
            for module in (torch.optim, optim)
            for name, value in vars(module).items()
            if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
        ],
        "give a class of torch.optim or offbeat.optim",
    ),
}


def _unknown_class(name: str, path: str, kind: str) -> str:
    word, known, otherwise = KINDS.get(kind, (kind, [], ""))
    listed = otherwise or f"there are {', '.join(known)}"
    hint = nearest(name.rpartition(".")[2], known, f"; {listed}")
    where = f"{path}: " if path and path != kind else ""
    return f"{where}there is no {word} {name}{hint}"


def _unknown_option(option: str, parser: ArgumentParser) -> str:
    if not option.startswith("-"):
        return f"{option!r} is no option; `{parser.prog} --help` lists them"
    known = [
        text
        for action in parser._actions
        for text in action.option_strings
        if not text.endswith(".help")
    ]
    hint = nearest(option, known, f"; `{parser.prog} --help` lists all")
    return f"there is no option {option}{hint}"


def _unaccepted(option: str, path: str, text: str, parser: ArgumentParser) -> str:
    # Of a method or problem, or else of an optimizer, whose parameters are bound later.
    classes: list[str] = re.findall(r"Problem with given class_path '([^']+)'", text)
    classes = classes or re.findall(r"Got value: Namespace\(class_path='([^']+)'", text)
    if classes:
        module, _, name = classes[-1].rpartition(".")
        made: Any = getattr(__import__(module, fromlist=[name]), name)
        fields = [f for f in inspect.signature(made).parameters if f != "params"]
        has = f"; it has {', '.join(fields)}" if fields else "; it has none"
        hint = nearest(option, fields, has)
        return f"{path}: {name} has no setting {option!r}{hint}"
    return _unknown_option(f"--{option.removesuffix('.class_path')}", parser)


def _missing(names: str, path: str) -> str:
    if names == "method" and not path:
        return "no method was given: add --method NAME; `offbeat methods` lists them"
    where = f"{path} lacks" if path else "lacking:"
    return f"{where} {names}"
