"""Sparse Hogwild! on threads: against scikit-learn's serial SGD, and its schemes with each other.

    python benchmarks/hogwild.py
    python benchmarks/hogwild.py speed --rounds 9
    python benchmarks/hogwild.py --quick

Part `speed`: a linear SVM on samples of the shape of RCV1 (47,236 features, 75 nonzeros a row),
whose features are drawn alike or by Zipf's law, with and without a penalty, in an equal number of
epochs with an equal, constant step: scikit-learn's SGDClassifier (Cython, one thread, float32), and
ours with one and two threads, with the samples in any order or in blocks of 8 in any order; beside
them two threads that take half of the samples each and share nothing, and reading the samples once.
With the penalty every update writes, without it those within the margin. What a cache line takes
from one core to the other is measured before and after each round, as virtual machines move between
cores: rounds in which it took longer than 100 ns are put aside. Part `delays`:
schemes on two threads, and on ten simulated workers, with a delay after each gradient, as in the
paper's figure 5. Part `density`: speed-up against the number of features that samples of 20
nonzeros are drawn from. All contestants of a part take turns; the figures are medians over the
rounds.
"""

from __future__ import annotations

import functools
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from common import options
from scipy.sparse import csr_matrix
from sklearn.linear_model import SGDClassifier

from offbeat.hogwild import Instance, Scheme, Settings, SparseSVM, simulate, train
from offbeat.hogwild.atomics import atomic_load, atomic_store
from offbeat.hogwild.compiling import compiled
from offbeat.hogwild.outcome import machine
from offbeat.hogwild.schemes import orders
from offbeat.hogwild.training import go_through

BLOCKS = (1, 8)
NEAR_NS = 100.0
"""A cache line's way between cores that share a cache takes less."""
PASSES = 20_000
RIVAL, APART = "SGDClassifier", "2 threads that share nothing"
SKEWS = {"drawn alike": 0.0, "by Zipf's law, exponent 0.75": 0.75}
Figures = dict[str, Any]


class Regularized(NamedTuple):
    alpha: float
    """SGDClassifier's: the penalty is alpha / 2 |x|^2; its default, or none."""
    step: float
    """The best for the objective of 0.02, 0.1, 0.3, 1 and 3."""
    epochs: int


KINDS = {
    "with a penalty": Regularized(alpha=1e-4, step=0.1, epochs=5),
    "without a penalty": Regularized(alpha=0.0, step=1.0, epochs=10),
}


