"""Terms: what the ranks of a user's loop must have alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from torch import Tensor
from torch.optim import Optimizer

from ...labels import label
from ...method import Method
from ...parameters import Layout
from ..errors import RunError
from ..trained import Trained
from ..world import require_same_layout


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Of one rank."""

    layout: Layout
    """Of what is trained."""
    tensors: dict[str, str]
    """Type and shape of all parameters and buffers, by name."""
    method: str
    optimizer: str
    seed: int

    @classmethod
    def of(cls, trained: Trained, optimizer: Optimizer, method: Method, seed: int) -> Self:
        tensors: dict[str, Tensor] = {**dict(trained.named), **trained.constants()}
        return cls(
            layout=Layout.of(trained),
            tensors={name: _kind(tensor) for name, tensor in tensors.items()},
            # Functions lie elsewhere in each process.
            method=re.sub(r" at 0x[0-9a-f]+", "", label(method)),
            optimizer=type(optimizer).__name__,
            seed=seed,
        )

    def require_like(self, first: Terms, rank: int) -> None:
        """Raise RunError unless these, of that rank, are like rank 0's; it names what differs."""
        here = f"rank {rank}"
        require_same_layout(first.layout, self.layout, "rank 0", here)
        for name in first.tensors | self.tensors:
            theirs, ours = first.tensors.get(name), self.tensors.get(name)
            if theirs != ours:
                raise RunError(
                    f"the models differ: {name} is {theirs or 'missing'} on rank 0 and "
                    f"{ours or 'missing'} on {here}"
                )
        for what in ("method", "optimizer", "seed"):
            theirs, ours = getattr(first, what), getattr(self, what)
            if theirs != ours:
                raise RunError(f"the {what}s differ: {theirs} on rank 0 and {ours} on {here}")


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
