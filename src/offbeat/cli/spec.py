"""Objects that an argument describes: `Ring`, `Torus(rows=4)`, `my_file.py:MyMethod(scale=2)`."""

from __future__ import annotations

from typing import Any, TypeVar

from jsonargparse import ArgumentParser

from ..calls import config_of
from .commands import parsed_options
from .errors import UsageError

T = TypeVar("T")


def spec_of(text: str, base: type[T]) -> T:
    """The instance of a subclass of `base` that `text` means.

    Raises:
        UsageError: in one line, for what cannot be read or built.
    """
    key = base.__name__.lower()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{key}", type=base)
    try:
        config = config_of(text)
    except ValueError as error:
        raise UsageError(str(error)) from error
    parsed: Any = parsed_options(parser, parser.parse_object, {key: config})
    return parsed_options(parser, parser.instantiate, parsed)[key]
