"""Durable: directories that get their name only once they are whole and on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ..files import PART

_OLD = f"{PART}old-"
"""How the name begins of one that is just being replaced."""


def write_directory(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write a directory of files, in their order; one that is there already is replaced.

    Whenever this is killed, `put_back` finds the old one or the new one whole.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    folder = path.parent
    draft = folder / f"{PART}{path.name}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        draft.mkdir()
        for name, content in contents.items():
            _write(draft / name, content)
        _sync(draft)
        if path.exists():
            # There is no single step for this.
            old = folder / f"{_OLD}{path.name}"
            os.rename(path, old)
            os.rename(draft, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(draft, path)
        _sync(folder)
        _sync(folder.parent)
    except OSError:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def put_back(folder: Path) -> None:
    """Undo a replacement in that folder that was cut short between its two steps."""
    for old in folder.glob(f"{_OLD}*"):
        path = folder / old.name.removeprefix(_OLD)
        if not path.exists():
            os.rename(old, path)


def _tidy(folder: Path) -> None:
    """Remove what writers that were killed have left."""
    put_back(folder)
    for left in folder.glob(f"{PART}*"):
        shutil.rmtree(left, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    """Write a file, and wait until it is on the disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
