"""Streaming DiLoCo."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..collectives import CompressedVector, compressed_mean
from ..compression import Compressor, Identity
from ..method import Method
from ..node import Node
from ..parameters import Layout
from ..suspensions import Started
from .diloco import check_outer, nesterov

Spans = tuple[slice, ...]


def fragment_spans(layout: Layout, fragments: int, pattern: str) -> tuple[Spans, ...]:
    """Where each fragment lies in a vector (d,): consecutive tensors, or every P-th layer.

    A layer is the tensors of one module.

    Raises:
        ValueError: fewer tensors, or layers, than fragments.
    """
    if pattern == "consecutive":
        return tuple((span,) for span in layout.split_spans(fragments))
    named = zip(layout.names, layout.spans, strict=True)
    layers = [
        [span for _, span in tensors]
        for _, tensors in groupby(named, key=lambda tensor: tensor[0].rpartition(".")[0])
    ]
    if fragments > len(layers):
        raise ValueError(
            f"cannot deal out {len(layers)} layers to {fragments} fragments; ask for 1 to "
            f"{len(layers)}"
        )
    return tuple(
        tuple(span for layer in layers[p::fragments] for span in layer) for p in range(fragments)
    )


def part_of(x: Tensor, spans: Spans) -> Tensor:
    """These parts of a vector (d,), one after the other; a view if there is but one."""
    return x[spans[0]] if len(spans) == 1 else torch.cat([x[span] for span in spans])


def layout_of(layout: Layout, spans: Spans) -> Layout:
    """Of the tensors that lie in these parts."""
    inside = [
        (name, shape)
        for name, shape, own in zip(layout.names, layout.shapes, layout.spans, strict=True)
        if any(span.start <= own.start and own.stop <= span.stop for span in spans)
    ]
    return Layout(tuple(name for name, _ in inside), tuple(shape for _, shape in inside))


def _sizes(spans: Spans) -> list[int]:
    return [span.stop - span.start for span in spans]


@dataclass
class Reductions:
    """Outer gradients on their way, by fragment."""

    pending: dict[int, Started[Tensor]] = field(default_factory=dict[int, Started[Tensor]])


@dataclass(frozen=True, kw_only=True)
class StreamingDiLoCo(Method):
    """Local steps; fragment by fragment, an outer Nesterov step on the mean change of all workers.

    Fragment p, at steps t with (t - t_p) mod H = 0:  Delta_p = theta_p - x_p is sent;
    tau steps later:  theta_p <- Nesterov(theta_p, mean Delta_p);  x_p <- a x_p + (1 - a) theta_p

    theta_p is the fragment as all workers last agreed on it. The mean travels while the workers go
    on, one collective per fragment, several at once. One fragment with tau = 0 and a = 0 is
    `DiLoCo`.

    Args:
        local_steps: H, steps between two synchronizations of the same fragment.
        fragments: P, groups of parameter tensors; their times are spread over H.
        pattern: what a fragment is: consecutive tensors, or every P-th layer.
        overlap: tau, steps from sending a fragment's change to applying the mean; below H.
        mixing: a, how much of its own progress a worker keeps.
        outer_lr: of the outer Nesterov SGD.
        outer_momentum: of the outer Nesterov SGD.
        compressor: of the changes; they are added up as they were before. `E3M0` is the paper's,
            of four bits; `Identity` is an all-reduce of the changes themselves.

    Roles: worker. Messages: the collective's own, or CompressedVector.
    Reference: Douillard et al., "Streaming DiLoCo with overlapping communication", 2025,
    algorithm 2.
    Differences: a layer is one module's own parameters, not a transformer block, and a fragment any
    number of them. E3M0 numbers are here shares of the largest change in their fragment. If
    compressed, every worker sends its own change to every other, and what that loses is not sent
    later. The paper's outer_lr is 0.4.
    """

    local_steps: int = 16
    fragments: int = 2
    pattern: Literal["consecutive", "strided"] = "consecutive"
    overlap: int = 2
    mixing: float = 0.5
    outer_lr: float = 0.7
    outer_momentum: float = 0.9
    compressor: Compressor = field(default_factory=Identity)

    messages: ClassVar[tuple[type, ...]] = (CompressedVector,)
    family: ClassVar[str] = "local updates"
    synchronous: ClassVar[bool] = True
    outer_steps: ClassVar[bool] = True
    serial: ClassVar[dict[str, Any] | None] = {
        "local_steps": 1,
        "fragments": 1,
        "overlap": 0,
        "mixing": 1.0,
    }

    def validate(self, workers: int) -> None:
        if self.local_steps < 1:
            raise ValueError(f"local_steps is {self.local_steps}; it must be at least 1")
        if not 0 <= self.overlap < self.local_steps:
            raise ValueError(
                f"overlap is {self.overlap}; it must be from 0 to local_steps - 1 = "
                f"{self.local_steps - 1}"
            )
        if not 1 <= self.fragments <= self.local_steps:
            raise ValueError(
                f"fragments is {self.fragments}; it must be from 1 to local_steps = "
                f"{self.local_steps}"
            )
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"mixing is {self.mixing:g}; it must be from 0 to 1")
        check_outer(self.outer_lr, self.outer_momentum)

    async def step(self, node: Node) -> None:
        fragments = fragment_spans(node.layout, self.fragments, self.pattern)
        outers = [
            nesterov(
                node,
                f"fragment {p}",
                part_of(node.parameters, spans),
                self.outer_lr,
                self.outer_momentum,
            )
            for p, spans in enumerate(fragments)
        ]
        gradient = await node.gradient()
        node.apply(gradient)
        t, pending = node.round + 1, node.state(Reductions).pending
        for p, spans in enumerate(fragments):
            offset = p * self.local_steps // self.fragments
            if t > offset and (t - offset) % self.local_steps == 0:
                change = outers[p].parameters - part_of(node.parameters, spans)
                pending[p] = node.start(self._reduce(node, change, (p, node.round), spans))
            if p in pending and (t - offset - self.overlap) % self.local_steps == 0:
                theta = outers[p].step(await pending.pop(p))
                own = part_of(node.parameters, spans)
                merged = self.mixing * own + (1 - self.mixing) * theta
                for span, values in zip(spans, merged.split(_sizes(spans)), strict=True):
                    node.load(values, part=span)

    async def _reduce(
        self, node: Node, change: Tensor, tag: tuple[int, int], spans: Spans
    ) -> Tensor:
        fragment, _ = tag
        if self.compressor == Identity():
            return await node.all_reduce(change, key=fragment)
        layout = layout_of(node.layout, spans)
        return await compressed_mean(node, change, self.compressor, layout, node.workers, tag)
