"""LARS and LAMB: the formulas, tensor by tensor, other libraries' steps, and what is refused."""

import functools
import io
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import offbeat
from offbeat.methods import SGD
from offbeat.optim import LAMB, LARS, NormalizedMomentumLARS, without_decay
from offbeat.optim.layerwise import CHUNK, chunks
from offbeat.parameters import Layout
from offbeat.problems import Digits
from offbeat.schedule import Polynomial
from offbeat.stepping import ParameterOptimizer

SHAPES = ((5, 3), (5,), (2, 3, 2, 2), (), (4, 1), (3,))


def tensors(seed: int, shapes=SHAPES, dtype=torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def parameters(seed: int = 0, shapes=SHAPES, dtype=torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(tensor) for tensor in tensors(seed, shapes, dtype)]


def take_steps(optimizer, params, steps, first=1, rates=None):
    for k in range(first, first + steps):
        if rates is not None:
            for group in optimizer.param_groups:
                group["lr"] = rates[k - first]
        for parameter, gradient in zip(
            params, tensors(k, [p.shape for p in params], params[0].dtype), strict=True
        ):
            parameter.grad = gradient
        optimizer.step()


# Each formula as its paper has it, one tensor at a time.


def lars(w, g, state, *, lr, momentum, decay, eta, adapts):
    ratio = 1.0
    if adapts:
        ratio = eta * w.norm() / (g.norm() + decay * w.norm())
        g = g + decay * w
    state["v"] = momentum * state.get("v", 0) + lr * ratio * g
    return w - state["v"]


def normalized_momentum_lars(x, g, state, *, lr, momentum, decay, bounds, adapts):
    if adapts:
        g = g + decay * x
    m = state["m"] = momentum * state.get("m", 0) + (1 - momentum) * g
    ratio = phi(x, bounds) / m.norm() if adapts else 1.0
    return x - lr * ratio * m


def lamb(x, g, state, *, lr, betas, eps, decay, correct, bounds, adapts):
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g**2
    if correct:
        m, v = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    r = m / (v.sqrt() + eps)
    if not adapts:
        return x - lr * r
    r = r + decay * x
    return x - lr * phi(x, bounds) / r.norm() * r


def phi(x, bounds):
    return x.norm() if bounds is None else x.norm().clamp(bounds[0], bounds[1])


BOUNDS = (0.5, 2.0)  # Some of the tensors have norms below, some above.
CASES = {
    "LARS": (
        functools.partial(LARS, momentum=0.9, weight_decay=0.1, trust_coefficient=0.02),
        functools.partial(lars, momentum=0.9, decay=0.1, eta=0.02),
    ),
    "LARS without decay or momentum": (
        functools.partial(LARS, momentum=0.0),
        functools.partial(lars, momentum=0.0, decay=0.0, eta=0.001),
    ),
    "NormalizedMomentumLARS": (
        functools.partial(NormalizedMomentumLARS, momentum=0.8, weight_decay=0.1),
        functools.partial(normalized_momentum_lars, momentum=0.8, decay=0.1, bounds=None),
    ),
    "NormalizedMomentumLARS, bounded": (
        functools.partial(NormalizedMomentumLARS, norm_bounds=BOUNDS),
        functools.partial(normalized_momentum_lars, momentum=0.9, decay=0.0, bounds=BOUNDS),
    ),
    "LAMB": (
        functools.partial(LAMB, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1),
        functools.partial(lamb, betas=(0.8, 0.95), eps=1e-3, decay=0.1, correct=True, bounds=None),
    ),
    "LAMB of the preprint, bounded": (
        functools.partial(LAMB, bias_correction=False, norm_bounds=BOUNDS),
        functools.partial(
            lamb, betas=(0.9, 0.999), eps=1e-6, decay=0.01, correct=False, bounds=BOUNDS
        ),
    ),
}


@pytest.mark.parametrize("adapt", ["matrices", "all", "none"])
@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_formula_s(name: str, adapt: str):
    made, formula = CASES[name]
    rates = [0.3, 0.3, 0.1, 0.02, 0.5]  # Where the learning rate stands shows when it changes.
    params = parameters()
    take_steps(made(params, adapt=adapt), params, len(rates), rates=rates)
    for position, expected in enumerate(tensors(0)):
        state = {}
        adapts = adapt == "all" or (adapt == "matrices" and expected.ndim > 1)
        for k, lr in enumerate(rates, start=1):
            gradient = tensors(k)[position]
            expected = formula(expected, gradient, state, lr=lr, adapts=adapts)
        torch.testing.assert_close(params[position].detach(), expected, rtol=0, atol=1e-10)


def test_a_step_by_hand():
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    w.grad = torch.tensor([[0.0, 2.0]])
    optimizer = LARS([w], lr=1.0, momentum=0.5, weight_decay=0.6, trust_coefficient=0.1)
    optimizer.step()  # ratio 0.1 * 5 / (2 + 0.6 * 5) = 0.1, direction (1.8, 4.4)
    torch.testing.assert_close(w.detach(), torch.tensor([[2.82, 3.56]]))

    x = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    x.grad = torch.tensor([[1.0, -2.0]])
    LAMB([x], lr=0.1, eps=0.0, weight_decay=0.0).step()  # Adam's first direction is the sign.
    length = 0.1 * 5 / 2**0.5
    torch.testing.assert_close(x.detach(), torch.tensor([[3 - length, 4 + length]]))


@pytest.mark.parametrize("made", [LARS, LAMB, NormalizedMomentumLARS])
def test_the_length_of_a_step_is_the_tensor_s_own(made):
    # The trust ratio is of each tensor, not of the model: a tensor's step knows of no other.
    alone, together = parameters(), parameters()
    for position, parameter in enumerate(alone):
        optimizer = made([parameter])
        for k in range(1, 4):
            parameter.grad = tensors(k)[position]
            optimizer.step()
    take_steps(made(together), together, 3)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("made", [LARS, LAMB, NormalizedMomentumLARS])
def test_large_and_small_tensors_of_two_types_step_as_each_alone(made):
    shapes = ((700, 600), (3, 2), (5,), (400, 300), (30, 400), (2, 2))
    large = parameters(shapes=shapes, dtype=torch.float32)
    double = parameters(seed=9)
    both = [*large[:3], *double, *large[3:]]
    optimizer = made(both)
    for p, g in zip(both, tensors(1, [p.shape for p in both]), strict=True):
        p.grad = g.to(p.dtype)
    gradients = [p.grad.clone() for p in both]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(both, gradients, strict=True))
    again = [
        *parameters(shapes=shapes, dtype=torch.float32)[:3],
        *parameters(seed=9),
        *parameters(shapes=shapes, dtype=torch.float32)[3:],
    ]
    for parameter, gradient in zip(again, gradients, strict=True):
        parameter.grad = gradient
        made([parameter]).step()
    for one, other in zip(both, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


def test_a_cpu_takes_few_bytes_at_a_time_and_loses_no_tensor():
    rows = [torch.zeros(n, dtype=torch.uint8) for n in (3, CHUNK, 5, 1, CHUNK - 6, 1, CHUNK + 1, 2)]
    found = list(chunks([*rows, torch.zeros(2), *rows[:1]]))
    sizes = [[len(tensor) for tensor in some] for some in found]
    assert sizes == [[3], [CHUNK], [5, 1, CHUNK - 6], [1], [CHUNK + 1], [2, 3], [2]]
    assert list(chunks([])) == []
    elsewhere = [torch.zeros(CHUNK, device="meta") for _ in range(3)]
    assert [len(some) for some in chunks(elsewhere)] == [3]


@pytest.mark.parametrize(
    "made",
    [
        functools.partial(LARS, weight_decay=0.1),
        functools.partial(NormalizedMomentumLARS, weight_decay=0.1),
        LAMB,
    ],
)
def test_a_tensor_of_zeros_can_leave_it(made):
    w = nn.Parameter(torch.zeros(2, 3))
    w.grad = torch.ones(2, 3)
    optimizer = made([w], lr=0.1)
    optimizer.step()
    # The ratio is 1, so these are the steps of SGD, of its exponential average and of Adam.
    expected = {LARS: -0.1, NormalizedMomentumLARS: -0.01, LAMB: -0.1}[type(optimizer)]
    torch.testing.assert_close(w.detach(), torch.full((2, 3), expected))


@pytest.mark.parametrize("made", [LARS, NormalizedMomentumLARS, LAMB])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_gradient_of_zeros_moves_nothing_and_makes_no_nan(made, value: float):
    w = nn.Parameter(torch.full((2, 3), value))
    w.grad = torch.zeros(2, 3)
    made([w], lr=0.1, weight_decay=0.0).step()
    assert w.eq(value).all()


@pytest.mark.parametrize("made", [LARS, NormalizedMomentumLARS, LAMB])
def test_biases_and_gains_neither_decay_nor_adapt(made):
    vector = nn.Parameter(torch.full((4,), 100.0))
    matrix = nn.Parameter(torch.full((4, 1), 100.0))
    vector.grad, matrix.grad = torch.zeros(4), torch.zeros(4, 1)
    made([vector, matrix], lr=0.1, weight_decay=0.5).step()
    assert vector.eq(100).all()
    assert matrix.lt(100).all()
    # As long as they are, they would move far with a ratio.
    vector.grad = torch.full((4,), 1e-3)
    made([vector], lr=0.1, weight_decay=0.5).step()
    assert vector.gt(99.8).all()


def test_without_decay_leaves_out_what_it_is_told():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    embedding, weight, bias, gain, shift = model.parameters()
    decayed, left_out = without_decay(model.named_parameters())
    assert [id(p) for p in decayed["params"]] == [id(embedding), id(weight)]
    assert [id(p) for p in left_out["params"]] == [id(bias), id(gain), id(shift)]
    groups = without_decay(model.named_parameters(), lambda name, p: name == "0.weight")
    assert groups[1]["params"] == [embedding]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [p.detach().clone() for p in model.parameters()]
    LAMB(groups, lr=0.1, weight_decay=0.5).step()
    torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5).step()
    assert torch.equal(embedding, before[0])
    assert not torch.equal(weight, before[1])
    assert without_decay([("b", bias)]) == [
        {"params": [bias], "weight_decay": 0.0, "adapt": "none"}
    ]


