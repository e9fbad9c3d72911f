"""What of the user's module and optimizer a method trains, and what may not change meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ..optim import Delayed
from ..stepping import UNUSABLE


class Trained(nn.Module):
    """A module of which only the parameters that require gradients count.

    Frozen ones are constants: no optimizer steps them, and nothing of them travels after the
    start.

    Raises:
        ValueError: one of them is not in the optimizer, or they differ in dtype or device.
    """

    def __init__(self, whole: nn.Module, optimizer: Optimizer) -> None:
        super().__init__()
        _require_types(whole, optimizer)
        _require_shapes(whole)
        self.whole = whole
        self.named = [(n, p) for n, p in whole.named_parameters() if p.requires_grad]
        require_usable(optimizer)
        self._require_held(optimizer)
        self._require_alike()

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self.named)

    def constants(self) -> dict[str, Tensor]:
        """Frozen parameters and buffers, by name."""
        frozen = {n: p.data for n, p in self.whole.named_parameters() if not p.requires_grad}
        return frozen | dict(self.whole.named_buffers())

    def gradients(self) -> list[Tensor]:
        """What backward has left in `.grad`; zeros where it left nothing.

        Raises:
            ValueError: a parameter has been frozen.
        """
        found: list[Tensor] = []
        for name, parameter in self.named:
            if (gradient := parameter.grad) is not None:
                # That of `backward(create_graph=True)` has a graph of its own.
                found.append(gradient.detach() if gradient.requires_grad else gradient)
                continue
            if not parameter.requires_grad:
                raise ValueError(
                    f"parameter {name} was frozen inside the block; freeze parameters before "
                    "distribute(), or leave the block and call it again"
                )
            found.append(torch.zeros_like(parameter))
        return found

    def _require_held(self, optimizer: Optimizer) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not self.named:
            raise ValueError("the model has no parameter that requires gradients")
        for name, parameter in self.named:
            if id(parameter) not in held:
                raise ValueError(
                    f"parameter {name} is not in the optimizer; distribute() needs an optimizer "
                    "of all of the module's parameters, or requires_grad_(False) on the others"
                )
        own = {id(p) for _, p in self.named}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad and id(parameter) not in own:
                    shape = tuple(parameter.shape)
                    raise ValueError(
                        f"the optimizer has a parameter of shape {shape} that is not in the model; "
                        "give distribute() the module that holds all of its parameters"
                    )

    def _require_alike(self) -> None:
        first_name, first = self.named[0]
        for name, parameter in self.named:
            for what, ours, theirs in (
                ("dtype", first.dtype, parameter.dtype),
                ("device", first.device, parameter.device),
            ):
                if ours != theirs:
                    raise ValueError(
                        f"parameters differ in {what}: {first_name} has {ours}, {name} has "
                        f"{theirs}; all that are trained must be alike"
                    )


def overwrite(tensor: Tensor, value: Tensor) -> None:
    """Copy a value into a tensor, one also that `expand` made, whose repeats are one number."""
    once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in tensor.stride())
    tensor[once].copy_(value[once])


def _require_types(whole: object, optimizer: object) -> None:
    # Whoever calls may have no type checker, and mistakes the order.
    for what, value, wanted in (("model", whole, nn.Module), ("optimizer", optimizer, Optimizer)):
        if not isinstance(value, wanted):
            raise ValueError(
                f"{what} is a {type(value).__name__}; it must be a torch {wanted.__name__}"
            )


def _require_shapes(whole: nn.Module) -> None:
    for name, tensor in [*whole.named_parameters(), *whole.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(
                f"{name} has no shape yet: let the model compute a batch before distribute()"
            )


def require_usable(optimizer: Optimizer) -> None:
    name = type(optimizer).__name__
    if name in UNUSABLE:
        raise ValueError(f"optimizer {name} cannot be used: {UNUSABLE[name]}")
    if isinstance(optimizer, Delayed):
        raise ValueError(
            "optimizer Delayed cannot be distributed: here delays are real, and its queue would "
            "not be of this job's gradients; give distribute() the optimizer inside"
        )
    replaced = vars(optimizer).get("step")
    # A scheduler's is marked, and the class's but for a note of its call.
    of_scheduler = hasattr(replaced, "_wrapped_by_lr_sched")
    own = of_scheduler and getattr(replaced, "__wrapped__", None) is type(optimizer).step
    if replaced is not None and not own:
        raise ValueError(
            f"the step of this {name} has been replaced on the object, and would not run for the "
            "optimizers that distribute() makes of it: replace it in a subclass"
        )


_SETTINGS = (int, float, str, tuple, type(None))  # A union of them would take ten times as long.
_MOSTLY = frozenset({bool, *_SETTINGS})


def settings_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The hyper-parameters of each parameter group: numbers, tuples of them, switches, names."""
    return [*map(plain, optimizer.param_groups)]


def changed_settings(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """What of each group's settings is new; the rest, an optimizer may have counted in itself."""
    return [
        {key: value for key, value in new.items() if key not in old or old[key] != value}
        for old, new in zip(before, after, strict=True)
    ]


def plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter group without its parameters; tensors of one number become that number."""
    found: dict[str, Any] = {}
    for key, value in group.items():
        if type(value) in _MOSTLY or isinstance(value, _SETTINGS):
            found[key] = value
        elif isinstance(value, Tensor) and value.numel() == 1:
            found[key] = value.item()
    return found
