"""Optimizers without torch's compiler around them."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from offbeat.bare import bare_step, compiler_left_out
from offbeat.stepping import ELEMENTWISE

SCRIPT = """
import sys
import torch
from torch import nn
from offbeat.optim import LARS
from offbeat.bare import bare_step, compiler_left_out
from offbeat.stepping import ELEMENTWISE

for kind in (*ELEMENTWISE, LARS):
    x = nn.Parameter(torch.ones(3))
    with compiler_left_out():
        optimizer = kind([x], lr=0.1)
    x.grad = torch.ones(3)
    bare_step(optimizer)()
    assert (x < 1).all(), kind
    assert "torch._dynamo" not in sys.modules, kind
torch.optim.SGD([x], lr=0.1)
assert "torch._dynamo" in sys.modules
with compiler_left_out():
    torch.optim.SGD([x], lr=0.1)
"""


def test_torchs_compiler_is_imported_by_those_only_who_construct_optimizers_elsewhere() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=120)


SGDS = [
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
    {"weight_decay": 0.1},
    {"momentum": 0.5, "weight_decay": 0.1, "maximize": True},
    {"momentum": 0.5, "weight_decay": 0.1, "foreach": True},
    {"weight_decay": 0.1, "fused": True},
    {"momentum": 0.5, "dampening": 0.3, "fused": True},
    {"momentum": 0.9, "nesterov": True, "maximize": True, "weight_decay": 0.1, "fused": True},
    {"lr": torch.tensor(0.2), "momentum": 0.5},
]
CASES = [*((kind, {}) for kind in ELEMENTWISE), *((torch.optim.SGD, given) for given in SGDS)]


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_a_bare_step_has_the_bits_of_the_optimizer_s_own(
    kind: Any, settings: dict[str, Any]
) -> None:
    ours, theirs = (
        [nn.Parameter(torch.linspace(-1, 1, 37)), nn.Parameter(torch.ones(2, 3))] for _ in range(2)
    )
    bare, own = (kind(tensors, **{"lr": 0.1, **settings}) for tensors in (ours, theirs))
    step = bare_step(bare)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        ours[0].grad = torch.randn(37, generator=generator)
        theirs[0].grad = ours[0].grad.clone()
        # The second has none at first, which torch's fused step cannot bear with momentum.
        if seed or settings.get("fused"):
            ours[1].grad = torch.randn(2, 3, generator=generator)
            theirs[1].grad = ours[1].grad.clone()
        for optimizer in (bare, own):
            optimizer.param_groups[0]["lr"] *= 0.9
        step()
        own.step()
        assert torch.is_grad_enabled()
        assert all(map(torch.equal, ours, theirs))
        assert all(x.grad_fn is None for x in ours)
        assert ours[0].grad.equal(theirs[0].grad)
        for one, other in zip(ours, theirs, strict=True):
            state, expected = bare.state.get(one, {}), own.state.get(other, {})
            assert state.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.equal(torch.as_tensor(state[name]), torch.as_tensor(value))


def test_hooks_and_derivatives_of_a_step_are_left_as_they_are() -> None:
    x = nn.Parameter(torch.ones(3))
    x.grad = torch.ones(3)
    seen: list[bool] = []
    with compiler_left_out():
        hooked = torch.optim.SGD([x], lr=0.1)
    hooked.register_step_pre_hook(lambda *_: seen.append(True))
    bare_step(hooked)()
    assert seen == [True]
    start = torch.ones(3, requires_grad=True)
    moved = start.clone()
    moved.grad = torch.ones(3)
    bare_step(torch.optim.SGD([moved], lr=0.1, differentiable=True))()
    assert moved.grad_fn is not None
    assert "AddBackward" in type(moved.grad_fn).__name__
