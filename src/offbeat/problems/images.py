"""What the image data sets share: their settings, their networks, and the check of labels."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from offbeat.models.images import ImageNetwork, check_width, image_network
from offbeat.problems.classification import Classification
from offbeat.problems.holdout import check_fraction, hold_out
from offbeat.problems.problem import Data, DataError, Split


@dataclass(frozen=True, kw_only=True)
class Images(Classification):
    """Images in classes, read from files; subclasses say which, and how they are read.

    Args:
        data_dir: folder with the files. Without it, the folder named by OFFBEAT_DATA is read in
            the same way, then ~/.cache/offbeat, to which missing files are downloaded.
        network: the model.
        width: maps of a ResNet's first stage, 16 if not given; the other networks have no width.
        batch_size: samples of one minibatch.
        limit: read only so many images of the training files, and of the test file; None for all.
        validation: fraction of the training images that is held out to choose by.

    Raises:
        ValueError: if a field is out of range.
    """

    shape: ClassVar[tuple[int, int, int]]
    """Channels, rows and columns of an image."""
    classes: ClassVar[int]

    data_dir: str | None = None
    network: ImageNetwork = "lenet5"
    width: int | None = None
    batch_size: int = 64
    limit: int | None = None
    validation: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.validation)
        check_width(self.network, self.width)
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit must be at least 2 or None, not {self.limit}")

    def model(self) -> nn.Module:
        return image_network(self.network, self.shape, self.classes, self.width)

    def data(self) -> Data:
        return _load(self.files())

    @abstractmethod
    def files(self) -> "ImageFiles":
        """What `data` depends on; equal ones share their data."""


@dataclass(frozen=True, kw_only=True)
class ImageFiles(ABC):
    """Which files of a data set are read, and how much of them; subclasses read them."""

    data_dir: str | None
    limit: int | None
    validation: float

    @abstractmethod
    def read(self) -> tuple[Split, Split]:
        """Bytes of the images (N, ...) and labels (N,), to train on and to test with.

        Raises:
            DataError: if a file is missing, damaged or cannot be fetched.
        """

    @abstractmethod
    def prepared(self, split: Split) -> Split:
        """The bytes as the model wants them."""

    def load(self) -> Data:
        """Read and divide the files."""
        whole, test = self.read()
        train, held = hold_out(whole, self.validation)
        return Data(
            train=self.prepared(train), validation=self.prepared(held), test=self.prepared(test)
        )


def check_labels(labels: Tensor, classes: int, path: Path) -> None:
    """Raise DataError if any of `labels` (N,) is not one of that many classes."""
    wrong = (labels >= classes).nonzero()
    if len(wrong):
        k = int(wrong[0])
        raise DataError(
            f"{path}: record {k}, counted from 0, has label {int(labels[k])}; there are {classes} "
            f"classes, 0 to {classes - 1}"
        )


# A whole data set takes some 200 MB, so few are kept.
@lru_cache(maxsize=2)
def _load(files: ImageFiles) -> Data:
    return files.load()
