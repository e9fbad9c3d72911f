"""Machines: the options that spread `offbeat run` over several, and who carries it out then."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

from jsonargparse import ArgumentParser, Namespace

from ..experiment import Experiment
from ..runtime import torchrun
from ..runtime.errors import RunError
from .coordinating import Execute, Keeping
from .credentials import SECRET
from .errors import UsageError, one_line
from .joining import join
from .nodes_file import started_everywhere
from .ranks import ranked


def add_options(parser: ArgumentParser) -> None:
    """The options that spread a run over several machines."""
    group = parser.add_argument_group("several machines")
    group.add_argument(
        "--join",
        type=str | None,
        help="HOST:PORT where the machines of a run meet: give the same command on each of them, "
        "and the one whose address it is coordinates the run",
    )
    group.add_argument(
        "--take-part",
        action="store_true",
        help="never coordinate: wait for who does at --join, though the address be this machine's",
    )
    group.add_argument(
        "--slots",
        type=int | None,
        help="processes of the run that this machine starts; 1 if not given",
    )
    group.add_argument(
        "--secret",
        type=str | None,
        help=f"file that holds what all machines know; the variable {SECRET} if not given, and "
        "- is the first line of the input",
    )
    group.add_argument(
        "--tls",
        type=str | None,
        help="folder with cert.pem, key.pem and the authority's ca.pem: machines show each other "
        "certificates, and what they say is encrypted",
    )
    group.add_argument(
        "--patience", type=float, default=120.0, help="seconds to wait for the other machines"
    )
    group.add_argument(
        "--nodes",
        type=str | None,
        help="file that names a machine a line, as `name` or `name slots=4`: start the run on all",
    )
    group.add_argument(
        "--rsh", type=str, default="ssh", help="the command by which --nodes reaches a machine"
    )


def starts_processes(parsed: Namespace) -> bool:
    """Whether this process starts others of the run itself."""
    return parsed.nodes is None and not torchrun.present()


@contextmanager
def machines(
    parsed: Namespace, experiment: Experiment, options: Sequence[str], keeping: Keeping
) -> Generator[Execute]:
    """How to carry the run out, on this machine alone or with others.

    Raises:
        Elsewhere: another machine coordinates the run; this one has done its part.
        UsageError: the options do not fit together.
    """
    for name in ("slots", "secret", "tls"):
        if parsed[name] is not None and parsed.join is None and parsed.nodes is None:
            raise UsageError(f"--{name} goes with --join HOST:PORT; without it the run stays here")
    if not 0 < parsed.patience < float("inf"):
        raise UsageError(
            f"--patience is {parsed.patience:g}; it must be a positive number of seconds"
        )
    if parsed.take_part and parsed.join is None:
        raise UsageError("--take-part goes with --join HOST:PORT, where the run is coordinated")
    if parsed.nodes is not None:
        with started_everywhere(parsed, experiment, options) as gathering:
            yield keeping.coordinating(gathering)
    elif parsed.join is not None:
        yield join(parsed, experiment, keeping)
    elif torchrun.present():
        yield ranked(parsed.patience, experiment, keeping)
    else:
        try:
            torchrun.require_alone()
        except RunError as error:
            raise UsageError(one_line(error)) from None
        yield keeping.coordinating(None)
