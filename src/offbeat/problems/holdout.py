"""The fixed rule by which a part of a data set is held out."""

import torch
from torch import Tensor

from offbeat.problems.problem import Split


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """Divide `split` into (kept, held out), the same way every time.

    Samples are ordered by class, and by position within a class, and round(fraction * N) evenly
    spaced ones are held out: each class gives its share, to within one sample, and no random
    number is involved. Targets that are not classes, one integer a sample, keep their order.
    Both parts keep the order of `split`, and both have at least one sample.

    Raises:
        ValueError: if `fraction` is not between 0 and 1, or there are fewer than two samples.
    """
    check_fraction(fraction)
    samples = len(split)
    if samples < 2:
        raise ValueError(f"a part can only be held out of two samples or more, not of {samples}")
    order = torch.arange(samples)
    if is_classes(split.targets):
        order = split.targets.argsort(stable=True)
    count = min(max(round(fraction * samples), 1), samples - 1)
    # The middle of each of `count` equal stretches.
    places = ((2 * torch.arange(count) + 1) * samples) // (2 * count)
    held = torch.zeros(samples, dtype=torch.bool)
    held[order[places]] = True
    return split.take((~held).nonzero().flatten()), split.take(held.nonzero().flatten())


def check_fraction(fraction: float) -> None:
    """Raise ValueError unless 0 < fraction < 1: no part may be empty, for each is evaluated."""
    if not 0 < fraction < 1:
        raise ValueError(f"validation must be a fraction between 0 and 1, not {fraction}")


def is_classes(targets: Tensor) -> bool:
    """Whether `targets` are class numbers, one integer a sample."""
    return targets.ndim == 1 and not (targets.is_floating_point() or targets.is_complex())
