"""Flat parameters: one vector per node, with the named, shaped views that optimizers see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

ALIGNED = 64
"""Numbers. Torch computes a tensor's last few, which fill no vector register, by instructions whose
bits can differ; a tensor that is cut after a multiple of these has none but at its end."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseVector:
    """A vector (d,) of which only some coordinates may be other than zero."""

    size: int
    """d."""
    indices: Tensor
    """(k,) int64, increasing."""
    values: Tensor
    """(k,)"""

    def dense(self) -> Tensor:
        """The whole vector (d,), newly made."""
        return self.values.new_zeros(self.size).index_copy_(0, self.indices, self.values)


@dataclass(frozen=True)
class Layout:
    """Where each named parameter lies in a flat vector of shape (d,)."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        named = list(module.named_parameters())
        return cls(tuple(n for n, _ in named), tuple(tuple(p.shape) for _, p in named))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(torch.Size(shape).numel() for shape in self.shapes)

    @cached_property
    def size(self) -> int:
        """d."""
        return sum(self.sizes)

    @cached_property
    def spans(self) -> tuple[slice, ...]:
        """The slice of each parameter."""
        ends = list(accumulate(self.sizes))
        return tuple(slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    def views(self, vector: Tensor) -> list[Tensor]:
        """Shaped views of a vector (d,), in the order of `names`."""
        return [vector[s].view(shape) for s, shape in zip(self.spans, self.shapes, strict=True)]

    def flatten(self, tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        """A vector (d,) of one tensor per parameter, dense or sparse; new if `out` is not given."""
        dense = [tensor.to_dense() if tensor.is_sparse else tensor for tensor in tensors]
        if out is None and len(dense) > 1:  # Of one it would be a view.
            return _flatten_dense_tensors(dense)
        return torch.cat([tensor.reshape(-1) for tensor in dense], out=out)

    def flatten_sparse(self, tensors: Sequence[Tensor]) -> SparseVector:
        """The same, keeping what sparse COO tensors leave out; dense ones give every coordinate."""
        indices: list[Tensor] = []
        values: list[Tensor] = []
        for span, tensor in zip(self.spans, tensors, strict=True):
            within, held = _coordinates(tensor)
            indices.append(within + span.start)
            values.append(held)
        return SparseVector(size=self.size, indices=torch.cat(indices), values=torch.cat(values))

    def split(self, parts: int) -> tuple[Layout, ...]:
        """Consecutive parts, cut at tensor boundaries, as even in size as those allow.

        Raises:
            ValueError: fewer tensors than parts.
        """
        if not 1 <= parts <= len(self.names):
            raise ValueError(
                f"cannot split {len(self.names)} parameter tensors into {parts} parts; "
                f"ask for 1 to {len(self.names)}"
            )
        ends = list(accumulate(self.sizes))
        cuts = [0]
        for part in range(1, parts):
            goal = self.size * part / parts
            # Leave at least one tensor for this part and for each of those to come.
            candidates = range(cuts[-1] + 1, len(self.names) - (parts - part) + 1)
            cuts.append(min(candidates, key=lambda cut, goal=goal: abs(ends[cut - 1] - goal)))
        cuts.append(len(self.names))
        return tuple(
            Layout(self.names[start:stop], self.shapes[start:stop])
            for start, stop in pairwise(cuts)
        )

    def even_spans(self, parts: int) -> tuple[slice, ...]:
        """Slices of the whole vector of nearly even size: tensors are cut, after every 64 numbers.

        An optimizer whose step is elementwise gives a slice the bits that it gives the whole.
        """
        cuts = [0]
        for part in range(1, parts):
            goal = self.size * part // parts
            start = next(span.start for span in self.spans if goal < span.stop)
            cuts.append(goal - (goal - start) % ALIGNED)
        return tuple(slice(start, stop) for start, stop in pairwise([*cuts, self.size]))

    def split_spans(self, parts: int) -> tuple[slice, ...]:
        """The slices of the whole vector that `split(parts)` cuts."""
        ends = list(accumulate(layout.size for layout in self.split(parts)))
        return tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))


def _coordinates(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Where in the flattened tensor (m,) its stored values lie, increasing, and the values."""
    if not tensor.is_sparse:
        return torch.arange(tensor.numel(), device=tensor.device), tensor.reshape(-1)
    tensor = tensor.coalesce()
    rows = tensor.indices()  # (sparse dimensions, k)
    shape = tensor.shape
    flat = rows.new_zeros(rows.shape[1])
    for extent, row in zip(shape, rows, strict=False):
        flat = flat * extent + row
    width = torch.Size(shape[tensor.sparse_dim() :]).numel()
    flat = flat[:, None] * width + torch.arange(width, device=rows.device)
    return flat.reshape(-1), tensor.values().reshape(-1)


@dataclass(kw_only=True, eq=False)
class PiecewiseVector:
    """A vector (d,) as one dense tensor per parameter, joined only where it is wanted whole.

    That costs a pass over memory, and what is not sent seldom needs it.
    """

    layout: Layout
    tensors: Sequence[Tensor]
    new: Callable[[], Tensor]
    """Makes memory (d,) for it."""

    @property
    def shape(self) -> tuple[int]:
        """(d,)"""
        return (self.layout.size,)

    @property
    def nbytes(self) -> int:
        return self.layout.size * self.tensors[0].itemsize

    def dense(self) -> Tensor:
        """The whole vector (d,), newly made."""
        return self.layout.flatten(self.tensors, out=self.new())

    def keep(self) -> None:
        """Copy the tensors, which somebody will use anew."""
        self.tensors = self.layout.views(self.dense())

    @property
    def can_stand(self) -> bool:
        """Whether an optimizer takes the tensors as they are: dense, each in one piece, alike."""
        dtype = self.tensors[0].dtype
        return all(not t.is_sparse and t.is_contiguous() and t.dtype == dtype for t in self.tensors)

    def parts(self, start: int, stop: int) -> list[Tensor]:
        """What lies from `start` to `stop` in the whole: flat views, one of each tensor there."""
        spans = self.layout.spans
        return [
            tensor.reshape(-1)[max(start - span.start, 0) : stop - span.start]
            for tensor, span in zip(self.tensors, spans, strict=True)
            if span.start < stop and start < span.stop
        ]


Dense = Tensor | PiecewiseVector
Values = Dense | SparseVector
"""Of a gradient (d,), as the model gives it."""


def joined(values: Dense) -> Tensor:
    """(d,) as one tensor, which is `values` itself if that is one."""
    return values if isinstance(values, Tensor) else values.dense()
