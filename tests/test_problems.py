import inspect
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offbeat.problems import (
    CIFAR10,
    CIFAR100,
    LIBSVM,
    MNIST,
    PROBLEMS,
    Batches,
    CharacterText,
    Digits,
    FashionMNIST,
    LeastSquares,
    Problem,
    Split,
    Supervised,
)
from offbeat.problems.classification import class_beyond
from offbeat.problems.digits import read_digits
from offbeat.problems.holdout import hold_out


def small_supervised(**changes):
    inputs = torch.linspace(-1, 1, 40).reshape(20, 2)
    fields = {
        "model_factory": lambda: nn.Linear(2, 3),
        "train": Split(inputs, torch.arange(20) % 3),
        "test": Split(inputs[:5], torch.arange(5) % 3),
        "loss_function": F.cross_entropy,
        "batch_size": 4,
    }
    return Supervised(**(fields | changes))


def two_samples(problem):
    """Two inputs and targets of the shapes of `problem`, without reading files."""
    if isinstance(problem, MNIST | FashionMNIST):
        return torch.randn(2, 1, 28, 28), torch.tensor([3, 7])
    if isinstance(problem, CIFAR10 | CIFAR100):
        return torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8), torch.tensor([3, 7])
    if isinstance(problem, CharacterText):
        characters = torch.randint(65, (2, problem.length + 1))
        return characters[:, :-1], characters[:, 1:]
    train = problem.data().train
    return train.inputs[:2], train.targets[:2]


@pytest.mark.parametrize(
    "problem",
    [
        Digits(),
        LeastSquares(),
        MNIST(),
        FashionMNIST(network="course-lenet"),
        CIFAR10(network="lenet5"),
        CIFAR100(network="resnet8-gn", width=4),
        CharacterText(length=8, width=16, layers=1),
        small_supervised(),
    ],
    ids=lambda problem: type(problem).__name__,
)
def test_many_gradients_at_once_equal_one_at_a_time(problem):
    torch.manual_seed(0)
    models = [problem.model() for _ in range(3)]
    inputs, targets = two_samples(problem)
    with torch.no_grad():
        for model in models:
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))

    def loss(parameters):
        outputs = torch.func.functional_call(models[0], parameters, (inputs,))
        return problem.loss(outputs, targets)

    stacked = {
        name: torch.stack([dict(model.named_parameters())[name].detach() for model in models])
        for name, _ in models[0].named_parameters()
    }
    together = torch.func.vmap(torch.func.grad(loss))(stacked)
    for k, model in enumerate(models):
        problem.loss(model(inputs), targets).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(together[name][k], parameter.grad)


@pytest.mark.parametrize("problem", [Digits(), LeastSquares(), MNIST(), small_supervised()])
def test_the_seed_of_torch_decides_the_start(problem):
    def start():
        torch.manual_seed(7)
        return nn.utils.parameters_to_vector(problem.model().parameters())

    assert torch.equal(start(), start())