@pytest.mark.parametrize("name", CASES)
def test_a_state_read_back_goes_on_to_the_bit(name: str):
    made, _ = CASES[name]

    def build():
        params = parameters()
        groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.01, "adapt": "all"}]
        return params, made(groups, lr=0.1)

    whole, optimizer = build()
    take_steps(optimizer, whole, 3)
    saved = io.BytesIO()
    torch.save(optimizer.state_dict(), saved)
    saved.seek(0)
    halfway = [p.detach().clone() for p in whole]
    take_steps(optimizer, whole, 3, first=4)
    again, other = build()
    for parameter, value in zip(again, halfway, strict=True):
        parameter.data.copy_(value)
    other.load_state_dict(torch.load(saved))
    take_steps(other, again, 3, first=4)
    for one, two in zip(whole, again, strict=True):
        assert torch.equal(one, two)


def test_a_parameter_without_a_gradient_stays_and_counts_its_own_steps():
    w, v = parameters(shapes=((2, 2), (2, 3)))
    optimizer = LAMB([w, v])
    before = v.detach().clone()
    w.grad = torch.ones_like(w)
    optimizer.step()
    assert torch.equal(v, before)
    v.grad = torch.ones_like(v)
    optimizer.step()
    assert (optimizer.state[w]["step"], optimizer.state[v]["step"]) == (2, 1)
    fresh = nn.Parameter(before)
    fresh.grad = torch.ones_like(v)
    LAMB([fresh]).step()
    assert torch.equal(v, fresh)


