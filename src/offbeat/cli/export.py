"""`offbeat export DIR --format perfetto|csv`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ..report.export import write_csv_tables, write_perfetto
from ..runs import load_run
from .commands import parsed_options
from .errors import UsageError, one_line
from .output import console
from .parsers import command_parser


def export(options: Sequence[str]) -> int:
    """Write a run's trace for Perfetto, or as CSV tables."""
    parser = command_parser("export", export.__doc__)
    parser.add_argument("directory", type=str, help="a run directory")
    parser.add_argument(
        "--format", type=Literal["perfetto", "csv"], default="perfetto", help="perfetto or csv"
    )
    parser.add_argument(
        "--out",
        type=str | None,
        help="the file, or with csv the directory; DIR/trace.json or DIR/trace if not given",
    )
    parsed = parsed_options(parser, parser.parse_args, options)
    directory = Path(parsed.directory)
    csv = parsed.format == "csv"
    out = Path(parsed.out or directory / ("trace" if csv else "trace.json"))
    try:
        run = load_run(directory)
    except ValueError as error:
        raise UsageError(one_line(error)) from error
    try:
        if csv:
            write_csv_tables(run, out)
        else:
            write_perfetto(run, out)
    except OSError as error:
        raise UsageError(f"cannot write --out {out}: {error.strerror or error}") from error
    where = f"the tables in {out}" if csv else f"{out}; open it in https://ui.perfetto.dev"
    console().print(f"wrote {where}", markup=False, highlight=False, soft_wrap=True)
    return 0
