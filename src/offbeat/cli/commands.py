"""The commands that make one run: simulate, run, replay."""

from __future__ import annotations

import fcntl
import functools
import itertools
import json
import os
import shlex
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ..api import replay as replay_run
from ..api import simulate_experiment
from ..config import DEFAULTS, build, experiment_parser, parse, resolved
from ..experiment import Experiment
from ..runs import Metrics, load_parameters
from ..runtime.errors import NotResumed
from ..runtime.forks import fork_server_of_forks
from ..runtime.world import Progress, World
from ..stepping import ParameterOptimizer
from . import machines, resuming
from .coordinating import Execute, Keeping
from .errors import UsageError, explain, one_line
from .joining import Elsewhere
from .main import INTERRUPTED, alone
from .output import print_summary, run_progress, write_line
from .parsers import HelpFormatter, command_parser


def simulate(options: Sequence[str]) -> int:
    """Simulate an experiment under virtual time."""
    parser = experiment_parser("offbeat simulate", str(simulate.__doc__), HelpFormatter)
    parsed = _parsed(parser, options, DEFAULTS)
    experiment: Experiment = parsed_options(parser, functools.partial(build, parser), parsed)
    return _carry_out("simulate", parsed, experiment, simulate_experiment)


def run(options: Sequence[str]) -> int:
    """Run an experiment as processes, on this machine or several."""
    parser = experiment_parser("offbeat run", str(run.__doc__), HelpFormatter)
    machines.add_options(parser)
    resuming.add_options(parser)
    resumed, options = resuming.resumption(options)
    parsed = _parsed(parser, options, DEFAULTS | {"cluster": {"workers": 2}})
    experiment: Experiment = parsed_options(parser, functools.partial(build, parser), parsed)
    if parsed.checkpoint is not None and not parsed.checkpoint > 0:
        raise UsageError(f"--checkpoint is {parsed.checkpoint:g} seconds; it must be positive")
    keeping = Keeping(every=parsed.checkpoint, resume=resumed.checkpoint)
    if alone and machines.starts_processes(parsed):
        fork_server_of_forks(experiment.device, experiment.problem.imports)
    try:
        with machines.machines(parsed, experiment, options, keeping) as execute:
            return _carry_out("run", parsed, experiment, execute, resumed.notes)
    except Elsewhere as done:
        return done.code


def replay(options: Sequence[str]) -> int:
    """Replay a real run in the simulator, and compare the parameters."""
    parser = command_parser("replay", replay.__doc__)
    parser.add_argument("directory", type=str, help="the run directory of a real run")
    directory = Path(parsed_options(parser, parser.parse_args, options).directory)
    try:
        mode = json.loads((directory / "run.json").read_text())["mode"]
    except OSError:
        raise UsageError(f"{directory} is no run directory: it has no run.json") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{directory / 'run.json'} is damaged: it names no kind of run") from None
    if mode != "processes":
        raise UsageError(
            f"{directory} is of a run that was {mode}; only real runs are replayed, and "
            f"`offbeat simulate --config {directory}/experiment.yaml` repeats this one"
        )
    try:
        replayed = replay_run(directory)
        stored = load_parameters(directory, replayed.layout)
    except ValueError as error:
        raise UsageError(f"cannot replay {directory}: {one_line(error)}") from error
    print_summary(replayed, None, None)
    if torch.equal(stored, replayed.vector):
        print(f"replayed {directory}: all {stored.numel():,} parameters equal to the bit")
        return 0
    apart = (stored - replayed.vector).abs()
    write_line(
        f"replayed {directory}: {int((apart != 0).sum()):,} of {stored.numel():,} parameters "
        f"differ, by up to {apart.max().item():.3g}"
    )
    return 1


def parsed_options(parser: ArgumentParser, parse_them: Callable[[Any], Any], given: Any) -> Any:
    """Parse or build; whatever is wrong becomes one line."""
    try:
        return parse_them(given)
    except (ArgumentError, ValueError, TypeError) as error:
        raise UsageError(explain(error, parser)) from error


def checked(experiment: Experiment) -> World:
    """Build model, data and optimizer once, so that nothing is begun that cannot work."""
    try:
        world = World(experiment)
        ParameterOptimizer(
            world.initial.clone(), world.layout, lambda named: world.make_optimizer(list(named))
        )
    except (ValueError, TypeError) as error:
        raise UsageError(one_line(error)) from error
    return world


