"""Flat parameters: one vector per node, with the named, shaped views that optimizers see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from .optim.layerwise import Layerwise

OptimizerFactory = Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer]
"""Builds the inner optimizer on named parameters: a `torch.optim` class with its settings bound."""


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
        return torch.cat([_densified(tensor).reshape(-1) for tensor in tensors], out=out)

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


def _densified(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


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


ALIGNED = 64
"""Numbers. Torch computes a tensor's last few, which fill no vector register, by instructions whose
bits can differ; a tensor that is cut after a multiple of these has none but at its end."""
COPIED = 1 << 20
"""Bytes of a gradient up to which a copy costs less than to point an optimizer at it."""
ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
    torch.optim.ASGD,
    torch.optim.Rprop,
)
"""Optimizers of which each number's step depends on nothing but that number's gradients."""
UNUSABLE = {
    "LBFGS": "it evaluates the loss several times a step",
    "SparseAdam": "it needs sparse gradients, and gradients here are dense vectors",
}


class ParameterOptimizer:
    """A `torch.optim` optimizer over the views of one flat vector, which it updates in place."""

    def __init__(self, parameters: Tensor, layout: Layout, factory: OptimizerFactory) -> None:
        self._layout = layout
        self._vector = parameters
        self._parameters = [nn.Parameter(view) for view in layout.views(parameters)]
        self.inner = factory(list(zip(layout.names, self._parameters, strict=True)))
        self._step = _unobserved_step(self.inner)
        self._copies = parameters.nbytes <= COPIED or not _only_reads(self.inner)
        self._views = layout.views
        self._make_gradient(len(parameters))
        self.part: slice | None = None
        """What of the vector it steps; all of it if None."""
        self.in_order: list[nn.Parameter | None] = [
            parameter for group in self.inner.param_groups for parameter in group["params"]
        ]
        """What it steps of each tensor, in the order of its groups; None of those not in `part`."""
        refusal = UNUSABLE.get(type(self.inner).__name__)
        if refusal is not None:
            raise ValueError(f"optimizer {type(self.inner).__name__} cannot be used: {refusal}")
        self._base_rates = [group["lr"] for group in self.inner.param_groups]
        self._scale = 1.0

    def step(self, gradient: Dense, scale: float = 1.0) -> None:
        """One step along `gradient` (d,), every learning rate multiplied by `scale`.

        Where it steps a part only, the gradient is that part's.
        """
        whole = isinstance(gradient, Tensor)
        if not self._copies:
            self._point_at(self._views(gradient) if whole else gradient.tensors)
        elif whole:
            self._gradient.copy_(gradient)
        else:
            self._layout.flatten(gradient.tensors, out=self._gradient)
        self.scale(scale)
        self._step()
        if not self._copies:
            self._let_go()

    def keep(self, part: slice) -> None:
        """Step that part of the vector only from now on, and forget what it has of the rest.

        The step has to be elementwise (`ELEMENTWISE`).
        """
        kept: dict[nn.Parameter, nn.Parameter] = {}
        spans: list[slice] = []
        for parameter, span in zip(self._parameters, self._layout.spans, strict=True):
            start, stop = max(span.start, part.start), min(span.stop, part.stop)
            if start >= stop:
                self.inner.state.pop(parameter, None)
                continue
            spans.append(slice(start - part.start, stop - part.start))
            kept[parameter] = parameter
            if (start, stop) != (span.start, span.stop):
                kept[parameter] = nn.Parameter(self._vector[start:stop])
                within = slice(start - span.start, stop - span.start)
                if (state := self.inner.state.pop(parameter, None)) is not None:
                    self.inner.state[kept[parameter]] = {
                        name: value.reshape(-1)[within].clone()
                        if _is_like(value, parameter)
                        else value
                        for name, value in state.items()
                    }
        self.in_order = [kept.get(p) for g in self.inner.param_groups for p in g["params"]]
        for group in self.inner.param_groups:
            group["params"] = [kept[p] for p in group["params"] if p in kept]
        self._let_go()
        self._parameters = list(kept.values())
        self._views = lambda gradient: [
            gradient[span].view(parameter.shape)
            for span, parameter in zip(spans, self._parameters, strict=True)
        ]
        self._make_gradient(part.stop - part.start)
        self.part = part

    def _make_gradient(self, size: int) -> None:
        """The memory that gradients are copied to, where they are."""
        self._gradient = self._vector.new_zeros(size if self._copies else 0)
        if self._copies:
            self._point_at(self._views(self._gradient))

    def _point_at(self, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def _let_go(self) -> None:
        """A gradient's memory may be another node's, who waits to use it again."""
        for parameter in self._parameters:
            parameter.grad = None

    def scale(self, scale: float) -> None:
        if scale != self._scale:
            self._scale = scale
            for group, rate in zip(self.inner.param_groups, self._base_rates, strict=True):
                group["lr"] = rate * scale

    def retune(self, settings: Sequence[Mapping[str, Any]]) -> None:
        """Take over new hyper-parameters, one mapping per parameter group of the original."""
        for position, group in enumerate(self.inner.param_groups):
            # A server's optimizer may hold only some of the groups.
            group.update(settings[group.get("original", position)])
            self._base_rates[position] = group["lr"]
            group["lr"] *= self._scale

    @property
    def lr(self) -> float:
        """The first parameter group's present learning rate."""
        return float(self.inner.param_groups[0]["lr"])

    def reset(self) -> None:
        """Forget momentum and every other buffer."""
        self.inner.state.clear()