def test_problems_can_be_built_by_name_and_fields():
    assert list(PROBLEMS) == [
        "Digits",
        "LeastSquares",
        "MNIST",
        "FashionMNIST",
        "CIFAR10",
        "CIFAR100",
        "LIBSVM",
        "CharacterText",
    ]
    for problem in PROBLEMS.values():
        assert issubclass(problem, Problem)
        assert problem() == problem()
        assert hash(problem()) == hash(problem())
        fields = inspect.signature(problem).parameters
        assert problem(batch_size=3).batch_size == 3
        assert all(field.kind is field.KEYWORD_ONLY for field in fields.values())


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Digits(batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: Digits(hidden=0), "hidden must be at least 1, not 0"),
        (lambda: Digits(validation=0.0), "validation must be a fraction .* not 0.0"),
        (lambda: MNIST(validation=1.0), "validation must be a fraction .* not 1.0"),
        (lambda: MNIST(batch_size=-1), "batch_size must be at least 1, not -1"),
        (lambda: MNIST(limit=1), "limit must be at least 2 or None, not 1"),
        (lambda: MNIST(width=8), "width is a setting of the ResNets; network lenet5 has none"),
        (lambda: FashionMNIST(network="resnet8-gn", width=0), "width must be at least 1, not 0"),
        (lambda: CIFAR10(batches=6), "batches must be from 1 to 5, not 6"),
        (lambda: CIFAR100(limit=0), "limit must be at least 2 or None, not 0"),
        (lambda: LIBSVM(test="b"), "test b needs a train file to go with"),
        (lambda: LIBSVM(train="a", data_dir="d"), "data_dir d is for the data sets by name, and"),
        (lambda: LIBSVM(features=5), "a9a has 123 features: leave features out"),
        (lambda: LIBSVM(train="a", features=0), "features must be at least 1, not 0"),
        (lambda: CharacterText(length=0), "length must be at least 1, not 0"),
        (lambda: CharacterText(evaluated=0), "evaluated must be at least 1, not 0"),
        (lambda: CharacterText(width=6), "of a transformer must be a multiple of 4, not 6"),
        (lambda: CharacterText(text="t", data_dir="d"), "data_dir d is for Tiny Shakespeare, and"),
        (lambda: small_supervised(batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: small_supervised(validation=2.0), "validation must be a fraction .* not 2.0"),
        (lambda: LeastSquares(batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: LeastSquares(dimension=0), "dimension and samples .* not 0 and 200"),
        (lambda: LeastSquares(samples=0), "dimension and samples .* not 20 and 0"),
        (lambda: LeastSquares(condition=0.5), "condition must be at least 1 .* not 0.5"),
        (lambda: LeastSquares(condition=float("nan")), "condition must be .* not nan"),
        (lambda: LeastSquares(dimension=1), "set condition to 1, not 10.0"),
        (lambda: LeastSquares(noise=-1.0), "noise must be finite and not negative, not -1.0"),
        (lambda: LeastSquares(seed=-1), "seed must not be negative, not -1"),
        (lambda: Split(torch.zeros(2), torch.zeros(3)), "2 inputs, 3 targets"),
        (lambda: hold_out(Split(torch.zeros(1), torch.zeros(1)), 0.5), "two samples .* not of 1"),
    ],
)
def test_fields_out_of_range(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_equal_problems_share_their_data_and_seeds_change_it():
    assert LeastSquares().data().train is LeastSquares().data().train
    other = LeastSquares(seed=1).data().train.inputs
    assert not torch.equal(LeastSquares().data().train.inputs, other)
    assert Digits().data() is Digits(batch_size=3).data()


@settings(deadline=None)
@given(
    targets=st.lists(st.integers(0, 4), min_size=2, max_size=80),
    fraction=st.floats(0.01, 0.99),
)
def test_held_out_parts_are_disjoint_stable_and_stratified(targets, fraction):
    whole = Split(torch.arange(len(targets)), torch.tensor(targets))
    kept, held = hold_out(whole, fraction)
    again, _ = hold_out(whole, fraction)
    assert torch.equal(kept.inputs, again.inputs)
    assert sorted(kept.inputs.tolist() + held.inputs.tolist()) == list(range(len(targets)))
    for part in (kept, held):
        assert len(part) >= 1
        assert part.inputs.tolist() == sorted(part.inputs.tolist())
        assert torch.equal(part.targets, whole.targets[part.inputs])
    share = len(held) / len(targets)
    assert abs(share - fraction) <= 1 / len(targets)
    for label in set(targets):
        expected = targets.count(label) * share
        assert abs((held.targets == label).sum().item() - expected) <= 1


def test_what_has_no_classes_is_held_out_at_even_distances():
    split = Split(torch.arange(10), torch.linspace(5, 3, 10))
    assert hold_out(split, 0.2)[1].inputs.tolist() == [2, 7]


def test_digits_are_those_that_scikit_learn_loads():
    from sklearn.datasets import load_digits

    theirs: Any = load_digits()
    pixels, classes = read_digits()
    assert np.array_equal(pixels, theirs.data)
    assert np.array_equal(classes, theirs.target)


def test_digits_parts_hold_every_image_once_and_every_class_alike():
    data = Digits().data()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1150, 288, 359]
    inputs = torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs])
    targets = torch.cat([data.train.targets, data.validation.targets, data.test.targets])
    assert inputs.dtype == torch.float32
    assert inputs.min() == 0
    assert inputs.max() == 1
    assert len(inputs.unique(dim=0)) == 1797
    assert targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert set(data.test.targets.bincount().tolist()) <= {35, 36, 37}


