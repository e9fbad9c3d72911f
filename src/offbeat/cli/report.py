"""`offbeat report DIR...`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .commands import parsed_options
from .errors import UsageError, one_line
from .output import console
from .parsers import command_parser


def report(options: Sequence[str]) -> int:
    """Write one HTML file that shows runs, comparisons, sweeps, or results of hogwild."""
    parser = command_parser("report", report.__doc__)
    parser.add_argument(
        "directories",
        type=str,
        nargs="*",
        default=[],
        help="run directories, or directories of those",
    )
    parser.add_argument("--out", type=str, default="report.html", help="the file to write")
    parsed = parsed_options(parser, parser.parse_args, options)
    if not parsed.directories:
        raise UsageError("there is nothing to report on; give at least one run directory")
    out = Path(parsed.out)
    if out.is_dir():
        raise UsageError(f"--out {out} is a directory; give the name of a file")
    try:
        _write([Path(directory) for directory in parsed.directories], out)
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    except OSError as error:
        raise UsageError(f"cannot write --out {out}: {error.strerror or error}") from error
    console().print(f"wrote {out}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _write(directories: Sequence[Path], out: Path) -> None:
    # Imported here: other commands need neither Plotly nor Jinja.
    shared = [directory for directory in directories if (directory / "hogwild.json").is_file()]
    if not shared:
        from ..report.html import find_runs, write_report

        write_report(find_runs(directories), out)
        return
    if len(shared) < len(directories):
        raise UsageError(
            f"{shared[0]} is of `offbeat hogwild`, and others are not: they need reports of their "
            "own"
        )
    from ..hogwild import load
    from ..report.hogwild import write_page

    write_page([outcome for directory in shared for outcome in load(directory)], out)
