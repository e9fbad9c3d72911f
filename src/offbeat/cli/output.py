"""What the command line prints: progress, and the summary of a run."""

from __future__ import annotations

import math
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from ..experiment import Experiment
from ..method import Method
from ..runs import Metrics, Run
from ..runtime.world import Progress as Report

MODES = {
    "simulated": "simulated",
    "processes": "run as processes",
    "loop": "run in a loop",
    "replay": "replayed",
}
STOPS = {
    "samples": "the budget of samples was spent",
    "seconds": "the budget of seconds was spent",
    "accuracy": "the accuracy asked for was reached",
    "finished": "nothing was left to do",
    "interrupted": "interrupted",
    "error": "an error",
    "journal": "the run that was recorded ended here",
}


@contextmanager
def progress_bar(label: str, total: float, unit: str) -> Generator[Progress | None]:
    """A bar on standard error, only where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{{task.completed:,.0f}} of {{task.total:,.0f}} {unit}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task(label, total=total, now="")
        yield bar


@contextmanager
def run_progress(experiment: Experiment) -> Generator[Report | None]:
    """Reports each evaluation of a run on a progress bar."""
    budget = experiment.budget
    by_samples = budget.samples is not None
    total = budget.samples if budget.samples is not None else budget.seconds or 1.0
    name, unit = type(experiment.method).__name__, "samples" if by_samples else "seconds"
    with progress_bar(name, total, unit) as bar:
        if bar is None:
            yield None
            return

        def report(row: Metrics) -> None:
            done = row.samples if by_samples else row.seconds
            accuracy = "" if math.isnan(row.accuracy) else f"accuracy {row.accuracy:.3f}, "
            bar.update(bar.task_ids[0], completed=done, now=f"{accuracy}loss {row.loss:.4g}")

        yield report


def nodes(method: Method, workers: int) -> str:
    """How many nodes of which kind: "4 workers + 1 server"."""
    count = f"{workers} worker{'s' * (workers != 1)}"
    servers = method.server_count
    if not servers:
        return count
    word = f"server{'s' * (servers != 1)}"
    if method.colocate:
        return f"{count}, {servers} {word} colocated with them"
    return f"{count} + {servers} {word}"


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.3g} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"


def console(least: int = 80) -> Console:
    """Standard output: at least so many characters wide, and 130 where it is no terminal."""
    made = Console()
    return Console(width=max(made.width, least) if made.is_terminal else 130)


def print_summary(run: Run, directory: Path | None, command: str | None) -> None:
    """What came out of a run, and how to repeat it."""
    lines = summary(run)
    if directory is not None:
        lines.append(("saved in", str(directory)))
    if command is not None:
        lines.append(("repeat", command))
    out = console()
    for name, text in lines:
        # Commands and paths are copied from here, so lines are not broken.
        out.print(f"[bold]{name:<11}[/bold]{escape(text)}", soft_wrap=True, highlight=False)


def summary(run: Run) -> list[tuple[str, str]]:
    """Lines of (name, text)."""
    experiment, lines = run.experiment, list[tuple[str, str]]()
    what = f"{type(experiment.method).__name__} on {type(experiment.problem).__name__}"
    count = nodes(experiment.method, experiment.cluster.workers)
    lines.append(("run", f"{what}, {MODES.get(run.mode, run.mode)}: {count}"))
    if run.metrics:
        last = run.metrics[-1]
        accuracy = "" if math.isnan(last.accuracy) else f"accuracy {last.accuracy:.2%}, "
        lines.append((experiment.evaluate_on, f"{accuracy}loss {last.loss:.4g}"))
        seconds = "virtual seconds" if run.mode == "simulated" else "seconds"
        lines.append(
            (
                "after",
                f"{run.seconds:.3f} {seconds}, {last.samples:,} samples, "
                f"{last.steps:,} step{'s' * (last.steps != 1)}",
            )
        )
    if len(run.staleness):
        stale = f"mean {run.staleness.mean():.2f}, max {run.staleness.max()} optimizer steps"
        lines.append(("staleness", stale))
    if run.metrics:
        last = run.metrics[-1]
        lines.append(("sent", megabytes(last.bytes)))
        if run.seconds > 0 and run.mode != "replay":
            lines.append(("idle", f"{1 - run.busy.mean():.1%} of the workers' time"))
        lines.append(("consensus", f"workers {last.consensus:.4g} from their mean"))
    lines.append(("stopped", STOPS.get(run.stop, run.stop)))
    return lines + [("note", note) for note in run.notes]


def write_line(text: str) -> None:
    """One line on standard error."""
    print(f"offbeat: {text}", file=sys.stderr, flush=True)
