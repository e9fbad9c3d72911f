"""Problems: what is trained, on which samples, and how it is judged."""

from offbeat.problems.cifar import CIFAR10, CIFAR100
from offbeat.problems.classification import Classification
from offbeat.problems.digits import Digits
from offbeat.problems.least_squares import LeastSquares
from offbeat.problems.libsvm import LIBSVM
from offbeat.problems.mnist import MNIST, FashionMNIST
from offbeat.problems.partition import (
    IID,
    Batches,
    ByLabel,
    Dirichlet,
    Partition,
    shard,
    top_up,
)
from offbeat.problems.problem import Data, DataError, Problem, Split, Summary
from offbeat.problems.supervised import Supervised
from offbeat.problems.text import CharacterText

PROBLEMS: dict[str, type[Problem]] = {
    problem.__name__: problem
    for problem in (
        Digits,
        LeastSquares,
        MNIST,
        FashionMNIST,
        CIFAR10,
        CIFAR100,
        LIBSVM,
        CharacterText,
    )
}
"""The problems that a file or a command line can name. `Supervised` is built in Python only."""

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "IID",
    "LIBSVM",
    "MNIST",
    "PROBLEMS",
    "Batches",
    "ByLabel",
    "CharacterText",
    "Classification",
    "Data",
    "DataError",
    "Digits",
    "Dirichlet",
    "FashionMNIST",
    "LeastSquares",
    "Partition",
    "Problem",
    "Split",
    "Summary",
    "Supervised",
    "shard",
    "top_up",
]
