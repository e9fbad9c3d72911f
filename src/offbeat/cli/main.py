"""`offbeat COMMAND ...`: which command, and its exit code.

0: done; 1: a run ended badly; 2: bad input, and nothing was begun; 130: interrupted.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from types import FrameType

from .. import __version__
from ..cores import threads_here

INTERRUPTED = 130
alone = False
"""Whether this process had one thread when a command was first carried out, before torch."""
_LINE = "offbeat: interrupted"

# Each command is a function of that name in the module named first, imported when it is called:
# torch takes seconds, which `offbeat --help` does without and an interrupt may fall into.
COMMANDS = {
    "simulate": ("commands", "Simulate an experiment under virtual time."),
    "run": ("commands", "Run an experiment as processes, on this machine or several."),
    "compare": ("compare", "Compare methods, each at its best learning rate; or saved runs."),
    "hogwild": (
        "hogwild",
        "Train sparse problems by threads that share one vector, and see where they collide.",
    ),
    "sweep": ("sweep", "Simulate an experiment at every combination of some of its settings."),
    "replay": ("commands", "Replay a real run in the simulator, and compare the parameters."),
    "report": (
        "report",
        "Write one HTML file that shows runs, comparisons, sweeps, or results of hogwild.",
    ),
    "export": ("export", "Write a run's trace for Perfetto, or as CSV tables."),
    "methods": ("methods", "List the methods, what each sends and guarantees; or explain some."),
    "topologies": ("topologies", "Show what topologies cost and how fast they mix; draw them."),
    "problems": (
        "problems",
        "List the problems: data, networks, and whether the files are here.",
    ),
    "clusters": ("clusters", "List the clusters that have a name, for `--cluster NAME`."),
    "cite": ("cite", "Print the papers behind methods, topologies, optimizers and more."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line; returns the exit code."""
    global alone
    arguments = list(sys.argv[1:] if argv is None else argv)
    alone = threads_here() == 1
    # Whoever gives `argv` has called a function, which does not end the process.
    importing = _ended_by_interrupts() if argv is None else contextlib.nullcontext()
    try:
        return _dispatch(arguments, importing)
    except KeyboardInterrupt:
        print(_LINE, file=sys.stderr, flush=True)
        return INTERRUPTED
    except SystemExit as done:
        # --help and --print_config end the parser this way.
        return int(done.code or 0)


@contextlib.contextmanager
def _ended_by_interrupts() -> Generator[None]:
    """While others' packages are imported, when nothing has been begun, Ctrl-C ends the process.

    As an exception it would leave half of a package behind, or be caught in there: what comes of
    that is any other exception, or none.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        # Not by `print`, in the middle of which the signal may have come.
        os.write(2, f"{_LINE}\n".encode())
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _dispatch(arguments: Sequence[str], importing: AbstractContextManager[None]) -> int:
    try:
        return _carried_out(arguments, importing)
    except OSError as error:
        # A disk is full, or whoever read the output has gone, which needs no words.
        if not isinstance(error, BrokenPipeError):
            print(f"offbeat: {error}", file=sys.stderr, flush=True)
        _drop_output()
        return 1


def _carried_out(arguments: Sequence[str], importing: AbstractContextManager[None]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(), flush=True)
        return 0
    if arguments[0] == "--version":
        print(f"offbeat {__version__}", flush=True)
        return 0
    name, *options = arguments
    with importing:
        from .errors import UsageError, nearest, one_line

        known = name in COMMANDS
        home = importlib.import_module(f".{COMMANDS[name][0]}", __package__) if known else None
    try:
        if home is None:
            listed = f"; there are {', '.join(COMMANDS)}"
            raise UsageError(f"there is no command {name}{nearest(name, COMMANDS, listed)}")
        return getattr(home, name)(options)
    except UsageError as error:
        print(f"offbeat: {one_line(error)}", file=sys.stderr, flush=True)
        return 2


def _drop_output() -> None:
    """What is still to be written would fail again when the process ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _usage() -> str:
    lines = [f"  {name:<12}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        ["usage: offbeat COMMAND [OPTIONS]", "", *lines, "", "`offbeat COMMAND --help` says more."]
    )