def test_a_closure_is_called_once_with_gradients_enabled():
    w = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([w])

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4
    assert w.lt(1).all()


@pytest.mark.parametrize(
    ("made", "settings", "text"),
    [
        (LARS, {"lr": -1.0}, "LARS: lr is -1.0; it must not be negative"),
        (LARS, {"lr": float("nan")}, "LARS: lr is nan; it must not be negative"),
        (LARS, {"weight_decay": -0.1}, "LARS: weight_decay is -0.1; it must not be negative"),
        (LARS, {"trust_coefficient": -0.1}, "trust_coefficient is -0.1; it must not be negative"),
        (LARS, {"momentum": 1.0}, "LARS: momentum is 1.0; give at least 0 and less than 1"),
        (LAMB, {"betas": (0.9, 1.0)}, r"LAMB: betas are \(0.9, 1.0\); give at least 0 and less"),
        (LAMB, {"eps": -1e-8}, "LAMB: eps is -1e-08; it must not be negative"),
        (LAMB, {"norm_bounds": (2, 1)}, r"norm_bounds are \(2, 1\); give 0 <= lower <= upper"),
        (LAMB, {"adapt": "biases"}, "adapt is 'biases'; it is one of matrices, all, none"),
    ],
)
def test_settings_that_cannot_be_are_refused_of_all_and_of_a_group(made, settings, text):
    with pytest.raises(ValueError, match=text):
        made(parameters(), **settings)
    with pytest.raises(ValueError, match=text):
        made([{"params": parameters(), **settings}])


