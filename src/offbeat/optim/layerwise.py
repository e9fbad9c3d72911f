"""What layer-wise optimizers share: which tensors have a trust ratio, and how a step goes."""

# pyright: reportPrivateImportUsage=false
# torch exports its _foreach functions, which its own optimizers are made of, without naming them.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

Adapt = Literal["matrices", "all", "none"]
"""Which tensors have a trust ratio and decay: those of two dimensions or more, all, or none."""

CHUNK = 1 << 20
"""Bytes that a CPU steps at a time, so that what one pass writes the next finds in a cache."""


class Layerwise(Optimizer, ABC):
    """An optimizer whose step depends on the norms of whole tensors.

    Gradients are only read. Every hyper-parameter can differ from group to group.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._require_usable({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step along `.grad` of every parameter that has one.

        Args:
            closure: computes the loss and the gradients, once, before the step.

        Returns:
            What the closure did.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in trained):
                raise RuntimeError(f"{type(self).__name__} needs dense gradients, not sparse ones")
            for adapts in (True, False):
                alike = [p for p in trained if _adapts(p, group["adapt"]) == adapts]
                for some in chunks(alike):
                    gradients = [p.grad for p in some if p.grad is not None]
                    (self._adapted if adapts else self._plain)(some, gradients, group)
        return loss

    @abstractmethod
    def _adapted(
        self, parameters: list[Tensor], gradients: list[Tensor], group: Mapping[str, Any]
    ) -> None:
        """The step with decay and trust ratios."""

    @abstractmethod
    def _plain(
        self, parameters: list[Tensor], gradients: list[Tensor], group: Mapping[str, Any]
    ) -> None:
        """The step without them."""

    def _buffers(self, name: str, parameters: Iterable[Tensor]) -> list[Tensor]:
        """What is kept of each parameter under that name; zeros at first."""
        found: list[Tensor] = []
        for parameter in parameters:
            state = self.state[parameter]
            if name not in state:
                state[name] = torch.zeros_like(parameter)
            found.append(state[name])
        return found

    def _require_usable(self, group: Mapping[str, Any]) -> None:
        """
        Raises:
            ValueError: a hyper-parameter cannot be.
        """
        name = type(self).__name__
        for setting in ("lr", "weight_decay", "eps", "trust_coefficient"):
            if not group.get(setting, 0.0) >= 0:
                raise ValueError(f"{name}: {setting} is {group[setting]}; it must not be negative")
        for rate in (group.get("momentum", 0.0), *group.get("betas", ())):
            if not 0 <= rate < 1:
                word = "betas are" if "betas" in group else "momentum is"
                value = group.get("betas", rate)
                raise ValueError(f"{name}: {word} {value}; give at least 0 and less than 1")
        if group["adapt"] not in get_args(Adapt):
            allowed = ", ".join(get_args(Adapt))
            raise ValueError(f"{name}: adapt is {group['adapt']!r}; it is one of {allowed}")
        bounds = group.get("norm_bounds")
        if bounds is not None and not 0 <= bounds[0] <= bounds[1]:
            raise ValueError(f"{name}: norm_bounds are {bounds}; give 0 <= lower <= upper")
        if group.get("differentiable"):
            raise ValueError(f"{name}: a step cannot be differentiated; leave differentiable out")


def chunks(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one device and type, in order; on a CPU few at a time, at least one."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        alike.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    for (device, _), together in alike.items():
        if device.type != "cpu":
            yield together
            continue
        some: list[Tensor] = []
        size = 0
        for parameter in together:
            if some and size + parameter.nbytes > CHUNK:
                yield some
                some, size = [], 0
            some.append(parameter)
            size += parameter.nbytes
        yield some


def norms(tensors: list[Tensor]) -> Tensor:
    """Euclidean norms (k,) of k tensors, each as a whole."""
    return torch.stack(torch._foreach_norm(tensors))


def trust_ratios(numerators: Tensor, denominators: Tensor) -> Tensor:
    """(k,): their quotients, and 1 where either is 0, so that a tensor of zeros can leave it."""
    usable = (numerators > 0) & (denominators > 0)
    return torch.where(usable, numerators / denominators, 1.0)


def bounded(values: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """phi(z) (k,): z, or min(max(z, lower), upper)."""
    return values if bounds is None else values.clamp(*bounds)


def _adapts(parameter: Tensor, adapt: Adapt) -> bool:
    return adapt == "all" or (adapt == "matrices" and parameter.ndim > 1)
