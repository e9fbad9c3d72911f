"""Replicas: parameters that all workers hold alike, kept once where they are on one machine.

Each of them steps a part, and has an optimizer's state of that part only. Whoever reads a worker's
state from outside, as checkpoints do, gets it whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..collectives import algorithm_for, is_whole
from ..collectives.shared import SHARED
from ..encoding import encode
from ..stepping import COPIED, steps_alike_in_parts
from .capture import NodeState, OptimizerState, read_state
from .world import World


def may_share(world: World) -> bool:
    """Whether the workers of a run on this machine can keep their parameters once.

    Small ones are exchanged whole, and stepped as fast by everybody as waited for.
    """
    experiment = world.experiment
    workers, initial = experiment.cluster.workers, world.initial
    return (
        experiment.method.replicated
        and not experiment.method.survives_loss
        and workers > 1
        and initial.is_cpu
        and algorithm_for(experiment.cluster.all_reduce, on_one_machine=True) is SHARED
        and not is_whole(workers, initial.nbytes)
        and initial.nbytes > COPIED
        and steps_alike_in_parts(_optimizer(world), experiment.threads)
    )


def with_whole_states(states: Mapping[int, bytes], world: World) -> dict[int, bytes]:
    """The workers' states, as captured, each with the optimizer's state of all parameters.

    Raises:
        EncodingError, CaptureError: one cannot be read.
    """
    known = [read_state(states[rank]) for rank in sorted(states)]
    held = [state.optimizer for state in known if state.optimizer is not None]
    if len(held) < len(known):
        return dict(states)  # Nobody has made a step.
    groups = _optimizer(world).param_groups
    shapes = [parameter.shape for group in groups for parameter in group["params"]]
    whole = tuple(
        _joined([optimizer.buffers[index] for optimizer in held], shape)
        for index, shape in enumerate(shapes)
    )
    return {state.rank: encode(_with_buffers(state, whole)) for state in known}


def _optimizer(world: World) -> torch.optim.Optimizer:
    return world.make_optimizer(world.module.named_parameters())


def _joined(parts: Sequence[dict[str, Any] | None], shape: torch.Size) -> dict[str, Any] | None:
    """What an optimizer has of a parameter, from what each worker has of its part, in order."""
    held = [part for part in parts if part is not None]
    if len(held) < 2:
        return held[0] if held else None
    return {name: _whole([part[name] for part in held], shape) for name in held[0]}


def _whole(parts: Sequence[Any], shape: torch.Size) -> Any:
    """One of what the parts have in common, such as the number of steps; else all of them."""
    if not isinstance(parts[0], Tensor) or parts[0].dim() == 0:
        return parts[0]
    return torch.cat([part.reshape(-1) for part in parts]).view(shape)


def _with_buffers(state: NodeState, buffers: tuple[Any, ...]) -> NodeState:
    assert isinstance(state.optimizer, OptimizerState)
    return replace(state, optimizer=replace(state.optimizer, buffers=buffers))
