"""Team: the nodes of a job whose model and optimizer are the user's own."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..method import Method
from ..node import Node, Runtime, Shard
from ..schedule import Constant
from .compute import EvaluationBuffer
from .trained import plain


class Team:
    """Makes the nodes of a job whose model and optimizer are the user's."""

    def __init__(
        self,
        named: Sequence[tuple[str, nn.Parameter]],
        optimizer: Optimizer,
        buffer: EvaluationBuffer,
        method: Method,
        workers: int,
        seed: int,
    ) -> None:
        self._names = {id(parameter): name for name, parameter in named}
        self._optimizer = optimizer
        self._buffer = buffer
        self._method = method
        self._workers = range(workers)
        self._servers = range(workers, workers + method.server_count)
        self._seed = seed
        servers, layout = method.server_count, buffer.layout
        self._layouts = layout.split(servers) if servers else ()
        spans = layout.split_spans(servers) if servers else ()
        self._shards = tuple(Shard(i, workers + i, span) for i, span in enumerate(spans))

    def node(self, rank: int, runtime: Runtime) -> Node:
        """A node that begins at what the buffer holds."""
        layout, start = self._buffer.layout, self._buffer.flat
        if rank in self._servers:
            index = rank - self._servers.start
            layout, start = self._layouts[index], start[self._shards[index].span]
        return Node(
            rank=rank,
            workers=self._workers,
            servers=self._servers,
            parameters=start.clone(),
            layout=layout,
            runtime=runtime,
            optimizer_factory=self._optimizer_on,
            schedule=Constant(),
            batch_size=1,
            seed=self._seed,
            shards=self._shards,
            replicated=self._method.replicated,
            survives_loss=self._method.survives_loss,
        )

    def _optimizer_on(self, named: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The user's optimizer, its groups and what it remembers, on tensors of the same names."""
        others, own = dict(named), self._optimizer
        groups: list[dict[str, Any]] = []
        state: defaultdict[Tensor, Any] = defaultdict(dict)
        for original, group in enumerate(own.param_groups):
            kept: list[nn.Parameter] = []
            for parameter in group["params"]:
                counterpart = others.get(self._names.get(id(parameter), ""))
                if counterpart is not None:
                    kept.append(counterpart)
                    if parameter in own.state:
                        state[counterpart] = copy.deepcopy(own.state[parameter])
            if kept:
                groups.append({**plain(group), "params": kept, "original": original})
        # Not by its constructor, whose arguments are not all to be found again.
        inner = object.__new__(type(own))
        inner.__dict__.update(own.__dict__)
        inner.__dict__.pop("step", None)  # A scheduler's, which steps the user's own.
        inner.state, inner.param_groups = state, groups
        inner._optimizer_step_pre_hooks = OrderedDict()
        inner._optimizer_step_post_hooks = OrderedDict()
        return inner
