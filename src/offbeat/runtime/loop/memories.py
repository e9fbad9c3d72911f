"""Memories: what inner optimizers remember at the end of a loop, given to the user's own."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ...encoding import EncodingError, decode, encode
from ...node import Node
from .ranks import RankHost
from .saved import as_bytes, as_tensor
from .words import Memory

Memories = Mapping[str, Mapping[str, Any]]
"""An optimizer's state of each parameter, by the parameter's name."""


def memories(host: RankHost) -> Memories:
    """Of whoever has stepped: this rank's worker, or the servers; a collective if there are any.

    Raises:
        RunError: a rank that the method needs is gone, or does not come.
    """
    nodes = host.scheduler.nodes.values()
    found = _remembered(node for node in nodes if not node.is_server)
    if host.scheduler.method.server_count:
        own = _remembered(node for node in nodes if node.is_server)
        encoded = encode({})
        with contextlib.suppress(EncodingError):  # Of an optimizer of the user's: it stays here.
            encoded = encode(own)
        host.tell_others(Memory(as_tensor(encoded)))
        found |= own
        for rank in host.others:
            with host.bearing_loss():
                said = host.await_word(Memory, rank, f"what rank {rank}'s servers remember")
                found |= decode(as_bytes(said.states))
    return found


def take_over(
    optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]], found: Memories
) -> None:
    """Let the user's optimizer have these states in place of its own, on its own parameters."""
    for name, parameter in named:
        if name in found:
            optimizer.state[parameter] = {
                key: _on(parameter, value) for key, value in found[name].items()
            }


def _remembered(nodes: Iterable[Node]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for node in nodes:
        if node._optimizer is not None and node._optimizer.has_stepped:
            for name, state in node._optimizer.remembered_by_name().items():
                # What lies in a node's memory must not be there for ever.
                found[name] = {key: _copied(value) for key, value in state.items()}
    return found


def _copied(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _on(parameter: nn.Parameter, value: Any) -> Any:
    # Single numbers are counts, which most optimizers keep on the CPU.
    is_count = not isinstance(value, Tensor) or value.dim() == 0
    return value if is_count else value.to(parameter.device)
