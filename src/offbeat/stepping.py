"""Stepping: a torch optimizer on the views of one flat vector, or of a part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from .bare import bare_step, compiler_left_out, is_untouched
from .optim.layerwise import Layerwise
from .parameters import Dense, Layout
from .stepped import Stepped, is_like, join_neighbours, join_states, own_count

OptimizerFactory = Callable[[Iterable[tuple[str, nn.Parameter]]], Optimizer]
"""Builds the inner optimizer on named parameters: a `torch.optim` class with its settings bound."""
COPIED = 1 << 20
"""Bytes of a gradient up to which a copy costs less than to point an optimizer at it."""
COPIED_AS_ONE = 1 << 14
"""The same where all tensors are stepped as one."""
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
        self._tensors = [nn.Parameter(view) for view in layout.views(parameters)]
        with compiler_left_out():
            self.inner = factory(list(zip(layout.names, self._tensors, strict=True)))
        self._groups: list[list[nn.Parameter]] = [g["params"] for g in self.inner.param_groups]
        self._only_reads = _only_reads(self.inner)
        self.part: slice | None = None
        """What of the vector it steps; all of it if None."""
        self._may_join = parameters.nbytes <= COPIED and _may_join(self.inner)
        """Whether neighbouring tensors are worth stepping as one."""
        self._arrange(joined=False)
        if self._may_join:
            self.remember(self.remembered())
        self._step = bare_step(self.inner)
        refusal = UNUSABLE.get(type(self.inner).__name__)
        if refusal is not None:
            raise ValueError(f"optimizer {type(self.inner).__name__} cannot be used: {refusal}")
        self._base_rates = [group["lr"] for group in self.inner.param_groups]
        self._given = [_without_params(group) for group in self.inner.param_groups]
        """Settings of each group as others have set them."""
        self._scale = 1.0
        self.has_stepped = False
        """Or goes on from where one has that was saved."""

    def step(self, gradient: Dense, scale: float = 1.0) -> None:
        """One step along `gradient` (d,), every learning rate multiplied by `scale`.

        Where it steps a part only, the gradient is that part's.
        """
        if isinstance(gradient, Tensor):
            if self._copies:
                self._gradient.copy_(gradient)
            elif self._is_one:
                self._stepped[0].parameter.grad = gradient
            else:
                self._point_at(self._cut(gradient))
        elif self._copies:
            self._layout.flatten(gradient.tensors, out=self._gradient)
        elif self.joined:
            self._point_at(self._cut(self._layout.flatten(gradient.tensors)))
        else:
            self._point_at(gradient.tensors)
        if scale != self._scale:
            self.scale(scale)
        self._step()
        self.has_stepped = True
        if not self._copies:
            self._let_go()

    @property
    def only_reads(self) -> bool:
        """Whether nothing writes to the gradient that a step is made along, hooks neither."""
        return self._only_reads and is_untouched(self.inner)

    def remembered(self) -> tuple[dict[str, Any] | None, ...]:
        """What the optimizer has of each tensor, in the order of its groups; None of those without.

        Of a tensor that is cut by `part`, of that part. What is large is not copied.
        """
        homes = {tensor: stepped for stepped in self._stepped for tensor in stepped.spans}
        return tuple(
            self._remembered_of(tensor, homes.get(tensor))
            for tensors in self._groups
            for tensor in tensors
        )

    def remembered_by_name(self) -> dict[str, dict[str, Any]]:
        """The same by the layout's names, of those of which it has something."""
        names = dict(zip(self._tensors, self._layout.names, strict=True))
        order = [names[tensor] for tensors in self._groups for tensor in tensors]
        pairs = zip(order, self.remembered(), strict=True)
        return {name: state for name, state in pairs if state is not None}

    def counted(self) -> dict[int, dict[str, Any]]:
        """Numbers among each group's settings that the optimizer itself has changed.

        By the group's position in the original; rates are not among them.
        """
        found: dict[int, dict[str, Any]] = {}
        for position, group in enumerate(self.inner.param_groups):
            given = self._given[position]
            found[group.get("original", position)] = {
                key: value
                for key, value in _without_params(group).items()
                if key != "lr" and isinstance(value, int | float) and value != given.get(key)
            }
        return found

    def remember(self, states: Sequence[dict[str, Any] | None]) -> None:
        """Forget what it has, and go on from what was `remembered` of whole tensors.

        Neighbouring tensors are stepped as one where they have the like of each other to say.
        """
        known = dict(zip((t for tensors in self._groups for t in tensors), states, strict=True))
        self._arrange(joined=self._may_join)
        held: list[dict[str, Any] | None] = []
        if self.joined:
            held = [join_states([known[t] for t in s.tensors], s.tensors) for s in self._stepped]
            if None in held:
                self._arrange(joined=False)
        if not self.joined:
            held = [known.get(stepped.parameter) for stepped in self._stepped]
        self.inner.state.clear()
        for stepped, state in zip(self._stepped, held, strict=True):
            if state:
                self.inner.state[stepped.parameter] = state

    def _remembered_of(
        self, tensor: nn.Parameter, stepped: Stepped | None
    ) -> dict[str, Any] | None:
        state = None if stepped is None else self.inner.state.get(stepped.parameter)
        if stepped is None or state is None or stepped.parameter is tensor:
            return None if state is None else dict(state)
        span = stepped.spans[tensor]
        within = slice(span.start - stepped.span.start, span.stop - stepped.span.start)
        shape = tensor.shape if span.stop - span.start == tensor.numel() else (-1,)
        return {
            name: value.reshape(-1)[within].view(shape)
            if is_like(value, stepped.parameter)
            else own_count(value)
            for name, value in state.items()
        }

    @property
    def remembers_more(self) -> bool:
        """Whether the optimizer keeps state of anything but what it steps."""
        return not {s.parameter for s in self._stepped}.issuperset(self.inner.state)

    def _arrange(self, *, joined: bool) -> None:
        """Step what lies side by side in one group as one tensor, or every tensor by itself."""
        pairs = zip(self._tensors, self._layout.spans, strict=True)
        apart = {tensor: Stepped(tensor, span, {tensor: span}) for tensor, span in pairs}
        # In the order of a gradient's pieces, and also what no group has.
        self._stepped = list(apart.values())
        if joined:
            self._stepped = []
        for group, tensors in zip(self.inner.param_groups, self._groups, strict=True):
            own = [apart[tensor] for tensor in tensors]
            if joined:
                own = join_neighbours(own, self._vector)
                self._stepped += own
            group["params"] = [stepped.parameter for stepped in own]
        self.joined = joined
        limit = COPIED_AS_ONE if joined else COPIED
        self._copies = not self._only_reads or self._vector.nbytes <= limit
        self._make_gradient(len(self._vector))

    def keep(self, part: slice) -> None:
        """Step that part of the vector only from now on, and forget what it has of the rest.

        The step has to be elementwise (`ELEMENTWISE`).
        """
        kept: dict[nn.Parameter, nn.Parameter] = {}
        for stepped in self._stepped:
            parameter, span = stepped.parameter, stepped.span
            state = self.inner.state.pop(parameter, None)
            stepped.cut(part, self._vector)
            if not stepped.spans:
                continue
            kept[parameter] = stepped.parameter
            if state is not None:
                start = stepped.span.start - span.start
                within = slice(start, start + stepped.parameter.numel())
                self.inner.state[stepped.parameter] = {
                    name: value.reshape(-1)[within].clone()
                    if is_like(value, parameter) and stepped.parameter is not parameter
                    else value
                    for name, value in state.items()
                }
        for group in self.inner.param_groups:
            group["params"] = [kept[p] for p in group["params"] if p in kept]
        self._let_go()
        self._stepped = [stepped for stepped in self._stepped if stepped.spans]
        self.part = part
        self._make_gradient(part.stop - part.start)

    def _make_gradient(self, size: int) -> None:
        """The memory that gradients are copied to, where they are."""
        self._is_one = self.joined and [len(s.parameter) for s in self._stepped] == [size]
        """Whether the whole gradient is one tensor's."""
        self._gradient = self._vector.new_zeros(size if self._copies else 0)
        if self._copies:
            self._point_at(self._cut(self._gradient))

    def _cut(self, gradient: Tensor) -> list[Tensor]:
        """What of a vector (d,), or of a part's, is each tensor's."""
        if self._is_one:
            return [gradient]
        begin = 0 if self.part is None else self.part.start
        return [
            gradient[s.span.start - begin : s.span.stop - begin].view(s.parameter.shape)
            for s in self._stepped
        ]

    def _point_at(self, gradients: Sequence[Tensor]) -> None:
        for stepped, gradient in zip(self._stepped, gradients, strict=True):
            stepped.parameter.grad = gradient

    def _let_go(self) -> None:
        """A gradient's memory may be another node's, who waits to use it again."""
        for stepped in self._stepped:
            stepped.parameter.grad = None

    def scale(self, scale: float) -> None:
        if scale != self._scale:
            self._scale = scale
            for group, rate in zip(self.inner.param_groups, self._base_rates, strict=True):
                group["lr"] = rate * scale

    def retune(self, settings: Sequence[Mapping[str, Any]]) -> None:
        """Take over hyper-parameters that changed, a mapping for each group of the original."""
        for position, group in enumerate(self.inner.param_groups):
            # A server's optimizer may hold only some of the groups.
            changed = settings[group.get("original", position)]
            group.update(changed)
            self._given[position].update(changed)
            if "lr" in changed:
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