@pytest.mark.parametrize("made", [LARS, LAMB, NormalizedMomentumLARS])
def test_what_it_cannot_do_is_refused_in_one_line(made):
    with pytest.raises(TypeError, match="unexpected keyword argument 'differentiable'"):
        made(parameters(), differentiable=True)
    with pytest.raises(ValueError, match=r"^\w+: a step cannot be differentiated; leave differ"):
        made([{"params": parameters(), "differentiable": True}])
    w = nn.Parameter(torch.ones(3, 2))
    w.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match=rf"^{made.__name__} needs dense gradients, not sparse"):
        made([w]).step()


# timm


def timm_groups(params):
    return [
        {"params": [p for p in params if p.ndim > 1]},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]


def test_lars_is_timm_s_while_the_rate_stays(timm):
    ours, theirs = parameters(), parameters()
    settings = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.1}
    take_steps(LARS(ours, **settings), ours, 5)
    take_steps(timm.Lars(timm_groups(theirs), eps=0.0, **settings), theirs, 5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_lars_differs_from_timm_s_where_it_says_so(timm):
    # A new rate: ours leaves the velocity as it is, timm's is as if the old steps had had it too.
    ours, theirs = parameters(shapes=((2, 3),)), parameters(shapes=((2, 3),))
    settings = {"momentum": 0.5, "weight_decay": 0.1}
    optimizer = LARS(ours, lr=1.0, **settings)
    rival = timm.Lars(theirs, lr=1.0, eps=0.0, **settings)
    take_steps(optimizer, ours, 1)
    take_steps(rival, theirs, 1)
    velocity, start = optimizer.state[ours[0]]["momentum_buffer"].clone(), ours[0].detach().clone()
    for made, params in ((optimizer, ours), (rival, theirs)):
        made.param_groups[0]["lr"] = 0.0
        params[0].grad = torch.ones_like(params[0])
        made.step()
    torch.testing.assert_close(ours[0].detach(), start - 0.5 * velocity, rtol=0, atol=1e-12)
    torch.testing.assert_close(theirs[0].detach(), start, rtol=0, atol=1e-12)
    # What is added to the denominator: 0.1 * 2 / (4 + 0.5 * 2) against 0.2 / (5 + eps).
    for made, ratio in ((LARS, 0.04), (functools.partial(timm.Lars, eps=3.0), 0.025)):
        w = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
        w.grad = torch.full_like(w, 2.0)
        eta = {"trust_coefficient" if made is LARS else "trust_coeff": 0.1}
        made([w], lr=0.5, momentum=0.0, weight_decay=0.5, **eta).step()
        assert w[0, 0].item() == pytest.approx(1 - 0.5 * ratio * 2.5, abs=1e-12)
    # A gradient of zeros: ratio eta / beta against 1.
    for made, ratio in ((LARS, 0.001 / 0.1), (timm.Lars, 1.0)):
        w = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
        w.grad = torch.zeros_like(w)
        made([w], lr=0.5, momentum=0.0, weight_decay=0.1).step()
        assert w[0, 0].item() == pytest.approx(1 - 0.5 * ratio * 0.1, abs=1e-9)
    # No decay: a ratio against none.
    for made, ratio in ((LARS, 0.001), (timm.Lars, 1.0)):
        w = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
        w.grad = torch.ones_like(w)
        made([w], lr=0.5, momentum=0.0, weight_decay=0.0).step()
        assert w[0, 0].item() == pytest.approx(1 - 0.5 * ratio, abs=1e-9)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_lamb_is_timm_s_without_its_clipping(timm, bias_correction: bool):
    ours, theirs = parameters(), parameters()
    settings = {"lr": 0.03, "weight_decay": 0.1, "eps": 1e-4, "bias_correction": bias_correction}
    take_steps(LAMB(ours, **settings), ours, 5)
    rival = timm.Lamb(timm_groups(theirs), max_grad_norm=None, **settings)
    take_steps(rival, theirs, 5)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_lamb_differs_from_timm_s_where_it_says_so(timm):
    # Clipping to norm 1 is all that timm's defaults do besides, with decay.
    ours, theirs = parameters(shapes=((2, 3),)), parameters(shapes=((2, 3),))
    optimizer, rival = LAMB(ours, lr=0.1, eps=1e-2), timm.Lamb(theirs, lr=0.1, eps=1e-2)
    for k in (1, 2):
        ours[0].grad = theirs[0].grad = 10 * tensors(k, ((2, 3),))[0]
        rival.step()
        ours[0].grad = ours[0].grad / ours[0].grad.norm()
        optimizer.step()
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-10)
    # No decay: a ratio against none.
    for made, ratio in ((LAMB, 2.0), (timm.Lamb, 1.0)):
        w = nn.Parameter(torch.full((2, 2), 2.0, dtype=torch.float64))
        w.grad = torch.ones_like(w)
        made([w], lr=0.1, weight_decay=0.0, eps=0.0).step()
        assert w[0, 0].item() == pytest.approx(2 - 0.1 * ratio)


