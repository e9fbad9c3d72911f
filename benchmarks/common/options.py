"""Options that several scripts have: what is refused, before anything is measured."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

QUICK = "little of it: whether it works at all"


def parser(description: str | None) -> argparse.ArgumentParser:
    """A script's own, with what most of them have: `--quick` and `--out`."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--quick", action="store_true", help=QUICK)
    made.add_argument("--out", type=out_file, help="a file for all figures, as JSON")
    return made


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


def write(figures: Any, out: Path | None) -> None:
    """What `--out` asks for."""
    if out is not None:
        out.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")
