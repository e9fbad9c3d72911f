"""Bare optimizers: torch's own, without what torch does around their construction and their steps.

Both import its compiler, which takes longer than many a run's first second, and on a small model
what surrounds a step costs twice as much as the step itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

_COMPILER = "torch._dynamo"
_HOOKED = getattr(Optimizer.profile_hook_step(Optimizer.step), "__code__")  # noqa: B009
"""Of the function in which torch wraps every optimizer's step."""
_TORCH = os.path.join(os.path.dirname(torch.__file__), "")
_enable_grad: Callable[[bool], None] = torch._C._set_grad_enabled
"""What `torch.no_grad` calls."""
_NOT_COMPILED = "__dynamo_disable"
"""Where torch keeps, of a function that it does not compile, the form that it calls instead."""


@contextlib.contextmanager
def compiler_left_out() -> Generator[None]:
    """Optimizers constructed in the block do not import torch's compiler."""
    construct: Any = getattr(Optimizer.add_param_group, "__wrapped__", None)
    if construct is None or _COMPILER in sys.modules or hasattr(construct, _NOT_COMPILED):
        yield
        return
    setattr(construct, _NOT_COMPILED, construct)
    try:
        yield
    finally:
        vars(construct).pop(_NOT_COMPILED, None)  # Another thread may have been as far.


def is_untouched(optimizer: Optimizer) -> bool:
    """Whether its steps run nobody else's code: no hooks, and no step put in its class's place."""
    kind = type(optimizer)
    own = _is_own(kind, kind.step) and "step" not in optimizer.__dict__
    return own and not has_hooks(optimizer)


def has_hooks(optimizer: Optimizer) -> bool:
    """Whether anybody is to be called before or after its steps."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )


@lru_cache(maxsize=64)
def _is_own(kind: type[Optimizer], step: Any) -> bool:
    """Whether a class's step is what it was written with, in torch's hooks.

    What others put in its place before the first was constructed lies within these hooks.
    """
    if getattr(step, "__code__", None) is not _HOOKED:
        return False
    return not kind.__module__.startswith("torch.optim.") or _is_torchs(step)


def _is_torchs(function: Any) -> bool:
    """Whether torch has written it, and all that it is wrapped around."""
    while function is not None:
        code = getattr(function, "__code__", None)
        if code is None or not code.co_filename.startswith(_TORCH):
            return False
        function = getattr(function, "__wrapped__", None)
    return True


def is_observed(optimizer: Optimizer) -> bool:
    """Whether a step needs what torch puts around it: hooks, or a record for its profiler."""
    return has_hooks(optimizer) or torch.autograd._profiler_enabled()  # pyright: ignore[reportPrivateImportUsage]


def bare_step(optimizer: Optimizer) -> Callable[[], object]:
    """`optimizer.step`, with the same arithmetic and its hooks.

    Left out are, where there are no hooks, the profiler's record, the choice of an implementation
    and the compiler's breaks.
    """
    for group in optimizer.param_groups:
        on_cpu = all(p.device.type == "cpu" for p in group["params"])
        if on_cpu and group.get("foreach", True) is None and group.get("fused") is None:
            group["foreach"] = False  # What torch chooses on a CPU.
    kind = type(optimizer)
    bare, captured, beneath = _bare(optimizer), kind.step, SGD._init_group
    if bare is None:
        return optimizer.step

    def step() -> None:
        if kind.step is captured and SGD._init_group is beneath and is_untouched(optimizer):
            bare()
        else:
            optimizer.step()

    return step


def _bare(optimizer: Optimizer) -> Callable[[], object] | None:
    """What torch wraps in hooks; None of what it does not."""
    step: Any = type(optimizer).step
    if not _is_own(type(optimizer), step):
        return None
    short = type(optimizer) is SGD and _is_torchs(SGD._init_group)
    if short and all(map(_is_simple, optimizer.param_groups)):
        return partial(_sgd_step, optimizer)
    step = step.__wrapped__
    code = getattr(step, "__code__", None)
    breaks = code is not None and code.co_name == "_use_grad"
    if breaks and not optimizer.defaults.get("differentiable"):
        return partial(_without_grad, step.__wrapped__, optimizer)
    return partial(step, optimizer)


def _is_simple(group: Mapping[str, Any]) -> bool:
    """Whether SGD steps tensors one by one, or all at once by one call."""
    kinds = {(parameter.device, parameter.dtype) for parameter in group["params"]}
    alike = len(kinds) == 1 if group["fused"] else group["foreach"] is False
    return alike and not group["differentiable"] and not isinstance(group["lr"], Tensor)


def _sgd_step(optimizer: Optimizer) -> None:
    """SGD's step, with the same bits as torch's."""
    before = torch.is_grad_enabled()
    _enable_grad(False)  # `torch.no_grad` makes six calls of functions written in Python.
    try:
        for group in optimizer.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (_fused_sgd if group["fused"] else _sgd)(optimizer, group, parameters)
    finally:
        _enable_grad(before)


def _sgd(optimizer: Optimizer, group: Mapping[str, Any], parameters: list[Tensor]) -> None:
    momentum, decay = group["momentum"], group["weight_decay"]
    for parameter in parameters:
        gradient: Any = parameter.grad
        if group["maximize"]:
            gradient = -gradient
        if decay:
            gradient = gradient.add(parameter, alpha=decay)
        if momentum:
            state = optimizer.state[parameter]
            velocity = state.get("momentum_buffer")
            if velocity is None:
                velocity = state["momentum_buffer"] = gradient.clone()
            else:
                velocity.mul_(momentum).add_(gradient, alpha=1 - group["dampening"])
            nesterov = group["nesterov"]
            gradient = gradient.add(velocity, alpha=momentum) if nesterov else velocity
        parameter.add_(gradient, alpha=-float(group["lr"]))


def _fused_sgd(optimizer: Optimizer, group: Mapping[str, Any], parameters: list[Tensor]) -> None:
    momentum: float = group["momentum"]
    velocities: list[Tensor] = []
    first = False
    if momentum:
        states = [optimizer.state[parameter] for parameter in parameters]
        first = all(state.get("momentum_buffer") is None for state in states)
        if first:
            for parameter, state in zip(parameters, states, strict=True):
                state["momentum_buffer"] = torch.empty_like(parameter)
        velocities = [state["momentum_buffer"] for state in states]
    gradients: list[Any] = [parameter.grad for parameter in parameters]
    if parameters:
        torch._fused_sgd_(  # pyright: ignore[reportPrivateImportUsage]
            parameters,
            gradients,
            velocities,
            weight_decay=group["weight_decay"],
            momentum=momentum,
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=first,
        )


def _without_grad(step: Callable[[Optimizer], object], optimizer: Optimizer) -> None:
    with torch.no_grad():
        step(optimizer)
