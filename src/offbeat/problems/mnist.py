"""MNIST and Fashion-MNIST: 70,000 images of 28x28 pixels each, in IDX files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from offbeat.problems.fetch import PublishedFile, folders_of, obtain, present
from offbeat.problems.idx import read_idx
from offbeat.problems.images import ImageFiles, Images, check_labels
from offbeat.problems.problem import DataError, Split, Summary

CLASSES = 10
NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


@dataclass(frozen=True, kw_only=True)
class IDXSet:
    """A data set in the four files of MNIST.

    Args:
        name: its folder in the cache, and in errors.
        files: training images and labels, test images and labels.
        subfolders: where they may lie in a given folder.
        mean: of the training pixels, as a fraction of 255.
        deviation: their standard deviation, as such a fraction.
    """

    name: str
    files: tuple[PublishedFile, ...]
    subfolders: tuple[str, ...]
    mean: float
    deviation: float


def _published(
    mirrors: Sequence[str], sums: Sequence[tuple[str, str]]
) -> tuple[PublishedFile, ...]:
    """The four files, from their SHA-256 packed and unpacked."""
    return tuple(
        PublishedFile(
            name=name,
            urls=tuple(mirror + name for mirror in mirrors),
            sha256=packed,
            unpacked_sha256=unpacked,
        )
        for name, (packed, unpacked) in zip(NAMES, sums, strict=True)
    )


MNIST_SET = IDXSet(
    name="mnist",
    files=_published(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
        (
            (
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            (
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            (
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            (
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
    ),
    subfolders=(".", "mnist", "MNIST/raw"),
    mean=0.1307,
    deviation=0.3081,
)

FASHION_MNIST_SET = IDXSet(
    name="fashion-mnist",
    files=_published(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        (
            (
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            (
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            (
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            (
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
    ),
    subfolders=(".", "fashion-mnist", "FashionMNIST/raw"),
    mean=0.2860,
    deviation=0.3530,
)


@dataclass(frozen=True, kw_only=True)
class IDXImages(Images):
    """Images of a data set in IDX files; inputs are (N, 1, 28, 28) float32."""

    published: ClassVar[IDXSet]
    shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    classes: ClassVar[int] = CLASSES

    def files(self) -> "IDXFiles":
        return IDXFiles(
            published=self.published,
            data_dir=self.data_dir,
            limit=self.limit,
            validation=self.validation,
        )

    def available(self) -> bool:
        published = self.published
        folders = folders_of(published.name, self.data_dir, published.subfolders)
        return present(published.files, folders)


@dataclass(frozen=True, kw_only=True)
class MNIST(IDXImages):
    """Handwritten digits in ten classes: 60,000 to train on, 10,000 to test.

    Inputs are (N, 1, 28, 28) float32, shifted and scaled to mean 0 and deviation 1 over the
    training images. Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".

    Args:
        data_dir: folder with the four official files, packed or not, in itself, in mnist or in
            MNIST/raw. Without it, the folder named by OFFBEAT_DATA is read in the same way, then
            ~/.cache/offbeat/mnist, to which missing files are downloaded.
        network: the model.
        width: maps of a ResNet's first stage, 16 if not given; the other networks have no width.
        batch_size: samples of one minibatch.
        limit: read only so many images of the training file, and of the test file; None for all.
        validation: fraction of the training file that is held out from training to choose by.

    Raises:
        ValueError: if a field is out of range.
    """

    published: ClassVar[IDXSet] = MNIST_SET
    summary: ClassVar[Summary | None] = Summary(
        samples="60,000 + 10,000", inputs="1x28x28", classes="10", source="ossci-datasets, LeCun"
    )


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(IDXImages):
    """Pieces of clothing in ten classes: 60,000 to train on, 10,000 to test.

    Inputs are (N, 1, 28, 28) float32, shifted and scaled to mean 0 and deviation 1 over the
    training images. Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
    Benchmarking Machine Learning Algorithms" (2017).

    Args:
        data_dir: folder with the four official files, packed or not, in itself, in fashion-mnist
            or in FashionMNIST/raw. Without it, the folder named by OFFBEAT_DATA is read in the
            same way, then ~/.cache/offbeat/fashion-mnist, to which missing files are downloaded.
        network: the model.
        width: maps of a ResNet's first stage, 16 if not given; the other networks have no width.
        batch_size: samples of one minibatch.
        limit: read only so many images of the training file, and of the test file; None for all.
        validation: fraction of the training file that is held out from training to choose by.

    Raises:
        ValueError: if a field is out of range.
    """

    published: ClassVar[IDXSet] = FASHION_MNIST_SET
    summary: ClassVar[Summary | None] = Summary(
        samples="60,000 + 10,000", inputs="1x28x28", classes="10", source="zalandoresearch"
    )


@dataclass(frozen=True, kw_only=True)
class IDXFiles(ImageFiles):
    """The four files of a data set, and how much of them is read."""

    published: IDXSet

    def read(self) -> tuple[Split, Split]:
        published = self.published
        paths = obtain(
            published.name,
            published.files,
            data_dir=self.data_dir,
            subfolders=published.subfolders,
        )
        parts: list[Split] = []
        for images_path, labels_path in (paths[:2], paths[2:]):
            images, labels = read_idx(images_path), read_idx(labels_path)
            if images.ndim != 3 or labels.shape != images.shape[:1]:
                raise DataError(
                    f"{images_path} of shape {tuple(images.shape)} and {labels_path} of shape "
                    f"{tuple(labels.shape)} are not images and their labels"
                )
            check_labels(labels, CLASSES, labels_path)
            parts.append(Split(images[: self.limit], labels[: self.limit]))
        return parts[0], parts[1]

    def prepared(self, split: Split) -> Split:
        """Bytes (N, 28, 28) and (N,) as the network wants them: (N, 1, 28, 28), int64 (N,)."""
        pixels: Tensor = split.inputs.unsqueeze(1).to(torch.float32)
        pixels.div_(255).sub_(self.published.mean).div_(self.published.deviation)
        return Split(pixels, split.targets.to(torch.int64))
