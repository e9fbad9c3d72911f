"""`offbeat cite NAME...`"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence

from .. import compression, optim, schedule
from ..citation import citations
from ..methods import METHODS
from ..problems import PROBLEMS
from ..topology import TOPOLOGIES
from ..userfile import import_path, is_reference
from .commands import parsed_options
from .errors import UsageError, nearest
from .parsers import command_parser

OTHERS: dict[str, type] = {
    name: made
    for module in (optim, compression, schedule)
    for name, made in vars(module).items()
    if inspect.isclass(made) and citations(made)
}
"""Optimizers, compressors and schedules that are of a paper."""


def cite(options: Sequence[str]) -> int:
    """Print the papers behind methods, topologies, optimizers and more."""
    parser = command_parser("cite", cite.__doc__)
    parser.add_argument(
        "names",
        type=str,
        nargs="*",
        default=[],
        help="such as ADPSGD or my_file.py:MyMethod; all methods if not given",
    )
    parser.add_argument("--bibtex", action="store_true", help="as BibTeX entries")
    parsed = parsed_options(parser, parser.parse_args, options)
    names: list[str] = parsed.names or list(METHODS)
    papers = {name: citations(_named(name)) for name in names}
    if parsed.bibtex:
        entries = {c.key: c.bibtex() for found in papers.values() for c in found}
        print("\n\n".join(entries.values()))
        return 0
    width = max(map(len, names))
    for name in names:
        lines = [str(citation) for citation in papers[name]] or ["no paper"]
        for k, line in enumerate(lines):
            print(f"{name if k == 0 else '':<{width}}  {line}")
    return 0


def _named(name: str) -> type:
    """The class of a registry or of the user's own file."""
    if is_reference(name):
        try:
            module, _, own = import_path(name).rpartition(".")
        except ValueError as error:
            raise UsageError(str(error)) from error
        return getattr(importlib.import_module(module), own)
    known: dict[str, type] = {**METHODS, **TOPOLOGIES, **PROBLEMS, **OTHERS}
    if name not in known:
        listed = f"; there are {', '.join(known)}"
        raise UsageError(f"there is nothing named {name} to cite{nearest(name, known, listed)}")
    return known[name]
