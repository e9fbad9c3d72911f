"""The first layer of networks whose inputs are the bytes of images."""

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Pixels 0..255 (N, channels, p, p) to float32 of about mean 0 and deviation 1.

    Args:
        means: of each channel over the training images, as fractions of 255.
        deviations: of each channel, as fractions of 255.
    """

    def __init__(self, means: tuple[float, ...], deviations: tuple[float, ...]) -> None:
        super().__init__()
        # Numbers and no buffers: they are the same on every device and in every run.
        self.means = means
        self.deviations = deviations

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255
        channels = zip(pixels.unbind(-3), self.means, self.deviations, strict=True)
        return torch.stack([(values - mean) / spread for values, mean, spread in channels], -3)
