"""Chaos: real runs whose processes are killed, interrupted, or run out of disk.

    python benchmarks/chaos.py
    python benchmarks/chaos.py --parts workers --only ADPSGD --runs 20 --seed 0

Digits, four workers. Part `workers`: of every method that survives a loss one worker kills itself
at a random await, of each kind in turn; the others have to finish with a whole result, which
replays to the bit. `servers`: the same with a server; `lossless`: with a worker of a method that
does not survive a loss; both have to end with an error that names it. `recoveries`: the same with
checkpoints, and the run has to go on. `joins`: the worker that was killed joins again. `pauses`:
processes are stopped for moments, which nothing of the result may show. `interrupts`: Ctrl-C at a
random time. `launchers`: the launcher is killed, and the run resumed. `torchruns`: a rank under
torchrun is killed, and all are started anew. `disk`: a run directory on a small disk, where that
can be mounted. After each, nothing may be left: no process, no shared memory, no socket, no open
file.

A kill is printed as OFFBEAT_CHAOS reads it: `OFFBEAT_CHAOS=2:recv:40 offbeat run --method ...`
repeats it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from common import options
from mishaps.commands import interrupts, launchers, torchruns
from mishaps.disks import disk
from mishaps.kills import joins, recoveries, servers, without, workers
from mishaps.outcomes import Outcome, Settings, experiment, table
from mishaps.pauses import pauses

from offbeat.runtime.processes import run_processes
from offbeat.testing.observed import DEADLINE
from offbeat.testing.remains import adopt_orphans

PARTS: dict[str, Callable[[Settings], Iterator[Outcome]]] = {
    "workers": workers,
    "servers": servers,
    "lossless": without,
    "recoveries": recoveries,
    "joins": joins,
    "pauses": pauses,
    "interrupts": interrupts,
    "launchers": launchers,
    "torchruns": torchruns,
    "disk": disk,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--only", nargs="*", metavar="METHOD")
    parser.add_argument("--runs", type=int, default=20, help="kills of each method (20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deadline", type=float, default=DEADLINE, help="seconds; then it hangs")
    parser.add_argument("--out", type=options.out_file, help="a JSON file of all runs")
    args = parser.parse_args(arguments)
    settings = Settings(
        only=None if args.only is None else tuple(args.only),
        runs=args.runs,
        seed=args.seed,
        deadline=args.deadline,
    )
    adopt_orphans()
    # The server that children are forked from stays; it is there before anything is counted.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        run_processes(experiment("ADPSGD"), Path(folder))
    outcomes: list[Outcome] = []
    for part in args.parts:
        for outcome in PARTS[part](settings):
            outcomes.append(outcome)
            print(
                f"{'WRONG' if outcome.wrong else 'ok':5} {outcome.part} {outcome.method} "
                f"{outcome.what}{'' if outcome.done else ' (not reached)'} "
                f"{outcome.seconds:.1f} s {'; '.join(outcome.wrong)}",
                flush=True,
            )
        if args.out is not None:
            rows = [asdict(outcome) for outcome in outcomes]
            args.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(outcomes))
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
