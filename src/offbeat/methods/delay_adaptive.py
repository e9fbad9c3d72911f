"""Delay-adaptive asynchronous SGD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .gathering import GatheringSGD
from .staleness import DelayAdaptive, DropBeyond, StalenessRule


@dataclass(frozen=True, kw_only=True)
class DelayAdaptiveSGD(GatheringSGD):
    """Delay-adaptive SGD: x <- x - lr * min(1, T / tau) g(x_{k-tau}): a late gradient steps less.

    With T the number of workers n and lr = 1/(2 n L) this is the rate min{1/(2 n L), 1/(2 L tau)}
    of the convergence theorem without noise. The rate depends on the delay only, not on the
    gradient.

    Args:
        threshold: T, the delay in steps up to which the whole rate applies; the number of workers
            if not given.
        late: beyond T a gradient's rate is "scale"d by T / tau, or it is "drop"ped.

    Roles: worker, server. Messages: Push, Pull.
    Reference: Mishchenko et al., "Asynchronous SGD Beats Minibatch SGD Under Arbitrary Delays",
    NeurIPS 2022; Koloskova, Stich and Jaggi, "Sharper Convergence Guarantees for Asynchronous SGD
    for Distributed and Federated Learning", NeurIPS 2022.
    Differences: a dropped gradient makes no step, so it does not count in the delay of others. The
    theory is of plain SGD; momentum and other buffers are the inner optimizer's.
    """

    threshold: int | None = None
    late: Literal["scale", "drop"] = "scale"

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.late == "drop" and self.threshold is None:
            raise ValueError('late is "drop"; give the threshold beyond which to drop')

    def gathers(self, workers: int) -> int:
        return 1

    def rule_of(self) -> StalenessRule:
        if self.late == "drop" and self.threshold is not None:
            return DropBeyond(limit=self.threshold)
        return DelayAdaptive(threshold=self.threshold)
