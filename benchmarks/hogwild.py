"""Sparse Hogwild! on threads: against scikit-learn's serial SGD, and its schemes with each other.

    python benchmarks/hogwild.py
    python benchmarks/hogwild.py speed --rounds 9
    python benchmarks/hogwild.py --quick

Part `speed`: a linear SVM on samples of the shape of RCV1 (47,236 features, 75 nonzeros a row),
whose features are drawn alike or by Zipf's law, with and without a penalty, in an equal number of
epochs with an equal, constant step: scikit-learn's SGDClassifier (Cython, one thread, float32), and
ours with one thread, with two under Hogwild! and with two under HogWild++ (an x for each thread),
with the samples in any order or in blocks of 8 in any order; beside them two threads that take half
of the samples each and share nothing, and reading the samples once.
With the penalty every update writes, without it those within the margin. What a cache line takes
from one core to the other is measured before and after each figure, as virtual machines move
between cores: where it took longer than 100 ns the figure does not count. Part `limit`: what the
accesses alone take, in a bare loop, by how many updates write. Part `delays`: schemes on two
threads, and on ten simulated workers, with a delay after each gradient, as in the paper's figure 5.
Part `density`: speed-up against the number of features that samples of 20 nonzeros are drawn from.
All contestants of a part take turns; the figures are medians over the rounds.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from common import options
from common.cores import Trials, read_and_write, together
from scipy.sparse import csr_matrix
from sklearn.linear_model import SGDClassifier

from offbeat.hogwild import Instance, Scheme, Settings, SparseSVM, simulate, train
from offbeat.hogwild.compiling import compiled
from offbeat.hogwild.outcome import machine
from offbeat.hogwild.schemes import orders
from offbeat.hogwild.training import go_through

BLOCKS = (1, 8)
SHARING: tuple[tuple[Scheme, str], ...] = (
    ("serial", "1 thread"),
    ("hogwild", "2 threads, Hogwild!"),
    ("hogwild++", "2 threads, HogWild++"),
)
RIVAL, APART = "SGDClassifier", "2 threads that share nothing"
SKEWS = {"drawn alike": 0.0, "by Zipf's law, exponent 0.75": 0.75}
PASSES = 10
"""Over the rows, of the bare accesses: threads begin milliseconds one after the other."""
Figures = dict[str, Any]


class Regularized(NamedTuple):
    alpha: float
    """SGDClassifier's: the penalty is alpha / 2 |x|^2; its default, or none."""
    step: float
    """With the penalty the best of 0.02, 0.1, 0.3, 1 and 3 on 50,000 noisier rows; without one not
    the best: 3 ends lower by an eighth."""
    epochs: int


KINDS = {
    "with a penalty": Regularized(alpha=1e-4, step=0.1, epochs=5),
    "without a penalty": Regularized(alpha=0.0, step=1.0, epochs=10),
}


def measured(contestants: dict[str, Callable[[], float]], rounds: int) -> Trials:
    """What each takes; in a round all take turns."""
    trials = Trials()
    for _ in range(rounds):
        for name, measure in contestants.items():
            trials.take(name, measure)
    return trials


@compiled
def read_once(vertices: Any, values: Any, shrinkage: Any) -> float:
    total = 0.0
    for k in range(len(vertices)):
        total += vertices[k] + values[k] + shrinkage[k]
    return total


def speed(rounds: int, rows: int, quick: bool) -> Figures:
    """Nanoseconds for each nonzero and epoch."""
    figures: Figures = {}
    for of_features, skew in SKEWS.items():
        for kind, regularized in KINDS.items():
            if quick:
                regularized = regularized._replace(epochs=1)
            problem = SparseSVM(rows=rows, skew=skew, noise=0.1, l2=rows * regularized.alpha / 2)
            name = f"features {of_features}, {kind}"
            figures[name] = found = _speed(problem, regularized, rounds)
            sparsity = problem.instance().sparsity
            print(f"\n{name}: {rows:,} rows, {sparsity}")
            print(f"{found['written']:.0%} of updates write; {found['said']}\n")
            print("| | ns per nonzero and epoch | objective |\n|---|---|---|")
            for contestant, ns in found["ns"].items():
                objective = found["objective"].get(contestant)
                shown = "" if objective is None else f"{objective:.4f}"
                print(f"| {contestant} | {ns:.2f} | {shown} |")
            ns = found["ns"]
            print()
            for block in BLOCKS:
                one, two, apart = (ns[_name(of_scheme, block)] for _, of_scheme in SHARING)
                print(
                    f"{_blocks(block)}: 1 thread takes {one / ns[RIVAL]:.2f} of SGDClassifier's "
                    f"time; 2 are {one / two:.2f} times as fast as 1, and under HogWild++ "
                    f"{one / apart:.2f} times"
                )
            alone = ns[_name(SHARING[0][1], 8)]
            print(f"2 that share nothing are {alone / ns[APART]:.2f} times as fast as 1")
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

    def threads(scheme: Scheme, name: str, block: int) -> float:
        workers = 1 if scheme == "serial" else 2
        outcome = train(problem, replace(constant, scheme=scheme, workers=workers, block=block))
        ours[_name(name, block)] = outcome.objective
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
            _name(name, block): functools.partial(threads, scheme, name, block)
            for block in BLOCKS
            for scheme, name in SHARING
        },
        APART: apart,
        "reading the samples": floor,
    }
    found = measured(contestants, rounds)
    watched = train(problem, replace(constant, watch=True)).collisions
    assert watched is not None
    return {
        "ns": found.medians(),
        "objective": ours,
        "written": float(watched.updates.sum() / nonzeros / epochs),
        "said": str(found),
    }


