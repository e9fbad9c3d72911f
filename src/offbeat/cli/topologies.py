"""`offbeat topologies NAME...`"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ..report.topologies import Properties, notes, properties, topologies_table
from ..topology import TOPOLOGIES, Topology
from .commands import parsed_options
from .errors import UsageError, one_line
from .output import console
from .parsers import command_parser
from .spec import spec_of

DIGITS = 2410
"""Parameters of the default problem's model."""
SUFFIXES = (".png", ".svg")


def topologies(options: Sequence[str]) -> int:
    """Show what topologies cost and how fast they mix; draw them."""
    parser = command_parser("topologies", topologies.__doc__)
    parser.add_argument(
        "names",
        type=str,
        nargs="*",
        default=[],
        help="such as Ring 'Torus(rows=4)' my_file.py:MyTopology; all that need no settings if "
        "not given",
    )
    parser.add_argument("--workers", type=int, default=16, help="number of workers")
    parser.add_argument(
        "--parameters", type=int, default=DIGITS, help="numbers in a message, of 4 bytes each"
    )
    parser.add_argument("--bytes", type=int | None, help="bytes of a message, instead")
    parser.add_argument("--draw", type=str | None, help="also draw them: a path to .png or .svg")
    parser.add_argument("--round", type=int | None, help="draw this round only, from 0")
    parsed: Any = parsed_options(parser, parser.parse_args, options)
    size: int = parsed.workers
    for option, least in (("workers", 1), ("parameters", 0), ("bytes", 0), ("round", 0)):
        value = parsed[option]
        if value is not None and value < least:
            raise UsageError(f"--{option} is {value}; it must be at least {least}")
    path = None if parsed.draw is None else Path(parsed.draw)
    if path is not None and path.suffix not in SUFFIXES:
        raise UsageError(f"--draw {path}: give a path that ends in {' or '.join(SUFFIXES)}")
    if parsed.round is not None and path is None:
        raise UsageError("--round says which round to draw: add --draw PATH")
    chosen = {text: spec_of(text, Topology) for text in parsed.names or _without_settings()}
    known, reasons = _looked_at(chosen, size)
    out = console(least=118)
    message: int = 4 * parsed.parameters if parsed.bytes is None else parsed.bytes
    drawable = {label: chosen[label] for label, found in known.items() if found is not None}
    if path is not None:
        from ..report.graphs import draw_topologies

        try:
            draw_topologies(drawable, size, path, round=parsed.round)
        except OSError as error:
            raise UsageError(f"cannot write to --draw {path}: {error.strerror or error}") from error
    out.print(topologies_table(known, size, message))
    for note in [*notes(known.values()), *reasons]:
        out.print(note, markup=False, highlight=False, soft_wrap=True)
    if path is not None:
        out.print(f"drawn in {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _looked_at(
    chosen: dict[str, Topology], size: int
) -> tuple[dict[str, Properties | None], list[str]]:
    """What is known of each, and why nothing is of some; UsageError if of none."""
    known: dict[str, Properties | None] = {}
    reasons: list[str] = []
    for label, topology in chosen.items():
        try:
            known[label] = properties(topology, size)
        except ValueError as error:
            known[label] = None
            reasons.append(f"{label}: {one_line(error)}")
    if not any(known.values()):
        raise UsageError("; ".join(reasons).removeprefix(f"{next(iter(chosen))}: "))
    return known, reasons


def _without_settings() -> list[str]:
    """Names of the topologies whose settings all have defaults."""
    return [
        name
        for name, made in TOPOLOGIES.items()
        if not any(
            field.default is MISSING and field.default_factory is MISSING
            for field in fields(made)  # pyright: ignore[reportArgumentType]
        )
    ]
