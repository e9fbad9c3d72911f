"""Staleness-aware asynchronous SGD under the n-softsync protocol."""

from __future__ import annotations

from dataclasses import dataclass, field

from .gathering import GatheringSGD
from .staleness import InverseStaleness, StalenessRule


@dataclass(frozen=True, kw_only=True)
class SoftsyncSGD(GatheringSGD):
    """n-softsync: x <- x - (1/c) sum_i (lr / tau_i) g_i over the next c = floor(lambda / n) pushes.

    lambda is the number of workers; whoever sends the c gradients, nobody waits. Staleness is
    about n in the mean. The rate of a fresh gradient, tau = 0, is lr itself.

    Args:
        splitting: n, from 1 (a step of as many gradients as there are workers) to the number of
            workers (a step of each gradient).
        rule: what the learning rate is multiplied by, by staleness.

    Roles: worker, server. Messages: Push, Pull.
    Reference: Zhang et al., "Staleness-aware Async-SGD for Distributed Deep Learning", IJCAI 2016.
    Differences: where the inner optimizer is more than plain SGD, the mean weight scales its
    learning rate and the gradients are averaged with the weights.
    """

    splitting: int = 1
    rule: StalenessRule = field(default_factory=InverseStaleness)

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if not 1 <= self.splitting <= workers:
            raise ValueError(
                f"splitting is {self.splitting}; it must be from 1 to the number of workers, "
                f"{workers}"
            )

    def gathers(self, workers: int) -> int:
        return workers // self.splitting

    def rule_of(self) -> StalenessRule:
        return self.rule
