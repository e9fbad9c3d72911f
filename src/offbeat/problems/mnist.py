"""MNIST: 70,000 handwritten digits, and LeNet-5."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from offbeat.problems.classification import Classification
from offbeat.problems.fetch import PublishedFile, obtain
from offbeat.problems.holdout import check_fraction, hold_out
from offbeat.problems.idx import read_idx
from offbeat.problems.problem import Data, Split

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
SUBFOLDERS = (".", "mnist", "MNIST/raw")

# Mean and standard deviation of the training pixels, as a fraction of 255.
_MEAN, _DEVIATION = 0.1307, 0.3081


def _published(name: str, sha256: str, unpacked_sha256: str) -> PublishedFile:
    urls = tuple(mirror + name for mirror in MIRRORS)
    return PublishedFile(name=name, urls=urls, sha256=sha256, unpacked_sha256=unpacked_sha256)


# Training images and labels, test images and labels.
FILES = (
    _published(
        "train-images-idx3-ubyte.gz",
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    _published(
        "train-labels-idx1-ubyte.gz",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    _published(
        "t10k-images-idx3-ubyte.gz",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    _published(
        "t10k-labels-idx1-ubyte.gz",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)


@dataclass(frozen=True, kw_only=True)
class MNIST(Classification):
    """Images of 28x28 pixels in ten classes: 60,000 to train on, 10,000 to test; and LeNet-5.

    Inputs are (N, 1, 28, 28) float32, shifted and scaled to mean 0 and deviation 1 over the
    training images. Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".

    Args:
        data_dir: folder with the four official files, packed or not, in itself, in mnist or in
            MNIST/raw. Without it, the folder named by OFFBEAT_DATA is read in the same way, then
            ~/.cache/offbeat/mnist, to which missing files are downloaded.
        batch_size: samples of one minibatch.
        limit: read only so many images of the training file, and of the test file; None for all.
        validation: fraction of the training file that is held out from training to choose by.

    Raises:
        ValueError: if a field is out of range.
    """

    data_dir: str | None = None
    batch_size: int = 64
    limit: int | None = None
    validation: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.validation)
        if self.limit is not None and self.limit < 2:
            raise ValueError(f"limit must be at least 2 or None, not {self.limit}")

    def model(self) -> nn.Module:
        return lenet5()

    def data(self) -> Data:
        return _load(self.data_dir, self.limit, self.validation)


def lenet5() -> nn.Sequential:
    """LeNet-5 with ReLUs and max-pooling, 61,706 parameters: (N, 1, 28, 28) to logits (N, 10).

    The layers' sizes are those of LeCun, Bottou, Bengio, Haffner (1998), figure 2. Differences, as
    is usual today: ReLU for tanh, maxima for trained averages, every map of the second convolution
    sees every map of the first, and the last layer is linear.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 6, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            linear1=nn.Linear(400, 120),
            relu3=nn.ReLU(),
            linear2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            linear3=nn.Linear(84, 10),
        )
    )


def read(
    data_dir: str | None,
    limit: int | None,
    validation: float,
    files: Sequence[PublishedFile] = FILES,
) -> Data:
    """Obtain, read and divide `files`: training images and labels, test images and labels.

    Raises:
        DataError: if a file is missing, damaged or cannot be fetched.
    """
    paths = obtain("mnist", files, data_dir=data_dir, subfolders=SUBFOLDERS)
    images, labels, test_images, test_labels = (read_idx(path)[:limit] for path in paths)
    train, held = hold_out(Split(images, labels), validation)
    return Data(
        train=_scaled(train),
        validation=_scaled(held),
        test=_scaled(Split(test_images, test_labels)),
    )


def _scaled(split: Split) -> Split:
    """Bytes (N, 28, 28) and (N,) as the network wants them: (N, 1, 28, 28) and int64 (N,)."""
    pixels: Tensor = split.inputs.unsqueeze(1).to(torch.float32)
    return Split(pixels.div_(255).sub_(_MEAN).div_(_DEVIATION), split.targets.to(torch.int64))


# The whole of MNIST takes 220 MB, so few are kept.
@lru_cache(maxsize=2)
def _load(data_dir: str | None, limit: int | None, validation: float) -> Data:
    return read(data_dir, limit, validation)
