"""Parsers of the commands, and what their `--help` says."""

from __future__ import annotations

import importlib
from argparse import Action
from collections.abc import Sequence

import torch
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from ..optim import Delayed
from ..problems import PROBLEMS, Problem
from ..stepping import UNUSABLE
from .errors import UsageError

KNOWN = ", known subclasses: "
DEFAULT = ", default: %(default)s"


class HelpFormatter(DefaultHelpFormatter):
    """jsonargparse's help without defaults that say nothing and classes that cannot be chosen."""

    def _get_help_string(self, action: Action) -> str:
        text = super()._get_help_string(action)
        if action.default is None or action.default == []:
            text = text.replace(DEFAULT, "")
        begin, known, listed = text.rpartition(KNOWN)
        if not known:
            return text
        paths = listed.removesuffix(")").split(", ")
        return f"{begin}{KNOWN}{', '.join(path for path in paths if can_be_chosen(path))})"


def can_be_chosen(path: str) -> bool:
    """Whether an option can name the class: it can be found, is no base of others, and works."""
    module, _, name = path.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    if issubclass(made, Problem):
        return name in PROBLEMS or not module.startswith("offbeat.")
    return made not in (torch.optim.Optimizer, Delayed) and name not in UNUSABLE


def command_parser(command: str, purpose: str | None) -> ArgumentParser:
    """A parser for the options of `offbeat COMMAND`."""
    return ArgumentParser(
        prog=f"offbeat {command}",
        exit_on_error=False,
        allow_abbrev=False,
        description=purpose,
        formatter_class=HelpFormatter,
    )


def take_no_options(command: str, purpose: str | None, options: Sequence[str]) -> None:
    """Print the help of a command that only lists things, or refuse any other option.

    Raises:
        UsageError: for an option that is not help.
        SystemExit: after the help.
    """
    if "-h" in options or "--help" in options:
        command_parser(command, purpose).parse_args(["--help"])
    if options:
        raise UsageError(f"`offbeat {command}` takes no options, not {' '.join(options)}")