def test_the_test_part_does_not_depend_on_the_validation_part():
    assert torch.equal(Digits().data().test.inputs, Digits(validation=0.5).data().test.inputs)
    assert len(Digits(validation=0.5).data().validation) == 719


def test_digits_are_learnt_by_plain_sgd():
    problem = Digits(hidden=32, batch_size=16)
    data = problem.data()
    torch.manual_seed(0)
    model = problem.model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 65 * 32 + 33 * 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    batches = Batches(torch.arange(len(data.train)), problem.batch_size, seed=0, rank=0)
    for step in range(10 * batches.per_epoch):
        minibatch = data.train.take(batches.indices(step))
        optimizer.zero_grad()
        problem.loss(model(minibatch.inputs), minibatch.targets).backward()
        optimizer.step()
    metrics = problem.evaluate(model(data.test.inputs), data.test.targets)
    assert metrics["accuracy"] > 0.93
    assert metrics["loss"] < 0.25


def test_classifiers_report_mean_loss_and_accuracy():
    outputs = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 0.0], [3.0, 0.0]])
    targets = torch.tensor([1, 0, 0, 0])
    near, far = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    loss = pytest.approx((near + far + 2 * np.log1p(np.exp(-3))) / 4)
    assert Digits().evaluate(outputs, targets) == {"loss": loss, "accuracy": 0.75}


def test_supervised_uses_what_it_was_given():
    problem = small_supervised(validation=0.25)
    data = problem.data()
    assert data.test is problem.test
    assert (len(data.train), len(data.validation)) == (15, 5)
    assert problem.data() is data
    assert isinstance(problem.model(), nn.Linear)
    outputs = torch.eye(3)
    metrics = problem.evaluate(outputs, torch.tensor([0, 1, 1]))
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["loss"] == pytest.approx(F.cross_entropy(outputs, torch.tensor([0, 1, 1])))


def test_supervised_regression_has_no_accuracy():
    split = Split(torch.zeros(10, 2), torch.linspace(0, 1, 10).reshape(10, 1))
    problem = small_supervised(train=split, test=split, loss_function=F.mse_loss)
    assert problem.evaluate(torch.zeros(2, 1), torch.ones(2, 1)) == {"loss": 1.0}


@pytest.mark.parametrize(
    ("outputs", "targets", "beyond"),
    [
        (torch.zeros(2, 10), torch.tensor([3, 12, 9]), 12),
        (torch.zeros(2, 10), torch.tensor([0, 9]), None),
        (torch.zeros(2, 10), torch.tensor([0, -1]), -1),
        (torch.zeros(2, 10), torch.tensor([0, -100]), None),  # left out of the loss
        (torch.zeros(2, 5, 7), torch.full((3, 7), 5), 5),
        (torch.zeros(2, 1), torch.tensor([3, 4]), None),  # no classes: a regression
        (torch.zeros(2), torch.tensor([0, 1]), None),
        (torch.zeros(2, 10), torch.tensor([3.0, 12.0]), None),
    ],
)
def test_a_class_beyond_the_outputs_is_found(outputs, targets, beyond):
    assert class_beyond(outputs, targets) == beyond
