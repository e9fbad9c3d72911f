"""A rank of the jobs of test_loop.py: a plain PyTorch loop inside `distribute`."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from loop_ranks import rank_and_size
from offbeat import methods, reestimate_statistics
from offbeat.problems import IID, Batches, Digits, shard
from offbeat.runtime.errors import RunError
from offbeat.runtime.loop import distribute


def network(hidden: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 10)
    )


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    """Two groups, so that it shows whether they survive."""
    decayed = [p for p in module.parameters() if p.dim() > 1]
    plain = [p for p in module.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 1e-3}, {"params": plain}]
    return torch.optim.SGD(groups, lr=0.2, momentum=0.5)


def flat(module: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def main(out: Path, runs: dict[str, dict]) -> None:
    """One run after the other; what the method cannot bear is written down."""
    for name, settings in runs.items():
        (out / name).mkdir(exist_ok=True)
        try:
            train(out / name, settings)
        except RunError as error:
            if not settings.get("may_fail"):
                raise
            rank, _ = rank_and_size()
            (out / name / f"error-{rank}.txt").write_text(str(error))


def train(out: Path, settings: dict) -> None:
    rank, size = rank_and_size()
    torch.manual_seed(rank)
    if settings.get("batch_norm"):
        model = normalised()
    else:
        model = network(settings.get("hidden", [16] * size)[rank])
    optimizer = optimizer_of(model)
    method = getattr(methods, settings["method"])(**settings.get("fields", {}))
    data = Digits().data()
    indices = shard(IID(), data.train.targets, size)[rank]
    batches = Batches(indices, 16, 0, rank)
    steps = settings.get("steps", [30] * size)[rank]
    result = {"losses": []}
    record = out if settings.get("record") else None
    with distribute(model, optimizer, method=method, record=record, timeout=60) as optimizer:
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.5)
        for step in range(steps):
            if step == settings.get("dies", [None] * size)[rank]:
                time.sleep(1.0)  # Until the others wait for it.
                os.kill(os.getpid(), signal.SIGKILL)
            batch = batches.indices(step)
            loss = F.cross_entropy(model(data.train.inputs[batch]), data.train.targets[batch])
            loss.backward()
            result["losses"].append(loss.item())
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if settings.get("consensus"):
            with optimizer.consensus() as common:
                result["consensus"] = [p.sum().item() for p in common.parameters()]
    if settings.get("batch_norm"):
        torch.save(model.state_dict(), out / f"own-{rank}.pt")
        torch.manual_seed(0)
        reestimate_statistics(model, data.train.inputs.split(256))
        torch.save(model.state_dict(), out / f"estimated-{rank}.pt")
    result["lr"] = [group["lr"] for group in optimizer.param_groups]
    torch.save(flat(model), out / f"final-{rank}.pt")
    (out / f"result-{rank}.json").write_text(json.dumps(result))
