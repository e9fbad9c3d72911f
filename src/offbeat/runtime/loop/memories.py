"""Memories: what inner optimizers remember at the end of a loop, given to the user's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from ...encoding import EncodingError, decode, encode
from ...node import Node
from .ranks import RankHost
from .saved import as_bytes, as_tensor
from .words import Memory

LONGEST_PART = 1 << 31
"""Bytes; a frame that is much longer is refused."""


@dataclass
class Memories:
    """Of one or several optimizers that have stepped."""

    states: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Of each parameter, by name."""
    groups: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])
    """What an optimizer counts among the settings of each parameter group of the user's."""

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> Self:
        found = cls()
        for node in nodes:
            optimizer = node._optimizer
            if optimizer is None or not optimizer.has_stepped:
                continue
            for name, state in optimizer.remembered_by_name().items():
                # What lies in a node's memory must not be there for ever.
                found.states[name] = {
                    key: value.detach().clone() if isinstance(value, Tensor) else value
                    for key, value in state.items()
                }
            found.groups |= optimizer.counted()
        return found

    def add(self, other: Memories) -> None:
        self.states |= other.states
        self.groups |= other.groups

    def written(self) -> tuple[list[bytes], list[str]]:
        """In parts, one for each parameter; and the parameters whose states cannot be written."""
        parts, left_out = [encode(({}, self.groups))], list[str]()
        for name, state in self.states.items():
            on_cpu = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in state.items()}
            try:
                part = encode(({name: on_cpu}, {}))
            except EncodingError:
                part = b""
            if 0 < len(part) <= LONGEST_PART:
                parts.append(part)
            else:
                left_out.append(name)
        return parts, left_out

    @classmethod
    def read(cls, part: bytes) -> Self:
        return cls(*decode(part))


def memories(host: RankHost) -> Memories:
    """Of whoever has stepped: this rank's worker, or the servers; a collective if there are any.

    Raises:
        RunError: a rank that the method needs is gone, or does not come.
    """
    nodes = host.scheduler.nodes.values()
    found = Memories.of(node for node in nodes if not node.is_server)
    if host.scheduler.method.server_count:
        own = Memories.of(node for node in nodes if node.is_server)
        parts, left_out = own.written()
        if left_out:
            print(
                f"offbeat: rank {host.rank} cannot tell the others what its server's optimizer "
                f"remembers of {', '.join(left_out)}",
                flush=True,
            )
        while parts:
            part = as_tensor(parts.pop())
            host.tell_others(Memory(len(parts), part))
        found.add(own)
        for rank in host.others:
            with host.bearing_loss():
                to_come = 1
                while to_come:
                    said = host.await_word(Memory, rank, f"what rank {rank}'s servers remember")
                    found.add(Memories.read(as_bytes(said.part)))
                    to_come = said.to_come
    return found


def take_over(
    optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]], found: Memories
) -> None:
    """Let the user's optimizer have these states in place of its own, on its own parameters."""
    for name, parameter in named:
        if name in found.states:
            optimizer.state[parameter] = {
                key: _on(parameter, value) for key, value in found.states[name].items()
            }
    for position, counted in found.groups.items():
        optimizer.param_groups[position].update(counted)


def _on(parameter: nn.Parameter, value: Any) -> Any:
    # Single numbers are counts, which most optimizers keep on the CPU.
    is_count = not isinstance(value, Tensor) or value.dim() == 0
    return value if is_count else value.to(parameter.device)
