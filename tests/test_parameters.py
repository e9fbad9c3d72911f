import functools
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from offbeat import stepping
from offbeat.encoding import decode, encode
from offbeat.methods import SGD
from offbeat.optim import LAMB
from offbeat.parameters import Layout, PiecewiseVector
from offbeat.runtime.capture import OptimizerState
from offbeat.stepping import ParameterOptimizer
from offbeat.testing import simulated, small_experiment

shapes = st.lists(st.lists(st.integers(1, 6), max_size=3).map(tuple), min_size=1, max_size=8)
layouts = shapes.map(lambda s: Layout(tuple(f"p{i}" for i in range(len(s))), tuple(s)))


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def flat(module):
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def sgd(lr=0.1, **settings):
    return lambda named: torch.optim.SGD([p for _, p in named], lr=lr, **settings)


def test_the_layout_of_a_module_has_its_names_and_shapes():
    layout = Layout.of(network())
    assert layout.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert layout.shapes == ((4, 3), (4,), (2, 4), (2,))
    assert layout.sizes == (12, 4, 8, 2)
    assert layout.size == 26


@given(layouts)
def test_flatten_undoes_views(layout):
    vector = torch.arange(float(layout.size))
    views = layout.views(vector)
    assert [tuple(v.shape) for v in views] == list(layout.shapes)
    assert torch.equal(layout.flatten(views), vector)


def test_views_share_the_vector():
    layout, vector = Layout.of(network()), torch.zeros(26)
    layout.views(vector)[1].fill_(1)
    assert vector[layout.spans[1]].tolist() == [1] * 4
    assert vector.sum() == 4


@given(layouts, st.data())
def test_split_cuts_at_tensors_and_loses_none(layout, data):
    parts = data.draw(st.integers(1, len(layout.names)))
    split = layout.split(parts)
    assert len(split) == parts
    assert all(part.names for part in split)
    assert sum((part.names for part in split), ()) == layout.names
    spans = layout.split_spans(parts)
    assert [s.stop - s.start for s in spans] == [part.size for part in split]
    assert spans[0].start == 0
    assert spans[-1].stop == layout.size
    assert all(a.stop == b.start for a, b in pairwise(spans))


def test_split_is_as_even_as_tensors_allow():
    layout = Layout(tuple("abcdef"), ((5,), (5,), (10,), (1,), (9,), (10,)))
    assert [part.size for part in layout.split(2)] == [20, 20]
    assert [part.size for part in layout.split(4)] == [10, 10, 10, 10]


@pytest.mark.parametrize("parts", [0, 5])
def test_split_refuses_more_parts_than_tensors(parts):
    with pytest.raises(
        ValueError, match=f"split 4 parameter tensors into {parts} parts; .* 1 to 4"
    ):
        Layout.of(network()).split(parts)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        functools.partial(torch.optim.Adam, lr=0.01),
        functools.partial(torch.optim.AdamW, lr=0.01),
        functools.partial(torch.optim.RMSprop, lr=0.01),
    ],
)
def test_steps_are_those_of_the_optimizer_on_the_module(make):
    torch.manual_seed(0)
    module = network()
    vector = flat(module)
    ours = ParameterOptimizer(vector, Layout.of(module), lambda named: make([p for _, p in named]))
    plain = make(module.parameters())
    for step in range(5):
        gradient = torch.randn(26, generator=torch.Generator().manual_seed(step))
        views = Layout.of(module).views(gradient)
        for parameter, view in zip(module.parameters(), views, strict=True):
            parameter.grad = view.clone()
        plain.step()
        ours.step(gradient)
        assert torch.equal(vector, flat(module))


def test_parameter_groups_see_names_and_shapes():
    def no_decay_on_biases(named):
        named = list(named)
        return torch.optim.SGD(
            [
                {"params": [p for n, p in named if "bias" not in n], "weight_decay": 1.0},
                {"params": [p for n, p in named if "bias" in n], "lr": 0.5},
            ],
            lr=0.1,
        )

    layout, vector = Layout.of(network()), torch.ones(26)
    optimizer = ParameterOptimizer(vector, layout, no_decay_on_biases)
    optimizer.step(torch.zeros(26))
    weight, bias, *_ = layout.views(vector)
    assert weight.eq(0.9).all()
    assert bias.eq(1.0).all()
    optimizer.step(torch.ones(26), scale=0.5)
    assert bias.eq(0.75).all()
    assert optimizer.lr == 0.05