class OuterOptimizer:
    """An optimizer of the method's own, on a vector of the method's own."""

    def __init__(self, start: Tensor, factory: OptimizerFactory) -> None:
        self.parameters = start.clone()
        layout = Layout(("outer",), (tuple(start.shape),))
        self._optimizer = ParameterOptimizer(self.parameters, layout, factory)

    def step(self, gradient: Tensor) -> Tensor:
        """One step along `gradient`; returns the vector after it."""
        self._optimizer.step(gradient)
        return self.parameters


def steps_alike_in_parts(optimizer: Optimizer, threads: int) -> bool:
    """Whether parts cut at `ALIGNED` numbers, stepped apart, get the bits that the whole would.

    Threads cut tensors anywhere, so with several only what computes every number alike will do.
    """
    if type(optimizer) not in ELEMENTWISE:
        return False
    groups = optimizer.param_groups
    fused = any(group.get("fused") for group in groups)
    wide = all(
        p.dtype in (torch.float32, torch.float64) for group in groups for p in group["params"]
    )
    return threads == 1 or (wide and not fused)


def _is_like(value: object, parameter: Tensor) -> bool:
    """Whether a value of an optimizer's state has a number for each of the parameter's."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _only_reads(optimizer: Optimizer) -> bool:
    """Whether it never writes to a gradient, so that a large one need not be copied for it."""
    if isinstance(optimizer, SGD):
        # With `foreach` torch adds Nesterov's momentum to the gradients themselves.
        groups = optimizer.param_groups
        if any(group["nesterov"] and group["foreach"] is not False for group in groups):
            return False
    torchs = type(optimizer).__module__.startswith("torch.optim.")
    return torchs or isinstance(optimizer, Layerwise)


def _unobserved_step(optimizer: Optimizer) -> Callable[[], object]:
    """`optimizer.step` without what torch does around it at every call, and the same arithmetic.

    On a small model the profiler's record, the step hooks and the choice of an implementation
    cost twice as much as the step itself.
    """
    for group in optimizer.param_groups:
        on_cpu = all(p.device.type == "cpu" for p in group["params"])
        if on_cpu and group.get("foreach", True) is None and group.get("fused") is None:
            group["foreach"] = False  # What torch chooses on a CPU.
    hooks = [*optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks]
    step = type(optimizer).step
    if getattr(step, "hooked", False) and not hooks:
        return partial(step.__wrapped__, optimizer)  # pyright: ignore[reportFunctionMemberAccess]
    return partial(step, optimizer)
