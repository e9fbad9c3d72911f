"""The largest learning rate that is stable."""

from __future__ import annotations

from collections.abc import Sequence

from ..experiment import Experiment
from .results import SEED, Row, columns_of

MARGIN = 0.1
"""How far above chance a stable accuracy is, if nothing else is said."""


def stable_rates(
    results: Sequence[Row], rate: str, chance: float, margin: float = MARGIN
) -> list[tuple[dict[str, str], str | None]]:
    """The largest stable rate for every combination of the other settings but the seed.

    A rate is stable if no run at it failed, and the accuracy of each exceeds `chance` by more than
    `margin`. None where no rate is.

    Args:
        rate: the swept setting that is the learning rate, such as "optimizer.lr".
        chance: the accuracy of the best constant answer.

    Raises:
        ValueError: `rate` is not swept over, or not by numbers.
    """
    over = columns_of(results)
    if rate not in over:
        raise ValueError(f"--stable {rate} is not swept over; there are {', '.join(over)}")
    try:
        ordered = sorted(over[rate], key=float)
    except ValueError:
        raise ValueError(f"--stable {rate}: its values are not all numbers") from None
    groups: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    others = [name for name in over if name not in (rate, SEED)]
    for row in results:
        key = tuple(row.values[name] for name in others)
        groups.setdefault(key, {}).setdefault(row.values[rate], []).append(row)
    return [
        (
            dict(zip(others, key, strict=True)),
            next((r for r in reversed(ordered) if _is_stable(tried[r], chance + margin)), None),
        )
        for key, tried in groups.items()
    ]


def _is_stable(rows: Sequence[Row], least: float) -> bool:
    return all(row.error is None and row.accuracy > least for row in rows)


def chance_of(experiment: Experiment) -> float:
    """The accuracy of the best constant answer: the share of the most frequent class.

    Raises:
        ValueError: the problem has no classes.
    """
    targets = getattr(experiment.problem.data(), experiment.evaluate_on).targets
    if targets.is_floating_point():
        raise ValueError(f"--stable: {type(experiment.problem).__name__} has no accuracy")
    return targets.flatten().bincount().max().item() / targets.numel()
