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
