"""Problems: what is trained, on which samples, and how it is judged."""

from offbeat.problems.classification import Classification
from offbeat.problems.digits import Digits
from offbeat.problems.least_squares import LeastSquares
from offbeat.problems.mnist import MNIST
from offbeat.problems.partition import IID, Batches, Partition, shard
from offbeat.problems.problem import Data, DataError, Problem, Split
from offbeat.problems.supervised import Supervised

PROBLEMS: dict[str, type[Problem]] = {
    problem.__name__: problem for problem in (Digits, LeastSquares, MNIST)
}
"""The problems that a file or a command line can name. `Supervised` is built in Python only."""

__all__ = [
    "IID",
    "MNIST",
    "PROBLEMS",
    "Batches",
    "Classification",
    "Data",
    "DataError",
    "Digits",
    "LeastSquares",
    "Partition",
    "Problem",
    "Split",
    "Supervised",
    "shard",
]
