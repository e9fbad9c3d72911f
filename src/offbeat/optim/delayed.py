"""Delayed: any optimizer, with gradients that come late."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Delay = Callable[[int, random.Random], int]
"""By how many steps the gradient of step number k, from 0, is late: called as `delay(k, rng)`."""


@dataclass(frozen=True, kw_only=True)
class NormalDelay:
    """Normally distributed, rounded, and not negative.

    With N workers whose steps take normally distributed times the delay is about normal, and its
    mean N - 1.

    Args:
        mean: in steps.
        std: standard deviation, in steps.
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (self.mean >= 0 and self.std >= 0):
            raise ValueError(
                f"NormalDelay: mean {self.mean:g} and std {self.std:g} must not be negative"
            )

    def __call__(self, step: int, rng: random.Random) -> int:
        return max(0, round(rng.gauss(self.mean, self.std)))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    due: int
    """The step at which it may be applied."""
    gradients: list[Tensor | None]
    """Of each parameter, in the order of the groups."""


class Delayed(Optimizer):
    """Applies each gradient some steps after it was computed: staleness, without other workers.

    At step k, from 0, the gradient g_k of the present parameters joins the end of a queue, to wait
    there for d_k steps. Then the wrapped optimizer steps along each gradient at the queue's head
    whose time has come, one by one, oldest first. No gradient overtakes another: one that is due
    waits for those before it. With a constant delay d nothing moves in the first d steps, and step
    k applies g_{k-d}; delay 0 is the wrapped optimizer, to the bit.

    Momentum, decay and the learning rate are those of the step that applies the gradient. The last
    gradients stay in the queue; `flush()` applies them. `state_dict` has the queue with it.

    A closure is called once, at the present parameters; the gradient that it leaves is queued, and
    the wrapped optimizer never sees it. So optimizers that need one, such as LBFGS, cannot be
    wrapped.

        optimizer = Delayed(torch.optim.SGD(model.parameters(), lr=0.01), delay=8)

    Args:
        optimizer: the wrapped one; do not step it yourself.
        delay: in steps; or a function of the step's number and of a `random.Random`, such as
            `NormalDelay(mean=31, std=5)`.
        seed: of the random delays.

    Reference: Jain, Srinivasan and Barekatain, "Analysis of the delayed gradients problem in
    asynchronous SGD", ICLR workshop 2018.
    """

    def __init__(self, optimizer: Optimizer, delay: int | Delay, *, seed: int = 0) -> None:
        if not isinstance(optimizer, Optimizer):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                "Delayed wraps an optimizer: Delayed(torch.optim.SGD(parameters, lr=0.1), delay=8)"
            )
        if isinstance(delay, int):
            _require_steps(delay)
        self.optimizer = optimizer
        self._delay = delay
        self._rng = random.Random(seed)
        self._queue: deque[_Waiting] = deque()
        self._steps = 0
        # The base class's constructor would make groups anew; they stay the wrapped one's own.
        for hooks in ("step", "state_dict", "load_state_dict"):
            for when in ("pre", "post"):
                setattr(self, f"_optimizer_{hooks}_{when}_hooks", OrderedDict[int, Any]())
        self._patch_step_function()
        self._share()

    @property
    def pending(self) -> int:
        """How many gradients wait."""
        return len(self._queue)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Queue `.grad`, and apply what is due.

        Returns:
            What the closure did.

        Raises:
            ValueError: the delay is no number of steps.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        delay = self._delay
        late = delay if isinstance(delay, int) else _require_steps(delay(self._steps, self._rng))
        if late == 0 and not self._queue:
            self.optimizer.step()
        else:
            # A copy: the memory of `.grad` is used again.
            gradients = [None if p.grad is None else p.grad.clone() for p in self._parameters()]
            self._queue.append(_Waiting(due=self._steps + late, gradients=gradients))
            while self._queue and self._queue[0].due <= self._steps:
                self._apply(self._queue.popleft())
        self._steps += 1
        return loss

    def flush(self) -> int:
        """Apply all gradients that wait, oldest first; returns how many."""
        count = len(self._queue)
        while self._queue:
            self._apply(self._queue.popleft())
        return count

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The wrapped optimizer's, and the gradients that wait, with the steps they are due at."""
        return {
            **self.optimizer.state_dict(),
            "delayed": {
                "steps": self._steps,
                "random": self._rng.getstate(),
                "due": [waiting.due for waiting in self._queue],
                "gradients": [waiting.gradients for waiting in self._queue],
            },
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """
        Raises:
            ValueError: it is not of a Delayed.
        """
        if "delayed" not in state_dict:
            raise ValueError("this is no state of a Delayed, but maybe of the optimizer inside")
        saved = state_dict["delayed"]
        self.optimizer.load_state_dict({k: v for k, v in state_dict.items() if k != "delayed"})
        self._share()
        self._steps = saved["steps"]
        self._rng.setstate(saved["random"])
        self._queue = deque(
            _Waiting(due=due, gradients=self._placed(gradients))
            for due, gradients in zip(saved["due"], saved["gradients"], strict=True)
        )

    def _share(self) -> None:
        self.defaults = self.optimizer.defaults
        self.state = self.optimizer.state
        self.param_groups = self.optimizer.param_groups

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def _placed(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Copies beside the parameters."""
        return [
            None if g is None else g.to(p.device, p.dtype, copy=True)
            for g, p in zip(gradients, self._parameters(), strict=False)
        ]

    def _apply(self, waiting: _Waiting) -> None:
        """One step of the wrapped optimizer; `.grad` is afterwards what it was."""
        parameters = self._parameters()
        present = [p.grad for p in parameters]
        # What was not yet among the parameters then has no gradient.
        for parameter, gradient in zip_longest(parameters, waiting.gradients):
            parameter.grad = gradient
        try:
            self.optimizer.step()
        finally:
            for parameter, gradient in zip(parameters, present, strict=True):
                parameter.grad = gradient


def _require_steps(delay: Any) -> int:
    """
    Raises:
        ValueError: a negative number, or none.
    """
    if not isinstance(delay, int) or delay < 0:
        raise ValueError(f"Delayed: delay is {delay!r}; it must be a number of steps, at least 0")
    return delay