@contextmanager
def output_directory(out: str | None, name: str) -> Generator[Path]:
    """Make the directory that results go to; bad input found later leaves nothing of it."""
    wanted = Path("runs") if out is None else Path(out)
    try:
        if out is not None and wanted.is_dir() and any(wanted.iterdir()):
            raise UsageError(f"--out {wanted} is not empty; choose another directory")
        made = [folder for folder in (wanted, *wanted.parents) if not folder.exists()]
        wanted.mkdir(parents=True, exist_ok=True)
        directory = wanted
        if out is None:
            directory = _directory_of_its_own(wanted, name)
            made = [directory, *made]
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        reason = error.strerror or error
        if out is None:
            where = f"{wanted.absolute()}: {reason}; name another directory by --out"
        else:
            where = f"--out {wanted}: {reason}"
        raise UsageError(f"cannot write to {where}") from error
    try:
        yield directory
    except BaseException as error:
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if not isinstance(error, ValueError):
            raise
        raise UsageError(one_line(error)) from error


@contextmanager
def _going_on(directory: Path) -> Generator[Path]:
    """A run directory that there is; bad input found later leaves it as it is."""
    try:
        yield directory
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def _directory_of_its_own(where: Path, name: str) -> Path:
    """Made now, for others may begin in the same second."""
    for k in itertools.count(1):
        counted = f"-{k}" if k > 1 else ""
        directory = where / f"{datetime.now():%Y%m%d-%H%M%S}-{name}{counted}"
        with suppress(FileExistsError):
            directory.mkdir()
            return directory
    raise AssertionError("there is always another number")


@contextmanager
def claimed(directory: Path) -> Generator[None]:
    """Keep other runs out of a run directory. If this process ends, that lets them in."""
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"the run in {directory} is still going on; end it first, or choose another directory"
        ) from None
    except OSError:
        pass  # Not every file system has such locks.
    try:
        yield
    finally:
        os.close(held)


@contextmanager
def logged(
    log: str | None, experiment: Experiment, directory: Path, report: Progress | None
) -> Generator[Progress | None]:
    """What a run calls at each evaluation: the progress bar, and the logger asked for."""
    if log is None:
        yield report
        return
    # Imported here: most runs are not logged.
    from ..loggers import TensorBoard, WeightsAndBiases

    if log == "tensorboard":
        logger = TensorBoard(directory / "tensorboard", experiment)
    else:
        logger = WeightsAndBiases(directory=directory, experiment=experiment)

    def both(row: Metrics) -> None:
        logger(row)
        if report is not None:
            report(row)

    with logger:
        yield both


def _parsed(parser: ArgumentParser, options: Sequence[str], defaults: dict[str, Any]) -> Namespace:
    parser.add_argument(
        "--out", type=str | None, help="run directory; runs/<time>-<method> if not given"
    )
    parser.add_argument("--plots", action="store_true", help="also save plots of the run")
    parser.add_argument(
        "--log",
        type=Literal["tensorboard", "wandb"] | None,
        help="also log evaluations into the run directory: tensorboard or wandb (offline)",
    )
    return parsed_options(parser, functools.partial(parse, parser, defaults=defaults), options)


def _directory(parsed: Namespace, name: str) -> AbstractContextManager[Path]:
    """Where results go: to a new directory, or the one of the run that goes on."""
    going_on = parsed.get("resume") or (parsed.out if resuming.restarted() else None)
    if going_on is not None:
        return _going_on(Path(going_on))
    return output_directory(parsed.out, name)


def _carry_out(
    command: str,
    parsed: Namespace,
    experiment: Experiment,
    execute: Execute,
    notes: Sequence[str] = (),
) -> int:
    checked(experiment)
    name = type(experiment.method).__name__
    with (
        _directory(parsed, name) as directory,
        claimed(directory),
        run_progress(experiment) as report,
        logged(parsed.log, experiment, directory, report) as progress,
    ):
        try:
            result = execute(experiment, progress, directory)
        except NotResumed as error:
            write_line(f"{one_line(error)}; what is in {directory} is as it was")
            return 1
    result.resolved |= resolved(parsed)
    result.notes += notes
    result.save(directory)
    if parsed.plots:
        from ..report.plots import plot_run

        plot_run(result, directory)
    again = shlex.join(["offbeat", command, "--config", str(directory / "experiment.yaml")])
    print_summary(result, directory, again)
    if result.error is not None:
        write_line(f"{one_line(result.error)}; what was recorded is in {directory}")
        return 1
    return INTERRUPTED if result.stop == "interrupted" else 0
