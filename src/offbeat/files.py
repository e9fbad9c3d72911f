"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

PART = ".part-"
"""How the names of files and directories begin that are not complete yet."""


@contextmanager
def whole(path: Path) -> Generator[Path]:
    """Where to write a file that takes the name `path` when the block has ended well."""
    part = path.with_name(f"{PART}{path.name}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
