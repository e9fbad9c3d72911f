"""`offbeat hogwild PROBLEM...`"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..cores import cores_here
from ..hogwild import (
    ABOUT,
    PROBLEMS,
    SCHEMES,
    UNWATCHED,
    AccessTimes,
    Diverged,
    Outcome,
    Settings,
    SparseProblem,
    save,
    simulate,
    train,
)
from ..hogwild.threads import require_threads
from ..labels import label
from .commands import output_directory, parsed_options
from .errors import UsageError, nearest, one_line
from .output import console, progress_bar, write_line
from .parsers import command_parser
from .spec import spec_of

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One run of a comparison."""

    problem: SparseProblem
    settings: Settings
    simulated: bool


def hogwild(options: Sequence[str]) -> int:
    """Train sparse problems by threads that share one vector, and see where they collide."""
    parsed = _parsed(options)
    if not parsed.problems:
        raise UsageError(
            f"no problem was given; begin with one of {', '.join(PROBLEMS)}, for options such as "
            "--scheme take all that follows them"
        )
    problems = [_problem(text) for text in parsed.problems]
    asked = list(_runs(problems, parsed))
    if not asked:
        raise UsageError(
            f"{' and '.join(UNWATCHED)} have no one vector that all threads share: there are no "
            "collisions to watch; simulate hogwild++ to see those within its clusters"
        )
    # Imported here: `--help` does without matplotlib.
    from ..report.hogwild import print_outcomes, write_pages

    with output_directory(parsed.out, "hogwild") as directory:
        outcomes, failures = _carry_out(asked, parsed)
        if not outcomes:
            raise UsageError(failures[0])
        save(outcomes, directory)
        command = shlex.join(["offbeat", "hogwild", *options])
        written = write_pages(outcomes, directory, command)
    out = console()
    print_outcomes(outcomes, out)
    for failure in failures:
        write_line(failure)
    names = ", ".join(path.name for path in written)
    out.print(f"saved in {directory}: {names}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failures else 0


def _parsed(options: Sequence[str]) -> Any:
    about = "; ".join(f"{name}: {text}" for name, text in ABOUT.items())
    parser = command_parser("hogwild", hogwild.__doc__)
    add = parser.add_argument
    add(
        "problems",
        type=str,
        nargs="*",
        default=[],
        help=f"{', '.join(PROBLEMS)}; with settings as 'SparseSVM(skew=0.75)' or "
        "'SparseSVM(train=\"my.svm\")'; or my_file.py:MyProblem",
    )
    add(
        "--scheme",
        type=str,
        nargs="+",
        default=["serial", "hogwild"],
        help=f"one, several, or {ALL}. {about}",
    )
    add("--threads", type=int, nargs="+", default=[], help="numbers of threads; 2 if not given")
    add(
        "--workers",
        type=int,
        nargs="+",
        default=[],
        help="numbers of simulated workers, each with a core of its own; threads only if given too",
    )
    add("--epochs", type=int, default=20, help="how often every edge is taken")
    add("--step", type=float | None, help="gamma of the first epoch; the problem's if not given")
    add("--decay", type=float, default=0.9, help="factor of the step from epoch to epoch")
    add(
        "--adds",
        type=str,
        default="plain",
        help="plain: read a coordinate, add, write it; atomic: in one indivisible operation",
    )
    add(
        "--delay",
        type=float,
        nargs="+",
        default=[0.0],
        help="seconds of waiting after every gradient; several are compared",
    )
    add(
        "--block",
        type=int,
        default=8,
        help="edges side by side that stay together in an epoch's random order; 1 for none",
    )
    add(
        "--clusters",
        type=int | None,
        help="of hogwild++: how many x there are, each shared by some workers; one for each worker "
        "or 4, whichever is less, if not given",
    )
    add(
        "--hold",
        type=int | None,
        help="of hogwild++: edges that a cluster goes through from its exchange until the next "
        "one's turn; as many as keep exchanges cheap if not given",
    )
    add("--seed", type=int, default=0, help="of the orders in which edges are taken")
    add(
        "--watch",
        action="store_true",
        help="note collisions of threads, which makes them slower; of simulated workers they "
        "always are",
    )
    parser.add_class_arguments(AccessTimes, "times")
    add("--out", type=str | None, help="directory of the results; runs/<time>-hogwild if not given")
    return parsed_options(
        parser, lambda given: parser.instantiate(parser.parse_args(given)), options
    )


def _problem(text: str) -> SparseProblem:
    name = text.partition("(")[0]
    if "." not in name and name not in PROBLEMS:
        known = f"; there are {', '.join(PROBLEMS)}"
        raise UsageError(f"there is no problem {name}{nearest(name, PROBLEMS, known)}")
    return spec_of(text, SparseProblem)


def _runs(problems: Sequence[SparseProblem], parsed: Any) -> Iterator[Asked]:
    """Every combination of what was asked for; what makes no difference is run once."""
    schemes = list(dict.fromkeys(parsed.scheme))
    if ALL in schemes:
        schemes = list(SCHEMES)
    for scheme in schemes:
        if scheme not in SCHEMES:
            known = f"; there are {', '.join((*SCHEMES, ALL))}"
            raise UsageError(f"there is no scheme {scheme}{nearest(scheme, SCHEMES, known)}")
    threads = parsed.threads or ([] if parsed.workers else [min(2, cores_here())])
    counts = [(count, False) for count in dict.fromkeys(threads)]
    counts += [(count, True) for count in dict.fromkeys(parsed.workers)]
    seen = set[tuple[int, Any, bool]]()
    every = itertools.product(enumerate(problems), dict.fromkeys(parsed.delay), counts, schemes)
    for (k, problem), delay, (count, simulated), scheme in every:
        if parsed.watch and scheme in UNWATCHED and not simulated:
            continue
        try:
            if not simulated:
                require_threads(count)
            settings = Settings(
                scheme=scheme,
                workers=1 if scheme == "serial" and count > 0 else count,
                epochs=parsed.epochs,
                step=parsed.step,
                decay=parsed.decay,
                # Alone it loses nothing, and is what others are compared with at its best.
                adds="plain" if scheme == "serial" else parsed.adds,
                delay=delay,
                block=parsed.block,
                clusters=parsed.clusters if scheme == "hogwild++" else None,
                hold=parsed.hold if scheme == "hogwild++" else None,
                seed=parsed.seed,
                watch=parsed.watch and not simulated,
            )
        except ValueError as error:
            raise UsageError(one_line(error)) from error
        if (k, settings, simulated) not in seen:
            seen.add((k, settings, simulated))
            yield Asked(problem=problem, settings=settings, simulated=simulated)


def _carry_out(asked: Sequence[Asked], parsed: Any) -> tuple[list[Outcome], list[str]]:
    """The runs' outcomes, and what is to be said of those that have none."""
    outcomes, failures = list[Outcome](), list[str]()
    total = sum(one.settings.epochs for one in asked)
    with progress_bar("hogwild", total, "epochs") as bar:
        for one in asked:

            def report(epoch: int, state: Any, settings: Settings = one.settings) -> None:
                if bar is not None:
                    now = f"{settings.scheme}, objective {state.objective:.4g}"
                    bar.update(bar.task_ids[0], advance=1, now=now)

            try:
                if one.simulated:
                    outcomes.append(simulate(one.problem, one.settings, parsed.times, report))
                else:
                    outcomes.append(train(one.problem, one.settings, report))
            except Diverged as error:
                failures.append(f"{label(one.problem)}: {one_line(error)}")
            except MemoryError as error:
                raise UsageError(
                    f"{label(one.problem)} does not fit into memory: {one_line(error)}"
                ) from error
    return outcomes, failures
