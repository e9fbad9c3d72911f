"""`offbeat cite NAME...`"""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from ..citation import citations
from ..methods import METHODS
from ..problems import PROBLEMS
from ..topology import TOPOLOGIES
from .commands import parsed_options
from .errors import UsageError, nearest


def cite(options: Sequence[str]) -> int:
    """Print the papers behind methods, topologies and problems."""
    parser = ArgumentParser(prog="offbeat cite", exit_on_error=False, description=str(cite.__doc__))
    parser.add_argument(
        "names", type=str, nargs="*", help="such as ADPSGD; all methods if not given"
    )
    parser.add_argument("--bibtex", action="store_true", help="as BibTeX entries")
    parsed = parsed_options(parser, parser.parse_args, options)
    known: dict[str, type] = {**METHODS, **TOPOLOGIES, **PROBLEMS}
    names: list[str] = parsed.names or list(METHODS)
    for name in names:
        if name not in known:
            listed = f"; there are {', '.join(known)}"
            raise UsageError(f"there is nothing named {name} to cite{nearest(name, known, listed)}")
    if parsed.bibtex:
        entries = {c.key: c.bibtex() for name in names for c in citations(known[name])}
        print("\n\n".join(entries.values()))
        return 0
    width = max(map(len, names))
    for name in names:
        lines = [str(citation) for citation in citations(known[name])] or ["no paper"]
        for k, line in enumerate(lines):
            print(f"{name if k == 0 else '':<{width}}  {line}")
    return 0
