"""Names from a user's own file: `my_file.py:MyMethod` wherever a class is named.

The file is imported under its stem, with its folder on `sys.path`, so that what is pickled to a
spawned process is found there under the same name.
"""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_REFERENCE = re.compile(r"(?P<file>[^\s:=]+\.py):(?P<name>[A-Za-z_]\w*)")


def is_reference(text: str) -> bool:
    """Whether `text` has the form `my_file.py:MyMethod`."""
    return _REFERENCE.fullmatch(text) is not None


def import_path(reference: str) -> str:
    """Import the file of `my_file.py:MyMethod`; the dotted name `my_file.MyMethod`.

    Raises:
        ValueError: in one line, if there is no such file or name, or the file fails.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ValueError(f"{reference!r} does not have the form my_file.py:MyMethod")
    path = Path(match["file"]).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"there is no file {match['file']} to take {match['name']} from")
    module = _import(path)
    if not hasattr(module, match["name"]):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == path.stem]
        close = difflib.get_close_matches(match["name"], own, n=3, cutoff=0.4) or own[:5]
        has = f"; it has {', '.join(close)}" if close else ""
        raise ValueError(f"{match['file']} has no {match['name']}{has}")
    return f"{path.stem}.{match['name']}"


def reference(made: Any) -> str:
    """The name under which a class or function can be found again: the inverse of `import_path`.

    `package.module.Name` for what is installed, `/folder/my_file.py:Name` for what is not.
    """
    module = sys.modules.get(made.__module__)
    name = made.__module__
    if name == "__main__" and module is not None and getattr(module, "__spec__", None) is not None:
        name = module.__spec__.name  # pyright: ignore[reportOptionalMemberAccess]
    file = getattr(module, "__file__", None)
    if module is not None and file is not None and not getattr(module, "__package__", None):
        path = Path(file).resolve()
        if "site-packages" not in path.parts:
            return f"{path}:{made.__qualname__}"
    return f"{name}.{made.__qualname__}"


def _import(path: Path) -> ModuleType:
    folder = str(path.parent)
    if folder not in sys.path:
        # At the end, so that the user's files hide no installed module.
        sys.path.append(folder)
    try:
        module = importlib.import_module(path.stem)
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(f"cannot import {path}: {type(error).__name__}: {text}") from error
    found = getattr(module, "__file__", None)
    if found is None or Path(found).resolve() != path:
        raise ValueError(
            f"cannot import {path}: there is another module named {path.stem}; rename the file"
        )
    return module
