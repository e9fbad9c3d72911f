"""Post-local SGD."""

from __future__ import annotations

from dataclasses import dataclass

from .local_sgd import LocalSGD


@dataclass(frozen=True, kw_only=True)
class PostLocalSGD(LocalSGD):
    """Local SGD from a switch on; before it all x_i <- mean_j x_j after every step.

    Before the switch that is all-reduce SGD, its momentum apart; the paper's switch is where the
    learning rate decays first.

    Args:
        local_steps: H after the switch.
        switch: steps of each worker before it. A milestone of a schedule, in samples, is this
            times batch size times workers.

    Roles: worker. Messages: the collective's own.
    Reference: Lin et al., "Don't Use Large Mini-Batches, Use Local SGD", ICLR 2020.
    Differences: parameters are averaged before the switch too, not gradients, so that momentum and
    other buffers of the inner optimizer stay with their worker throughout.
    """

    local_steps: int = 16
    switch: int = 50

    def validate(self, workers: int) -> None:
        super().validate(workers)
        if self.switch < 0:
            raise ValueError(f"switch is {self.switch}; it must not be negative")

    def agreed(self, round: int) -> bool:
        return round < self.switch or (round - self.switch + 1) % self.local_steps == 0