SIDE_BY_SIDE = Layout(tuple("abcde"), ((3, 2), (4,), (), (70,), (2,)))


def in_two_groups(named, **settings):
    """a and b touch, and so do d and e; c, between them, is of the other group."""
    a, b, c, d, e = (parameter for _, parameter in named)
    return torch.optim.Adam(
        [{"params": [a, b, d, e]}, {"params": [c], "lr": 0.5}], lr=0.1, **settings
    )


def test_neighbours_in_a_group_are_stepped_as_one_tensor():
    x, y = torch.ones(SIDE_BY_SIDE.size), torch.ones(SIDE_BY_SIDE.size)
    optimizer = ParameterOptimizer(x, SIDE_BY_SIDE, in_two_groups)
    groups = optimizer.inner.param_groups
    assert [[p.shape for p in group["params"]] for group in groups] == [[(10,), (72,)], [(1,)]]
    views = [torch.nn.Parameter(view) for view in SIDE_BY_SIDE.views(y)]
    plain = in_two_groups(list(zip("abcde", views, strict=True)))
    for seed in range(3):
        gradient = torch.randn(len(x), generator=torch.Generator().manual_seed(seed))
        for view, part in zip(views, SIDE_BY_SIDE.views(gradient), strict=True):
            view.grad = part
        optimizer.step(gradient)
        plain.step()
        assert torch.equal(x, y)


def alternating(named):
    """Weights and biases apart, of which none touch."""
    tensors = [parameter for _, parameter in named]
    return torch.optim.AdamW([{"params": tensors[::2]}, {"params": tensors[1::2], "lr": 0.5}])


def every(kind, **settings):
    return lambda named: kind([parameter for _, parameter in named], lr=0.1, **settings)


LAYOUTS = [
    SIDE_BY_SIDE,
    Layout(("w",), ((5, 6),)),
    Layout(("s", "t"), ((), ())),
    Layout.of(network()),
]
MAKES = [every(torch.optim.SGD, momentum=0.9), every(torch.optim.Adagrad), every(torch.optim.NAdam)]


