"""Stepped: what an optimizer steps as one tensor, and what it remembers of several as of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(eq=False)
class Stepped:
    """What an optimizer steps as one tensor."""

    parameter: nn.Parameter
    span: slice
    """Where in the vector it lies."""
    spans: dict[nn.Parameter, slice]
    """Of the layout's tensors that it consists of, or of what it has of them."""

    @property
    def tensors(self) -> list[nn.Parameter]:
        return list(self.spans)

    def cut(self, part: slice, vector: Tensor) -> None:
        """Be what of it lies in that part of the vector; of no tensor if nothing does."""
        cut = {tensor: _overlap(span, part) for tensor, span in self.spans.items()}
        self.spans = {tensor: span for tensor, span in cut.items() if span.start < span.stop}
        span = _overlap(self.span, part)
        if self.spans and span != self.span:
            self.parameter, self.span = nn.Parameter(vector[span]), span


def _overlap(one: slice, other: slice) -> slice:
    return slice(max(one.start, other.start), min(one.stop, other.stop))


def join_neighbours(apart: Sequence[Stepped], vector: Tensor) -> list[Stepped]:
    """The same, with those that touch as one."""
    found: list[Stepped] = []
    for stepped in apart:
        if found and found[-1].span.stop == stepped.span.start:
            found[-1].span = slice(found[-1].span.start, stepped.span.stop)
            found[-1].spans = found[-1].spans | stepped.spans
        else:
            found.append(replace(stepped))
    for stepped in found:
        stepped.parameter = nn.Parameter(vector[stepped.span])
    return found


def join_states(
    states: Sequence[dict[str, Any] | None], tensors: Sequence[nn.Parameter]
) -> dict[str, Any] | None:
    """What an optimizer that had these states of neighbours would have of them as one tensor.

    None if nothing would be like it.
    """
    first = states[0]
    if len(tensors) == 1 and tensors[0].dim() == 1:
        return first or {}
    if not any(states):
        return {}
    # Of a single number nobody knows whether it is the tensor's or a count of steps.
    if first is None or not any(tensor.dim() for tensor in tensors):
        return None
    found: dict[str, Any] = {}
    for name in first:
        values = [None if state is None else state.get(name) for state in states]
        if all(map(is_like, values, tensors)):
            found[name] = torch.cat([v.reshape(-1) for v in values if v is not None])
        elif all(_is_same(value, first[name]) for value in values):
            found[name] = first[name]
        else:
            return None
    return found if all(state and state.keys() == first.keys() for state in states) else None


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def own_count(value: Any) -> Any:
    """A count that may be changed in place."""
    return value.clone() if isinstance(value, Tensor) else value


def is_like(value: object, parameter: Tensor) -> bool:
    """Whether a value of an optimizer's state has a number for each of the parameter's."""
    return isinstance(value, Tensor) and value.shape == parameter.shape
