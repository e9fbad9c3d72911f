"""Optimizers without torch's compiler around them."""

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from offbeat.bare import bare_step, compiler_left_out, is_untouched
from offbeat.parameters import Layout
from offbeat.stepping import ELEMENTWISE, ParameterOptimizer

SCRIPT = """
import sys
import torch
from torch import nn
from offbeat.optim import LARS
from offbeat.bare import bare_step, compiler_left_out, is_untouched
from offbeat.parameters import Layout
from offbeat.stepping import ELEMENTWISE, ParameterOptimizer

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


def step_of(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> torch.Tensor:
    """What an optimizer makes of three ones along a gradient of ones, by way of offbeat."""
    x = torch.ones(3)
    layout = Layout(("x",), ((3,),))
    ParameterOptimizer(x, layout, lambda named: make([p for _, p in named])).step(torch.ones(3))
    return x


class Clipped(torch.optim.SGD):
    # With the marks of torch's own.
    @functools.wraps(torch.optim.SGD.step)
    def step(self, closure: Any = None) -> Any:
        nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 1e-3)
        return super().step(closure)


def test_a_step_that_is_wrapped_by_others_is_taken_as_it_is() -> None:
    torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)  # Marks the class's step.
    assert (step_of(lambda tensors: Clipped(tensors, lr=0.1)) > 0.999).all()

    def replaced(tensors: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(tensors, lr=0.1)
        own = optimizer.step

        def step(closure: Any = None) -> Any:
            nn.utils.clip_grad_norm_(tensors, 1e-3)
            return own(closure)

        optimizer.step = step
        return optimizer

    assert (step_of(replaced) > 0.999).all()


@pytest.mark.parametrize("wraps", [True, False])
@pytest.mark.parametrize("before", [True, False], ids=["before the first", "later"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_class_s_step_that_others_have_patched_runs(
    kind: Any, before: bool, wraps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    kind([nn.Parameter(torch.ones(1))], lr=0.1)
    # As it is before torch has put its hooks around it.
    own = kind.step.__wrapped__ if before else kind.step

    def patched(*arguments: Any) -> Any:
        calls.append(arguments)
        return own(*arguments)

    monkeypatch.setattr(kind, "step", functools.wraps(own)(patched) if wraps else patched)
    step_of(lambda tensors: kind(tensors, lr=0.1))
    assert len(calls) == 1


def test_every_optimizer_of_torch_is_untouched_until_somebody_patches_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = [nn.Parameter(torch.ones(2, 2))]
    kinds: Any = (*ELEMENTWISE, torch.optim.Adafactor, torch.optim.LBFGS, torch.optim.Muon)
    for kind in kinds:
        assert is_untouched(kind(x, lr=0.1)), kind
    # torch's own decorator around what is not torch's.
    monkeypatch.setattr(torch.optim.SGD, "step", torch.no_grad()(lambda optimizer: None))
    assert not is_untouched(torch.optim.SGD(x, lr=0.1))


def test_a_class_s_step_may_be_patched_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    x = nn.Parameter(torch.ones(3))
    x.grad = torch.ones(3)
    optimizer = torch.optim.SGD([x], lr=0.1)
    step, own = bare_step(optimizer), torch.optim.SGD.step

    def patched(*arguments: Any) -> Any:
        calls.append(arguments)
        return own(*arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", patched)
    assert not is_untouched(optimizer)
    step()
    assert len(calls) == 1


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_hooks_of_all_optimizers_run_whenever_they_came(kind: Any) -> None:
    seen: list[torch.optim.Optimizer] = []
    x = nn.Parameter(torch.ones(3))
    x.grad = torch.ones(3)
    optimizer = kind([x], lr=0.1)
    step = bare_step(optimizer)
    assert is_untouched(optimizer)
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(optimizer))
    try:
        assert not is_untouched(optimizer)
        step()
    finally:
        handle.remove()
    assert seen == [optimizer]
    step()
    assert seen == [optimizer]
    assert is_untouched(optimizer)


def test_a_class_of_one_s_own_may_be_patched_too() -> None:
    class Own(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    calls: list[object] = []
    x = nn.Parameter(torch.ones(3))
    x.grad = torch.ones(3)
    step = bare_step(Own([x], lr=0.1))
    Own.step = lambda *arguments: calls.append(arguments)
    step()
    Own([x], lr=0.1)  # Now torch's hooks are around the new one.
    step()
    assert len(calls) == 2


def test_what_another_package_puts_in_its_place_is_not_torch_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: dict[str, Any] = {"calls": []}
    file = f"{torch.__path__[0]}_elsewhere/optim.py"
    exec(compile("def step(self, closure=None):\n    calls.append(1)", file, "exec"), names)
    monkeypatch.setattr(torch.optim.SGD, "step", names["step"])
    step_of(lambda tensors: torch.optim.SGD(tensors, lr=0.1))
    assert names["calls"] == [1]


def test_a_patch_beneath_sgd_s_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    own: Any = torch.optim.SGD._init_group

    def tenfold(self: Any, group: Any, tensors: Any, gradients: Any, *others: Any) -> Any:
        found = own(self, group, tensors, gradients, *others)
        gradients[:] = [10 * gradient for gradient in gradients]
        return found

    def sgd(tensors: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(tensors, lr=0.1)

    plain = step_of(sgd)
    monkeypatch.setattr(torch.optim.SGD, "_init_group", tenfold)
    torch.testing.assert_close(step_of(sgd) - 1, 10 * (plain - 1))
    # In a wrapper that is torch's.
    monkeypatch.setattr(torch.optim.SGD, "_init_group", torch.no_grad()(tenfold))
    torch.testing.assert_close(step_of(sgd) - 1, 10 * (plain - 1))


def test_a_later_patch_beneath_sgd_s_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    step, calls = bare_step(optimizer), []
    own: Any = torch.optim.SGD._init_group

    def noted(*arguments: Any) -> Any:
        calls.append(1)
        return own(*arguments)

    monkeypatch.setattr(torch.optim.SGD, "_init_group", noted)
    parameter.grad = torch.ones(3)
    step()
    assert calls