@pytest.mark.parametrize("make", [*MAKES, alternating], ids=["SGD", "Adagrad", "NAdam", "groups"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: str(layout.shapes))
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_what_is_remembered_is_of_each_tensor_however_they_are_stepped(
    make, layout, before, after, monkeypatch
):
    def optimizer(x, joined):
        monkeypatch.setattr(stepping, "COPIED", 1 << 20 if joined else -1)
        return ParameterOptimizer(x, layout, make)

    gradients = torch.randn(4, layout.size, generator=torch.Generator().manual_seed(0))
    x = torch.ones(layout.size)
    whole = optimizer(x.clone(), joined=False)
    first = optimizer(x, before)
    for gradient in gradients[:2]:
        first.step(gradient)
    state = decode(encode(OptimizerState.of(first)), (OptimizerState,))
    sizes = [{v.numel() for v in held.values() if v.dim()} for held in state.buffers if held]
    assert all(len(each) <= 1 for each in sizes)
    with_extent = [size for shape, size in zip(layout.shapes, layout.sizes, strict=True) if shape]
    assert sum(sum(each) for each in sizes) == sum(with_extent)
    second = optimizer(x, after)
    state.restore(second)
    for gradient in gradients[2:]:
        second.step(gradient)
    for gradient in gradients:
        whole.step(gradient)
    assert torch.equal(x, whole._vector)


def test_a_user_s_optimizer_that_has_stepped_is_joined_where_its_tensors_agree():
    """One whose tensors have made different numbers of steps goes on tensor by tensor."""

    def used(late):
        def make(named):
            tensors = [parameter for _, parameter in named]
            adam = torch.optim.Adam(tensors, lr=0.1)
            for step in range(3):
                for number, tensor in enumerate(tensors):
                    held = None if number < late and step < 2 else torch.full_like(tensor, 0.5)
                    tensor.grad = held
                adam.step()
            return adam

        return make

    layout = Layout.of(network())
    for late, joined in ((0, True), (1, False)):
        x, y = torch.ones(26), torch.ones(26)
        ours = ParameterOptimizer(x, layout, used(late))
        assert ours.joined == joined
        views = [nn.Parameter(view) for view in layout.views(y)]
        plain = used(late)(list(zip(layout.names, views, strict=True)))
        for seed in range(2):
            gradient = torch.randn(26, generator=torch.Generator().manual_seed(seed))
            for view, part in zip(views, layout.views(gradient), strict=True):
                view.grad = part
            plain.step()
            ours.step(gradient)
        assert torch.equal(x, y)


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("chosen", [slice(-2, None), slice(0, 2), slice(1, 3)])
def test_an_optimizer_of_some_tensors_leaves_the_others_alone(chosen, copied, monkeypatch):
    monkeypatch.setattr(stepping, "COPIED_AS_ONE", 1 << 20 if copied else -1)
    x, layout = torch.zeros(26), Layout.of(network())
    optimizer = ParameterOptimizer(
        x, layout, lambda named: torch.optim.SGD([p for _, p in named][chosen], lr=1.0)
    )
    gradient = torch.arange(1.0, 27.0)
    pieces = PiecewiseVector(
        layout=layout, tensors=layout.views(gradient), new=lambda: torch.empty(26)
    )
    optimizer.step(gradient)
    optimizer.step(pieces)
    spans = layout.spans[chosen]
    expected = torch.zeros(26)
    expected[spans[0].start : spans[-1].stop] = -2 * gradient[spans[0].start : spans[-1].stop]
    assert torch.equal(x, expected)


def test_what_cannot_be_joined_to_the_bit_is_not():
    for dtype, make in (
        (torch.bfloat16, sgd(lr=1.0)),
        (torch.float32, lambda named: Scribbling([p for _, p in named], lr=1.0)),
        (torch.float32, lambda named: LAMB([p for _, p in named], lr=1.0)),
    ):
        optimizer = ParameterOptimizer(torch.ones(26, dtype=dtype), Layout.of(network()), make)
        assert len(optimizer.inner.param_groups[0]["params"]) == 4


def test_scale_multiplies_the_base_rate_not_the_last_one():
    vector = torch.zeros(26)
    optimizer = ParameterOptimizer(vector, Layout.of(network()), sgd(lr=0.2))
    for scale in (0.5, 0.5, 0.1, 1.0):
        optimizer.step(torch.zeros(26), scale)
        assert optimizer.lr == pytest.approx(0.2 * scale)


def test_settings_that_change_leave_the_others_as_they_are():
    factory = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    optimizer = ParameterOptimizer(torch.zeros(2), Layout(("x",), ((2,),)), factory)
    (group,) = optimizer.inner.param_groups
    optimizer.scale(0.5)
    optimizer.retune([{"momentum": 0.8}])
    assert (group["lr"], group["momentum"]) == (0.05, 0.8)
    optimizer.scale(1.0)
    assert group["lr"] == 0.1
    optimizer.scale(0.5)
    optimizer.retune([{"lr": 0.2}])
    assert (group["lr"], group["momentum"]) == (0.1, 0.8)


def test_reset_forgets_momentum():
    vector = torch.zeros(26)
    optimizer = ParameterOptimizer(vector, Layout.of(network()), sgd(lr=1.0, momentum=0.9))
    optimizer.step(torch.ones(26))
    optimizer.reset()
    optimizer.step(torch.ones(26))
    assert vector.eq(-2).all()


def test_the_gradient_given_is_left_alone():
    vector, gradient = torch.ones(26), torch.ones(26)
    optimizer = ParameterOptimizer(vector, Layout.of(network()), sgd(weight_decay=1.0))
    optimizer.step(gradient)
    assert gradient.eq(1).all()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (torch.optim.LBFGS, "LBFGS cannot be used: it evaluates the loss several times"),
        (torch.optim.SparseAdam, "SparseAdam cannot be used: it needs sparse gradients"),
    ],
)
def test_optimizers_that_cannot_work_are_refused_by_name(make, text):
    with pytest.raises(ValueError, match=text):
        ParameterOptimizer(
            torch.ones(26), Layout.of(network()), lambda named: make([p for _, p in named])
        )


