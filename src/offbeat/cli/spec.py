"""Classes with settings, written as calls: `Name(setting=value)`, `my_file.py:Name(...)`."""

from __future__ import annotations

import ast
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

from ..userfile import import_path, is_reference
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
    parsed: Any = parsed_options(parser, parser.parse_object, {key: config_of(text)})
    return parsed_options(parser, parser.instantiate, parsed)[key]


def config_of(text: str) -> dict[str, Any]:
    """What `text` means, in the form that config files have.

    Raises:
        UsageError: in one line, for what cannot be read.
    """
    name, bracket, settings = text.partition("(")
    try:
        dotted = import_path(name) if is_reference(name) else name
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        spec = _spec(ast.parse(f"{dotted}{bracket}{settings}", mode="eval").body)
    except (SyntaxError, ValueError):
        raise UsageError(f"cannot read {text!r}; write Name or Name(setting=value)") from None
    return {"class_path": spec} if isinstance(spec, str) else spec


def _spec(node: ast.expr) -> Any:
    """jsonargparse's form of a call with keywords, of a name, of a list or of a literal."""
    if isinstance(node, ast.Call):
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise ValueError("settings have names")
        settings = {str(keyword.arg): _spec(keyword.value) for keyword in node.keywords}
        return {"class_path": _spec(node.func), "init_args": settings}
    if isinstance(node, ast.Name | ast.Attribute):
        return ast.unparse(node)
    if isinstance(node, ast.List | ast.Tuple):
        return [_spec(item) for item in node.elts]
    return ast.literal_eval(node)
