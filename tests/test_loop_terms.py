"""What the ranks of a user's loop must have alike: what differs is named on every rank."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from loop_ranks import assert_fine, rank_and_size, run_ranks
from offbeat.labels import label
from offbeat.methods import SGD, AsyncSGD, LocalSGD, SyncSGD
from offbeat.optim import LARS
from offbeat.runtime.errors import RunError
from offbeat.runtime.loop import distribute

DIFFERENT = {
    "dtype": "the models differ: weight is float32 of shape (2, 3) on rank 0 and "
    "float64 of shape (2, 3) on rank 1",
    "buffer": "the models differ: scale is float32 of shape (1,) on rank 0 and "
    "float32 of shape (3,) on rank 1",
    "buffer's dtype": "the models differ: scale is float32 of shape (3,) on rank 0 and "
    "int64 of shape (3,) on rank 1",
    "frozen": "the models differ: teacher.weight is missing on rank 0 and "
    "float32 of shape (1, 2) on rank 1",
    "method": "the methods differ: AsyncSGD on rank 0 and SyncSGD on rank 1",
    "setting": "the methods differ: LocalSGD(local_steps=4) on rank 0 and "
    "LocalSGD(local_steps=5) on rank 1",
    "optimizer": "the optimizers differ: SGD on rank 0 and LARS on rank 1",
    "seed": "the seeds differ: 0 on rank 0 and 1 on rank 1",
}


def differ(out: Path) -> None:
    rank, _ = rank_and_size()
    for case in DIFFERENT:
        model, method, make = nn.Linear(3, 2), LocalSGD(local_steps=4), torch.optim.SGD
        if case == "dtype" and rank:
            model.double()
        if case == "buffer":
            model.register_buffer("scale", torch.ones(3 if rank else 1))
        if case == "buffer's dtype":
            model.register_buffer("scale", torch.arange(3) if rank else torch.ones(3))
        if case == "frozen" and rank:
            model.teacher = nn.Linear(2, 1).requires_grad_(False)
        if case == "method":
            method = SyncSGD() if rank else AsyncSGD()
        if case == "setting" and rank:
            method = LocalSGD(local_steps=5)
        if case == "optimizer" and rank:
            make = LARS
        seed = rank if case == "seed" else 0
        optimizer = make(model.parameters(), lr=0.1)
        with pytest.raises(RunError) as raised:
            distribute(model, optimizer, method=method, seed=seed, timeout=60)
        assert str(raised.value) == DIFFERENT[case], case


def test_what_differs_between_ranks_is_named_on_all_of_them(tmp_path: Path):
    assert_fine(run_ranks(differ, 2, tmp_path))


class Scaled(nn.Linear):
    """With a buffer whose elements are one number in memory."""

    def __init__(self, scale: float) -> None:
        super().__init__(3, 2)
        self.register_buffer("scale", torch.tensor([[scale], [2 * scale]]).expand(2, 3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs * self.scale[0])


def expanded(out: Path) -> None:
    rank, _ = rank_and_size()
    model = Scaled(1.0 + rank)
    method = LocalSGD(local_steps=2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with distribute(model, sgd, method=method, timeout=60) as optimizer:
        for _ in range(3):
            model(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
        with optimizer.consensus() as common:
            assert common is model
    assert torch.equal(model.scale, torch.tensor([[1.0] * 3, [2.0] * 3]))


def test_buffers_may_be_expanded(tmp_path: Path):
    assert_fine(run_ranks(expanded, 2, tmp_path))


def left(out: Path) -> None:
    model = nn.Linear(3, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with distribute(model, sgd, method=SGD(), timeout=60) as optimizer:
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        saved = optimizer.state_dict()
    # At once, where they would wait for ranks that are elsewhere by now.
    with pytest.raises(RunError, match=r"^consensus\(\) after the with block has ended"):
        optimizer.consensus().__enter__()
    with pytest.raises(RunError, match=r"^state_dict\(\) after the with block has ended"):
        optimizer.state_dict()
    with pytest.raises(RunError, match=r"^load_state_dict\(\) after the with block has ended"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("size", [1, 2])
def test_nothing_is_asked_of_ranks_that_have_left(size: int, tmp_path: Path):
    assert_fine(run_ranks(left, size, tmp_path))


@dataclass(frozen=True, kw_only=True)
class Odd(SGD):
    """Settings whose text, or comparison, is not as plain as that of numbers."""

    names: frozenset[str] = frozenset()
    weights: torch.Tensor = field(default_factory=lambda: torch.ones(2))


def test_the_text_of_settings_is_the_same_in_every_process():
    assert label(Odd(names=frozenset("dacb"))).startswith("Odd(names={a, b, c, d}")
    model = nn.Linear(3, 2)
    with distribute(model, torch.optim.SGD(model.parameters(), lr=0.1), method=Odd(), timeout=60):
        pass
