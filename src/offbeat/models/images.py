"""Networks for images by name."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from offbeat.models.lenet import course_lenet, lenet5
from offbeat.models.resnet import ResNet

ImageNetwork = Literal[
    "lenet5", "course-lenet", "resnet8-gn", "resnet20-gn", "resnet8-bn", "resnet20-bn"
]

RESNET_WIDTH = 16


def image_network(
    name: ImageNetwork, shape: tuple[int, int, int], classes: int, width: int | None = None
) -> nn.Module:
    """A fresh network for images of `shape` (channels, p, p), p being 28 or 32.

    `width` is the maps of a ResNet's first stage, 16 if None.

    Raises:
        ValueError: if `width` is below 1, or is given for a network that has no such setting.
    """
    check_width(name, width)
    return IMAGE_NETWORKS[name](shape, classes, RESNET_WIDTH if width is None else width)


def check_width(name: ImageNetwork, width: int | None) -> None:
    """Raise ValueError unless that network can have that width."""
    if width is None:
        return
    if not name.startswith("resnet"):
        raise ValueError(f"width is a setting of the ResNets; network {name} has none")
    if width < 1:
        raise ValueError(f"width must be at least 1, not {width}")


def _padding(shape: tuple[int, int, int]) -> int:
    """So that images of 28x28 pixels give as many features as those of 32x32."""
    return (32 - shape[-1]) // 2


IMAGE_NETWORKS: dict[ImageNetwork, Callable[[tuple[int, int, int], int, int], nn.Module]] = {
    "lenet5": lambda shape, classes, width: lenet5(shape[0], classes, padding=_padding(shape)),
    "course-lenet": lambda shape, classes, width: course_lenet(
        shape[0], classes, padding=_padding(shape)
    ),
    "resnet8-gn": lambda shape, classes, width: ResNet(
        8, shape[0], classes, width=width, norm="group"
    ),
    "resnet20-gn": lambda shape, classes, width: ResNet(
        20, shape[0], classes, width=width, norm="group"
    ),
    "resnet8-bn": lambda shape, classes, width: ResNet(
        8, shape[0], classes, width=width, norm="batch"
    ),
    "resnet20-bn": lambda shape, classes, width: ResNet(
        20, shape[0], classes, width=width, norm="batch"
    ),
}
