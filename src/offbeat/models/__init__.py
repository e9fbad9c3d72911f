"""Networks that the problems train: plain PyTorch modules, small enough for many workers."""

from offbeat.models.images import IMAGE_NETWORKS, ImageNetwork, image_network
from offbeat.models.lenet import course_lenet, lenet5
from offbeat.models.linear import SparseLinear
from offbeat.models.resnet import ResNet
from offbeat.models.sequence import CharacterGRU, CharacterTransformer
from offbeat.models.standardize import Standardize

__all__ = [
    "IMAGE_NETWORKS",
    "CharacterGRU",
    "CharacterTransformer",
    "ImageNetwork",
    "ResNet",
    "SparseLinear",
    "Standardize",
    "course_lenet",
    "image_network",
    "lenet5",
]
