"""What classifiers share: the cross-entropy loss and the accuracy."""

import torch
import torch.nn.functional as F
from torch import Tensor

from offbeat.problems.problem import Problem


class Classification(Problem):
    """Outputs are logits (N, classes), targets class numbers (N,); the loss is cross-entropy."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets)

    def evaluate(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        with torch.no_grad():
            loss = self.loss(outputs, targets).item()
        return {"loss": loss, "accuracy": accuracy(outputs, targets)}


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The fraction of targets (N, ...) that have the largest of the outputs (N, classes, ...)."""
    return (outputs.argmax(1) == targets).double().mean().item()


IGNORED = -100
"""The target that `F.cross_entropy` leaves out of the loss unless told otherwise."""


def class_beyond(outputs: Tensor, targets: Tensor) -> int | None:
    """A class among all `targets` (N, ...) that is no output of a model of classes, or None.

    Outputs (b, classes, ...) are those of classes where targets are integers of one dimension
    less and there are two outputs or more.
    """
    integers = not (targets.is_floating_point() or targets.is_complex())
    fits = outputs.ndim == targets.ndim + 1 and outputs.shape[2:] == targets.shape[1:]
    if not (integers and fits) or targets.numel() == 0 or outputs.shape[1] < 2:
        return None
    wrong = targets[((targets < 0) & (targets != IGNORED)) | (targets >= outputs.shape[1])]
    return int(wrong[0]) if len(wrong) else None
