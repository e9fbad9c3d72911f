"""Saved: one rank's part of a job, as `state_dict` gives it and `load_state_dict` takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..trained import changed_settings
from .ranks import RankHost

FORMAT = 2
_KEYS = {"method", "rank", "world_size", "scaled_steps", "param_groups", "changed"}


def packed(
    host: RankHost,
    known: Sequence[Mapping[str, Any]],
    settings: Sequence[Mapping[str, Any]],
    scaled_steps: int,
) -> dict[str, Any]:
    """Numbers, strings and tensors only, so that `torch.load` needs no trust.

    Args:
        known: settings of the parameter groups that the nodes know of.
        settings: as they are now.
    """
    return {
        "offbeat": FORMAT,
        "method": type(host.scheduler.method).__qualname__,
        "rank": host.rank,
        "world_size": host.size,
        "scaled_steps": scaled_steps,
        # As every optimizer's: what a scheduler may have changed.
        "param_groups": [dict(group) for group in settings],
        "changed": changed_settings(known, settings),
        "state": {},
        "nodes": {rank: as_tensor(state) for rank, state in host.capture().items()},
    }


def unpacked(saved: Mapping[str, Any], host: RankHost, groups: int) -> dict[int, bytes]:
    """The states of this rank's nodes.

    Raises:
        ValueError: it is no part of such a job, or not this rank's.
    """
    if "offbeat" not in saved or "nodes" not in saved:
        raise ValueError(
            "this is no state of a distributed job, but maybe of the optimizer inside; load what "
            "state_dict() of the same optimizer gave"
        )
    if saved["offbeat"] != FORMAT:
        raise ValueError(f"the state is of form {saved['offbeat']}, this version reads {FORMAT}")
    if missing := _KEYS - saved.keys():
        raise ValueError(f"the state is damaged: it has no {', '.join(sorted(missing))}")
    for what, here in (
        ("method", type(host.scheduler.method).__qualname__),
        ("world_size", host.size),
        ("rank", host.rank),
    ):
        if saved[what] != here:
            raise ValueError(
                f"the state is of {what} {saved[what]}, and this is {what} {here}; every rank "
                "loads the part that it saved, in a job like the one that saved it"
            )
    if len(saved["param_groups"]) != groups:
        raise ValueError(
            f"the state is of {len(saved['param_groups'])} parameter groups, the optimizer has "
            f"{groups}"
        )
    if saved["nodes"].keys() != host.scheduler.nodes.keys():
        raise ValueError(
            f"the state is damaged: it is of nodes {sorted(saved['nodes'])}, this rank has "
            f"{sorted(host.scheduler.nodes)}"
        )
    return {rank: as_bytes(state) for rank, state in saved["nodes"].items()}


def as_tensor(data: bytes) -> Tensor:
    """(n,) uint8"""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def as_bytes(data: Tensor) -> bytes:
    return data.numpy().tobytes()
