"""`offbeat COMMAND ...`: which command, and its exit code.

0: done; 1: a run ended badly; 2: bad input, and nothing was begun; 130: interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from .. import __version__
from .cite import cite
from .clusters import clusters
from .commands import INTERRUPTED, replay, run, simulate
from .compare import compare
from .errors import UsageError, nearest, one_line
from .export import export
from .output import console, methods_table, write_line
from .problems import problems
from .report import report
from .sweep import sweep
from .topologies import topologies


def methods(options: Sequence[str]) -> int:
    """List the methods: their papers, roles, and what they bear."""
    if options and options != ["--help"]:
        raise UsageError(f"`offbeat methods` takes no options, not {' '.join(options)}")
    console().print(methods_table())
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "simulate": simulate,
    "run": run,
    "compare": compare,
    "sweep": sweep,
    "replay": replay,
    "report": report,
    "export": export,
    "methods": methods,
    "topologies": topologies,
    "problems": problems,
    "clusters": clusters,
    "cite": cite,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except UsageError as error:
        write_line(one_line(error))
        return 2
    except KeyboardInterrupt:
        write_line("interrupted")
        return INTERRUPTED
    except SystemExit as done:
        # --help and --print_config end the parser this way.
        return int(done.code or 0)


def _dispatch(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] == "--version":
        print(f"offbeat {__version__}")
        return 0
    name, *options = arguments
    command = COMMANDS.get(name)
    if command is None:
        listed = f"; there are {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {name}{nearest(name, COMMANDS, listed)}")
    return command(options)


def _usage() -> str:
    lines = [f"  {name:<10}{(command.__doc__ or '').strip()}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: offbeat COMMAND [OPTIONS]", "", *lines, "", "`offbeat COMMAND --help` says more."]
    )