# In offbeat


def test_it_is_imported_without_the_runtimes():
    code = (
        "import sys, offbeat.optim; "
        "print(sorted(m for m in sys.modules if m.startswith('offbeat') and 'optim' not in m))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert printed == "['offbeat']\n"


@pytest.mark.parametrize("name", CASES)
def test_on_a_flat_vector_it_steps_as_on_the_module(name: str):
    made, _ = CASES[name]
    torch.manual_seed(0)
    # Large enough that the gradient is read where it lies.
    module = nn.Sequential(nn.Linear(600, 500), nn.ReLU(), nn.Linear(500, 2))
    layout = Layout.of(module)
    vector = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    ours = ParameterOptimizer(
        vector, layout, lambda named: made(without_decay(list(named)), lr=0.1)
    )
    plain = made(without_decay(module.named_parameters()), lr=0.1)
    for step in range(3):
        gradient = torch.randn(layout.size, generator=torch.Generator().manual_seed(step))
        for p, view in zip(module.parameters(), layout.views(gradient), strict=True):
            p.grad = view.clone()
        for group in plain.param_groups:
            group["lr"] = 0.1 * 0.5**step
        plain.step()
        kept = gradient.clone()
        ours.step(gradient, scale=0.5**step)
        assert torch.equal(gradient, kept)
        assert torch.equal(vector, torch.cat([p.detach().reshape(-1) for p in module.parameters()]))
    assert not ours._copies


@pytest.mark.parametrize(
    "optimizer",
    [
        functools.partial(LARS, lr=3.0),
        functools.partial(NormalizedMomentumLARS, lr=0.01),
        functools.partial(LAMB, lr=0.01),
    ],
)
def test_it_learns_the_digits(optimizer):
    run = offbeat.simulate(
        SGD(),
        Digits(),
        cluster=offbeat.Cluster(workers=1),
        optimizer=optimizer,
        schedule=Polynomial(total=12_000, warmup=1_200),
        budget=offbeat.Budget(samples=12_000),
    )
    assert run.metrics[-1].accuracy > 0.9
