"""The residual networks of He et al. for small images."""

import math
from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["group", "batch"]
GROUPS = 8
"""Of a group norm, or as many as divide its channels."""


class ResNet(nn.Module):
    """ResNet of 6n + 2 layers: (N, channels, p, p) to logits (N, classes), p a multiple of 4.

    A convolution, three stages of n blocks with `width`, 2 `width` and 4 `width` maps, the mean
    over the image and a linear layer. Where a stage begins, the shortcut leaves out every other
    pixel and appends maps of zeros (option A). ResNet-20 of width 16 with batch norm has 269,722
    parameters for CIFAR-10, the paper's 0.27M; group norm has as many.

    Reference: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2016),
    section 4.2; group norm: Wu, He (2018).

    Args:
        depth: 6n + 2, such as 8 or 20.
        channels: of the images.
        classes: number of logits.
        width: maps of the first stage.
        norm: "group" or "batch".

    Raises:
        ValueError: if there is no network of that depth or width.
    """

    def __init__(
        self, depth: int, channels: int, classes: int, *, width: int = 16, norm: Norm = "group"
    ) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth of a ResNet must be 8, 14, 20 and so on, not {depth}")
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width}")
        normalized = _group_norm if norm == "group" else nn.BatchNorm2d
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = normalized(width)
        blocks: list[nn.Module] = []
        maps = width
        for stage in range(3):
            for k in range((depth - 2) // 6):
                stride = 2 if stage > 0 and k == 0 else 1
                blocks.append(_Block(maps, maps * stride, stride, normalized))
                maps *= stride
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(maps, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        maps = self.blocks(F.relu(self.norm(self.conv(images))))
        return self.linear(maps.mean((-2, -1)))


class _Block(nn.Module):
    def __init__(
        self, before: int, after: int, stride: int, normalized: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = normalized(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = normalized(after)
        self.stride = stride
        self.appended = after - before

    def forward(self, maps: Tensor) -> Tensor:
        residual = F.relu(self.norm1(self.conv1(maps)))
        residual = self.norm2(self.conv2(residual))
        shortcut = maps
        if self.stride > 1:
            shortcut = maps[..., :: self.stride, :: self.stride]
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.appended))
        return F.relu(residual + shortcut)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
