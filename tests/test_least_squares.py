import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offbeat.problems import LeastSquares

SHAPES = st.tuples(st.integers(2, 12), st.integers(2, 12))


def exact(shape, condition, noise, seed=0):
    dimension, samples = shape
    return LeastSquares(
        dimension=dimension,
        samples=samples,
        condition=condition,
        noise=noise,
        seed=seed,
        batch_size=1,
        double=True,
    )


def loss_and_gradient(problem, x):
    train = problem.data().train
    model = problem.model()
    with torch.no_grad():
        model.weight.copy_(x)
    loss = problem.loss(model(train.inputs), train.targets)
    loss.backward()
    return loss.item(), model.weight.grad


@settings(deadline=None)
@given(shape=SHAPES, condition=st.floats(1, 1e4), noise=st.sampled_from([0.0, 0.5]))
def test_the_hessian_has_the_spectrum_that_was_asked_for(shape, condition, noise):
    A = exact(shape, condition, noise).data().train.inputs
    rank = min(shape)
    hessian = A.T @ A / len(A)
    eigenvalues = torch.linalg.eigvalsh(hessian).flip(0)
    expected = torch.logspace(0, -np.log10(condition), rank, dtype=torch.float64)
    torch.testing.assert_close(eigenvalues[:rank], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        eigenvalues[rank:], torch.zeros_like(eigenvalues[rank:]), rtol=0, atol=1e-12
    )


@settings(deadline=None)
@given(
    shape=SHAPES,
    condition=st.floats(1, 1e3),
    noise=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 5),
)
def test_the_optimum_is_where_the_gradient_vanishes(shape, condition, noise, seed):
    problem = exact(shape, condition, noise, seed)
    optimum = problem.optimum()
    assert optimum.shape == (shape[0],)
    loss, gradient = loss_and_gradient(problem, optimum)
    assert gradient.abs().max() < 1e-10
    assert loss == pytest.approx(problem.minimum(), abs=1e-14)
    nearby, _ = loss_and_gradient(problem, optimum + 0.1)
    assert nearby >= loss
    if noise == 0 or shape[0] >= shape[1]:
        assert problem.minimum() < 1e-20
    # Of all minimizers the one of least norm, which has no part in the null space of A.
    A = problem.data().train.inputs
    torch.testing.assert_close(torch.linalg.pinv(A) @ (A @ optimum), optimum, rtol=0, atol=1e-9)


def test_noise_lifts_the_minimum_to_its_expectation():
    # The residual is the noise's part outside the column space of A: noise^2 (N - d) / (2 N).
    problem = LeastSquares(dimension=50, samples=4000, noise=0.3, double=True)
    assert problem.minimum() == pytest.approx(0.5 * 0.3**2 * (1 - 50 / 4000), rel=0.1)


@pytest.mark.parametrize("shape", [(5, 30), (30, 5)])
def test_gradient_descent_from_the_start_reaches_the_optimum(shape):
    problem = exact(shape, condition=5.0, noise=0.1)
    train = problem.data().train
    model = problem.model()
    assert [name for name, _ in model.named_parameters()] == ["weight"]
    assert not model.weight.any()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        problem.loss(model(train.inputs), train.targets).backward()
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), problem.optimum())
    metrics = problem.evaluate(model(train.inputs), train.targets)
    assert metrics == {"loss": pytest.approx(problem.minimum(), abs=1e-15)}


def test_least_squares_is_float32_unless_asked_and_its_optimum_cannot_be_spoilt():
    problem = LeastSquares()
    data = problem.data()
    assert data.train is data.validation is data.test
    assert data.train.inputs.shape == (200, 20)
    assert data.train.targets.shape == (200,)
    for tensor in (data.train.inputs, data.train.targets, problem.optimum()):
        assert tensor.dtype == torch.float32
    assert next(problem.model().parameters()).dtype == torch.float32
    before = problem.optimum().clone()
    problem.optimum().zero_()
    assert torch.equal(problem.optimum(), before)