def medians(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Of each, the median over rounds in which all take turns."""
    found = [{name: measure() for name, measure in contestants.items()} for _ in range(rounds)]
    return _medians(found)


def _medians(found: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(taken[name] for taken in found) for name in found[0]}


@compiled
def pass_on(turn: Any, mine: int, times: int) -> None:
    """Wait for one's turn, and give the other thread its own."""
    for k in range(times):
        while atomic_load(turn, 0) != 2 * k + mine:
            pass
        atomic_store(turn, 0, 2 * k + mine + 1)


def transfer() -> float:
    """Nanoseconds that a cache line takes from one core to another."""
    turn = np.zeros(1, np.int64)
    both = [threading.Thread(target=pass_on, args=(turn, mine, PASSES)) for mine in (0, 1)]
    begun = time.perf_counter()
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    return (time.perf_counter() - begun) / PASSES / 2 * 1e9


@compiled
def read_once(vertices: Any, values: Any, shrinkage: Any) -> float:
    total = 0.0
    for k in range(len(vertices)):
        total += vertices[k] + values[k] + shrinkage[k]
    return total


def speed(rounds: int, rows: int, quick: bool) -> Figures:
    """Nanoseconds for each nonzero and epoch."""
    figures: Figures = {}
    pass_on(np.zeros(1, np.int64), 0, 0)
    for of_features, skew in SKEWS.items():
        for kind, regularized in KINDS.items():
            if quick:
                regularized = regularized._replace(epochs=1)
            problem = SparseSVM(rows=rows, skew=skew, noise=0.1, l2=rows * regularized.alpha / 2)
            name = f"features {of_features}, {kind}"
            figures[name] = measured = _speed(problem, regularized, rounds)
            sparsity = problem.instance().sparsity
            print(f"\n{name}: {rows:,} rows, {sparsity}")
            print(
                f"{measured['written']:.0%} of updates write; a cache line took "
                f"{measured['transfer']:.0f} ns from core to core, and {measured['put aside']} of "
                f"{rounds} rounds were put aside\n"
            )
            print("| | ns per nonzero and epoch | objective |\n|---|---|---|")
            for contestant, ns in measured["ns"].items():
                objective = measured["objective"].get(contestant)
                shown = "" if objective is None else f"{objective:.4f}"
                print(f"| {contestant} | {ns:.2f} | {shown} |")
            ns = measured["ns"]
            print()
            for block in BLOCKS:
                one, two = ns[_name(1, block)], ns[_name(2, block)]
                print(
                    f"blocks of {block}: 1 thread takes {one / ns[RIVAL]:.2f} of SGDClassifier's "
                    f"time, 2 take {two / ns[RIVAL]:.2f}; 2 are {one / two:.2f} times as fast as 1"
                )
            print(f"2 that share nothing are {ns[_name(1, 8)] / ns[APART]:.2f} times as fast as 1")
    return figures


def _speed(problem: SparseSVM, regularized: Regularized, rounds: int) -> Figures:
    instance, epochs, step = problem.instance(), regularized.epochs, regularized.step
    costs: Any = instance.costs
    nonzeros = len(costs.vertices)
    ours: dict[str, float] = {}
    shape = (instance.edges, instance.vertices)
    samples = csr_matrix((costs.values, costs.vertices, costs.offsets), shape=shape)

    def sklearn() -> float:
        rival = SGDClassifier(
            penalty="l2" if regularized.alpha else None,
            alpha=regularized.alpha,
            fit_intercept=False,
            learning_rate="constant",
            eta0=step,
            max_iter=epochs,
            tol=None,
            random_state=0,
        )
        begun = time.perf_counter()
        rival.fit(samples, costs.labels)
        taken = time.perf_counter() - begun
        ours[RIVAL] = instance.objective(rival.coef_[0].astype(np.float32))
        return taken / epochs / nonzeros * 1e9

    constant = Settings(scheme="serial", workers=1, epochs=epochs, step=step, decay=1.0)

    def threads(count: int, block: int) -> float:
        settings = replace(
            constant, scheme="serial" if count == 1 else "hogwild", workers=count, block=block
        )
        outcome = train(problem, settings)
        ours[_name(count, block)] = outcome.objective
        return outcome.seconds / epochs / nonzeros * 1e9

    def apart() -> float:
        return _apart(instance, epochs, step) / epochs / nonzeros * 1e9

    def floor() -> float:
        begun = time.perf_counter()
        read_once(costs.vertices, costs.values, costs.shrinkage)
        return (time.perf_counter() - begun) / nonzeros * 1e9

    read_once(costs.vertices, costs.values, costs.shrinkage)
    contestants = {
        RIVAL: sklearn,
        **{
            _name(count, block): (lambda count=count, block=block: threads(count, block))
            for block in BLOCKS
            for count in (1, 2)
        },
        APART: apart,
        "reading the samples": floor,
    }
    found = list[tuple[float, dict[str, float]]]()
    for _ in range(rounds):
        before = transfer()
        taken = {name: measure() for name, measure in contestants.items()}
        found.append((max(before, transfer()), taken))
    near = [taken for ns, taken in found if ns < NEAR_NS]
    watched = train(problem, replace(constant, watch=True)).collisions
    assert watched is not None
    return {
        # Where all have been far there is nothing better.
        "ns": _medians(near or [taken for _, taken in found]),
        "objective": ours,
        "written": float(watched.updates.sum() / nonzeros / epochs),
        "transfer": statistics.median(ns for ns, _ in found if ns < NEAR_NS or not near),
        "put aside": rounds - len(near) if near else 0,
    }


def _name(count: int, block: int) -> str:
    order = "any order" if block == 1 else f"blocks of {block}"
    return f"{count} thread{'s' * (count != 1)}, {order}"


def _apart(instance: Instance, epochs: int, step: float) -> float:
    """Seconds in which two threads take half of the edges each, so often, with an x of its own."""
    (order,) = orders(instance.edges, Settings(), np.random.default_rng(0))

    def take(share: Any) -> None:
        x = instance.start.copy()
        for _ in range(epochs):
            go_through(instance, share, x, np.float32(step))

    halves = np.array_split(order, 2)
    both = [threading.Thread(target=take, args=(half,)) for half in halves]
    begun = time.perf_counter()
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    return time.perf_counter() - begun


def _seconds(run: Callable[..., Any], problem: SparseSVM, settings: Settings) -> float:
    return run(problem, settings).seconds


SCHEMES: tuple[Scheme, ...] = ("hogwild", "locked", "vector-lock", "round-robin")


def delays(rounds: int, rows: int, given: Sequence[float]) -> Figures:
    """Seconds of an epoch over those of one worker."""
    problem = SparseSVM(rows=rows)
    figures: Figures = {}
    for simulated, workers in ((False, 2), (True, 10)):
        kind = f"{workers} {'simulated workers' if simulated else 'threads'}"
        print(f"\nspeed-up of {kind}, {rows:,} samples of 75 of 47,236 features\n")
        print("| delay | " + " | ".join(SCHEMES) + " |\n|---" + "|---" * len(SCHEMES) + "|")
        figures[kind] = {}
        for delay in given:
            contestants = {
                scheme: functools.partial(
                    _seconds,
                    simulate if simulated else train,
                    problem,
                    Settings(
                        scheme=scheme,
                        workers=1 if scheme == "serial" else workers,
                        epochs=2,
                        delay=delay,
                    ),
                )
                for scheme in ("serial", *SCHEMES)
            }
            taken = medians(contestants, 1 if simulated else rounds)
            ratios = {scheme: taken["serial"] / taken[scheme] for scheme in SCHEMES}
            figures[kind][f"{delay:g}"] = ratios
            cells = " | ".join(f"{ratio:.2f}" for ratio in ratios.values())
            print(f"| {delay * 1e6:g} us | {cells} |")
    return figures


def density(rounds: int, rows: int, given: Sequence[int]) -> Figures:
    """Speed-ups."""
    print(f"\nspeed-up against density: {rows:,} samples of 20 nonzeros\n")
    print("| features | Delta | rho | 2 threads | 10 simulated | collided | lost |")
    print("|---|---|---|---|---|---|---|")
    figures: Figures = {}
    for features in given:
        problem = SparseSVM(rows=rows, features=features, nonzeros=20)
        alone, both = Settings(scheme="serial", workers=1, epochs=5), Settings(epochs=5)
        taken = medians(
            {
                "serial": functools.partial(_seconds, train, problem, alone),
                "hogwild": functools.partial(_seconds, train, problem, both),
            },
            rounds,
        )
        ten = simulate(problem, Settings(workers=10, epochs=2))
        one = simulate(problem, Settings(scheme="serial", workers=1, epochs=2))
        sparsity, met = problem.instance().sparsity, ten.collisions
        assert met is not None
        found = {
            "2 threads": taken["serial"] / taken["hogwild"],
            "10 simulated": one.seconds / ten.seconds,
            "collided": met.collision_rate,
            "lost": met.loss_rate,
        }
        figures[str(features)] = found
        print(
            f"| {features:,} | {sparsity.delta:.3g} | {sparsity.rho:.3g} "
            f"| {found['2 threads']:.2f} | {found['10 simulated']:.2f} "
            f"| {found['collided']:.2%} | {found['lost']:.3%} |"
        )
    return figures


PARTS = ("speed", "delays", "density")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options.parser(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; or all")
    parser.add_argument("--rounds", type=options.rounds, help="turns of each (7; 1 if quick)")
    asked = parser.parse_args(arguments)
    for part in asked.parts:
        if part not in PARTS:
            parser.error(f"there is no part {part}; there are {', '.join(PARTS)}")
    rounds = asked.rounds or (1 if asked.quick else 7)
    quick = asked.quick
    print(f"medians of {rounds} rounds on {machine()}")
    figures: Figures = {}
    for part in asked.parts or PARTS:
        if part == "speed":
            figures[part] = speed(rounds, 500 if quick else 200_000, quick)
        elif part == "delays":
            given = (0.0, 1e-6) if quick else (0.0, 1e-6, 1e-5, 1e-4, 1e-3)
            figures[part] = delays(rounds, 100 if quick else 2000, given)
        else:
            given = (2000, 100) if quick else (100_000, 10_000, 1000, 100)
            figures[part] = density(rounds, 200 if quick else 10_000, given)
    options.write(figures, asked.out)


if __name__ == "__main__":
    main()
