"""Classes with settings, written as calls: `Name(setting=value)`, `my_file.py:Name(...)`."""

from __future__ import annotations

import ast
import re
from typing import Any

from .userfile import import_path, is_reference

_CALL = re.compile(r"[\w./:~-]+\(.*\)", re.DOTALL)


def is_call(text: str) -> bool:
    """Whether `text` has the form `Name(...)`."""
    return _CALL.fullmatch(text) is not None


def config_of(text: str) -> dict[str, Any]:
    """What a name or a call means, in the form that config files have.

    Raises:
        ValueError: in one line, for what cannot be read.
    """
    name, bracket, settings = text.partition("(")
    dotted = import_path(name) if is_reference(name) else name
    try:
        spec = _spec(ast.parse(f"{dotted}{bracket}{settings}", mode="eval").body)
    except (SyntaxError, ValueError):
        raise ValueError(f"cannot read {text!r}; write Name or Name(setting=value)") from None
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