def _without_params(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _may_join(optimizer: Optimizer) -> bool:
    """Whether neighbouring tensors, stepped as one, get the bits that they would get apart.

    Fused steps give the last few numbers of each tensor other bits, and are joined all the same.
    """
    return type(optimizer) in ELEMENTWISE and is_untouched(optimizer) and _are_wide(optimizer)


def _are_wide(optimizer: Optimizer) -> bool:
    """Whether vector registers and single numbers are computed alike."""
    groups = optimizer.param_groups
    return all(p.dtype in (torch.float32, torch.float64) for g in groups for p in g["params"])


def steps_alike_in_parts(optimizer: Optimizer, threads: int) -> bool:
    """Whether parts cut at `ALIGNED` numbers, stepped apart, get the bits that the whole would.

    Threads cut tensors anywhere, so with several only what computes every number alike will do.
    """
    if type(optimizer) not in ELEMENTWISE or not is_untouched(optimizer):
        return False
    fused = any(group.get("fused") for group in optimizer.param_groups)
    return threads == 1 or (_are_wide(optimizer) and not fused)


def _only_reads(optimizer: Optimizer) -> bool:
    """Whether it never writes to a gradient, so that a large one need not be copied for it."""
    if isinstance(optimizer, SGD):
        # With `foreach` torch adds Nesterov's momentum to the gradients themselves.
        groups = optimizer.param_groups
        if any(group["nesterov"] and group["foreach"] is not False for group in groups):
            return False
    torchs = type(optimizer).__module__.startswith("torch.optim.")
    return torchs or isinstance(optimizer, Layerwise)
