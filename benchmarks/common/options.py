"""Options that several scripts have: what is refused, before anything is measured."""

from __future__ import annotations

import argparse
from pathlib import Path


def rounds(text: str) -> int:
    """How often every contestant has its turn.

    Raises:
        argparse.ArgumentTypeError: it is no number, or less than 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rounds; give at least 1")
    return int(text)


def out_file(text: str) -> Path:
    """A file to be written at the end.

    Raises:
        argparse.ArgumentTypeError: its folder is not there.
    """
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no folder {path.parent}; make it first")
    return path