def _name(sharing: str, block: int) -> str:
    return f"{sharing}, {_blocks(block)}"


def _blocks(block: int) -> str:
    return "any order" if block == 1 else f"blocks of {block}"


def _apart(instance: Instance, epochs: int, step: float) -> float:
    """Seconds in which two threads take half of the edges each, so often, with an x of its own."""
    (order,) = orders(instance.edges, Settings(), np.random.default_rng(0))

    def take(share: Any) -> None:
        x = instance.start.copy()
        for _ in range(epochs):
            go_through(instance, share, x, np.float32(step))

    halves = np.array_split(order, 2)
    return together(lambda mine: take(halves[mine]))


def limit(rounds: int, rows: int, given: Sequence[float]) -> Figures:
    """Nanoseconds for each nonzero of the bare accesses: 1 thread, 2, and 2 with an x each."""
    rng = np.random.default_rng(0)
    features = np.sort(rng.integers(0, 47_236, (rows, 75), np.int32))
    values = np.full((rows, 75), 0.1, np.float32)
    common, own = np.zeros(47_236, np.float32), np.zeros(47_236, np.float32)
    figures: Figures = {}
    print(f"\nthe accesses alone: {rows:,} rows of 75 of 47,236 features; ns per nonzero\n")
    print("| updates that write | 1 thread | 2 threads | ratio | 2 that share nothing |")
    print("|---|---|---|---|---|")
    for fraction in given:
        writes = rng.random(rows) < fraction

        def half(mine: int, x: Any, writes: Any = writes) -> None:
            begin = rows // 2 * mine
            read_and_write(features, values, writes, x, begin, begin + rows // 2, PASSES)

        def one(half: Callable[[int, Any], None] = half) -> float:
            begun = time.perf_counter()
            half(0, common)
            half(1, common)
            return time.perf_counter() - begun

        def two(half: Callable[[int, Any], None] = half) -> float:
            return together(lambda mine: half(mine, common))

        def apart(half: Callable[[int, Any], None] = half) -> float:
            return together(lambda mine: half(mine, (common, own)[mine]))

        contestants = {"1": one, "2": two, "apart": apart}
        one()
        ns = {
            name: seconds / values.size / PASSES * 1e9
            for name, seconds in measured(contestants, rounds).medians().items()
        }
        figures[f"{fraction:g}"] = ns
        print(
            f"| {fraction:.0%} | {ns['1']:.2f} | {ns['2']:.2f} | {ns['1'] / ns['2']:.2f} "
            f"| {ns['apart']:.2f} |"
        )
    return figures


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
            taken = measured(contestants, 1 if simulated else rounds).medians()
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
        taken = measured(
            {
                "serial": functools.partial(_seconds, train, problem, alone),
                "hogwild": functools.partial(_seconds, train, problem, both),
            },
            rounds,
        ).medians()
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


PARTS = ("speed", "limit", "delays", "density")


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
        elif part == "limit":
            figures[part] = limit(rounds, 500 if quick else 100_000, (1.0, 0.5, 0.25, 0.1, 0.0))
        elif part == "delays":
            given = (0.0, 1e-6) if quick else (0.0, 1e-6, 1e-5, 1e-4, 1e-3)
            figures[part] = delays(rounds, 100 if quick else 2000, given)
        else:
            given = (2000, 100) if quick else (100_000, 10_000, 1000, 100)
            figures[part] = density(rounds, 200 if quick else 10_000, given)
    options.write(figures, asked.out)


if __name__ == "__main__":
    main()
