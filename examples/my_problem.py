"""A model and data of your own, as a problem.

offbeat simulate --problem examples/my_problem.py:spirals --method ADPSGD
offbeat run --problem examples/my_problem.py:spirals --problem.noise 0.1 --method AsyncSGD
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offbeat.problems import Problem, Split, Supervised


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 64)
        self.logits = nn.Linear(64, 3)

    def forward(self, points: Tensor) -> Tensor:
        return self.logits(self.hidden(points).relu())


def arms(samples: int, noise: float, seed: int) -> Split:
    """Points (samples, 2) on three arms of a spiral, and the number of the arm."""
    generator = torch.Generator().manual_seed(seed)
    arm = torch.arange(samples) % 3
    radius = torch.rand(samples, generator=generator)
    angle = 4 * radius + arm * 2 * torch.pi / 3
    points = torch.stack([angle.cos(), angle.sin()], dim=1) * radius[:, None]
    return Split(points + noise * torch.randn(samples, 2, generator=generator), arm)


def spirals(noise: float = 0.02, batch_size: int = 16) -> Problem:
    train, test = arms(3000, noise, seed=0), arms(600, noise, seed=1)
    return Supervised(
        model_factory=Network,
        train=train,
        test=test,
        loss_function=F.cross_entropy,
        batch_size=batch_size,
    )