LARGE = Layout(("w", "v"), ((300_000,), (2, 5)))


def test_a_large_gradient_is_read_where_it_lies_and_let_go():
    vector, gradient = torch.ones(LARGE.size), torch.randn(LARGE.size)
    seen = []

    def watched(named):
        inner = torch.optim.SGD([p for _, p in named], lr=1.0, weight_decay=0.5, momentum=0.9)
        inner.register_step_pre_hook(
            lambda *_: seen.extend(p.grad for p in inner.param_groups[0]["params"])
        )
        return inner

    optimizer = ParameterOptimizer(vector, LARGE, watched)
    kept = gradient.clone()
    optimizer.step(gradient)
    assert [g.data_ptr() for g in seen] == [v.data_ptr() for v in LARGE.views(gradient)]
    assert torch.equal(gradient, kept)
    assert all(p.grad is None for p in optimizer.inner.param_groups[0]["params"])


class Scribbling(torch.optim.SGD):
    """Writes into its gradients, as some optimizers from elsewhere do."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(2)
        return super().step(closure)


@pytest.mark.parametrize("layout", [LARGE, Layout(("w",), ((4,),))])
def test_an_optimizer_from_elsewhere_may_write_into_its_copy(layout):
    vector, gradient = torch.zeros(layout.size), torch.ones(layout.size)
    optimizer = ParameterOptimizer(
        vector, layout, lambda named: Scribbling([p for _, p in named], lr=1.0)
    )
    optimizer.step(gradient)
    optimizer.step(gradient)
    assert gradient.eq(1).all()
    assert vector.eq(-4).all()


@pytest.mark.parametrize("foreach", [None, False, True])
def test_two_parameters_may_have_one_gradient_whatever_the_optimizer_writes(foreach):
    # With foreach torch's SGD adds Nesterov's momentum to the gradients in place.
    layout, gradient = Layout(("w", "v"), ((300_000,), (300_000,))), torch.ones(300_000)
    vector = torch.zeros(layout.size)
    pieces = PiecewiseVector(
        layout=layout, tensors=[gradient, gradient], new=lambda: torch.empty(layout.size)
    )
    make = sgd(lr=1.0, momentum=0.5, nesterov=True, foreach=foreach)
    optimizer = ParameterOptimizer(vector, layout, make)
    for _ in range(2):
        optimizer.step(pieces)
    assert gradient.eq(1).all()
    assert vector.eq(-1.5 - 1.75).all()


def test_flatten_writes_where_it_is_told():
    layout, out = Layout.of(network()), torch.empty(26)
    tensors = layout.views(torch.arange(26.0))
    assert layout.flatten(tensors, out=out) is out
    assert torch.equal(out, torch.arange(26.0))


@pytest.mark.parametrize("hidden", [16, 128, 8192])
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad"])
def test_a_step_along_pieces_has_the_bits_of_one_along_the_vector(name, hidden):
    module = nn.Sequential(nn.Linear(64, hidden), nn.Linear(hidden, 1))
    layout, factory = Layout.of(module), getattr(torch.optim, name)
    ends = []
    for whole in (True, False):
        vector = torch.ones(layout.size)
        optimizer = ParameterOptimizer(
            vector, layout, lambda named: factory([p for _, p in named], lr=0.1, weight_decay=0.01)
        )
        for k in range(3):
            gradient = torch.randn(layout.size, generator=torch.Generator().manual_seed(k))
            pieces = PiecewiseVector(
                layout=layout,
                tensors=[view.clone() for view in layout.views(gradient)],
                new=lambda: torch.empty(layout.size),
            )
            optimizer.step(gradient if whole else pieces)
            assert torch.equal(pieces.dense(), gradient), "the gradient was changed"
        ends.append(vector)
    assert torch.equal(*ends)


def test_a_vector_is_applied_with_its_version_only():
    class Forgetful(SGD):
        async def step(self, node):
            gradient = await node.gradient()
            node.apply(gradient.vector)

    with pytest.raises(AssertionError, match=r"node\.apply\(vector\) needs taken_at"):
        simulated(small_experiment(Forgetful(), workers=1, steps=1))
