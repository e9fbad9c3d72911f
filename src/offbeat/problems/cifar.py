"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32x32 pixels each, in the binary version.

A file is records of one label (CIFAR-10) or a coarse and a fine one (CIFAR-100), a byte each, and
3,072 bytes of pixels: a red, a green and a blue plane. Source: Krizhevsky, "Learning Multiple
Layers of Features from Tiny Images" (2009), and https://www.cs.toronto.edu/~kriz/cifar.html.

The archives have a published SHA-256 (TensorFlow Datasets; the data sets' own page has the MD5),
which is checked. Members are read out of an archive and never unpacked to disk. A folder of
unpacked files counts as well; of those no checksum is published, so their size and labels are
checked instead.
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from offbeat.models.images import ImageNetwork
from offbeat.models.standardize import Standardize
from offbeat.problems.fetch import PublishedFile, folders_of, obtain, present
from offbeat.problems.images import ImageFiles, Images, check_labels
from offbeat.problems.problem import DataError, Split, Summary

SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class CIFARSet:
    """How a data set of this kind is published.

    Args:
        name: its folder in the cache, and in errors.
        archive: the published archive.
        folder: of the files, in the archive and when unpacked.
        train: names of the training files and the records of each.
        test: name of the test file and its records.
        labels: how many values each byte of label has; the last one is the class.
    """

    name: str
    archive: PublishedFile
    folder: str
    train: tuple[tuple[str, int], ...]
    test: tuple[str, int]
    labels: tuple[int, ...]

    @property
    def subfolders(self) -> tuple[str, ...]:
        """Where the files or the archive may lie in a given folder."""
        return (".", self.folder, self.name)


CIFAR10_SET = CIFARSet(
    name="cifar-10",
    archive=PublishedFile(
        name="cifar-10-binary.tar.gz",
        urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    folder="cifar-10-batches-bin",
    train=tuple((f"data_batch_{k}.bin", 10_000) for k in range(1, 6)),
    test=("test_batch.bin", 10_000),
    labels=(10,),
)

CIFAR100_SET = CIFARSet(
    name="cifar-100",
    archive=PublishedFile(
        name="cifar-100-binary.tar.gz",
        urls=("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    folder="cifar-100-binary",
    train=(("train.bin", 50_000),),
    test=("test.bin", 10_000),
    labels=(20, 100),
)


@dataclass(frozen=True, kw_only=True)
class CIFARImages(Images):
    """Images of a CIFAR data set; inputs are bytes (N, 3, 32, 32), which the model scales."""

    published: ClassVar[CIFARSet]
    means: ClassVar[tuple[float, ...]]
    deviations: ClassVar[tuple[float, ...]]
    shape: ClassVar[tuple[int, int, int]] = SHAPE

    network: ImageNetwork = "course-lenet"

    def model(self) -> nn.Module:
        return nn.Sequential(Standardize(self.means, self.deviations), super().model())

    def files(self) -> "CIFARFiles":
        return CIFARFiles(
            published=self.published,
            data_dir=self.data_dir,
            limit=self.limit,
            validation=self.validation,
            batches=self.training_files,
        )

    @property
    def training_files(self) -> int:
        """How many of the training files are read, from the first on."""
        return len(self.published.train)

    def available(self) -> bool:
        return self.files().available()


@dataclass(frozen=True, kw_only=True)
class CIFAR10(CIFARImages):
    """Photographs of vehicles and animals in ten classes: 50,000 to train on, 10,000 to test.

    Inputs are bytes (N, 3, 32, 32); the model's first layer shifts and scales each channel to
    mean 0 and deviation 1 over the training images.

    Args:
        data_dir: folder with cifar-10-binary.tar.gz, or with the unpacked files, in itself, in
            cifar-10-batches-bin or in cifar-10. Without it, the folder named by OFFBEAT_DATA is
            read in the same way, then ~/.cache/offbeat/cifar-10, to which a missing archive is
            downloaded.
        network: the model.
        width: maps of a ResNet's first stage, 16 if not given; the other networks have no width.
        batch_size: samples of one minibatch.
        batches: train on the first so many of the five files of 10,000 images only.
        limit: read only so many images of those to train on, and of the test file; None for all.
        validation: fraction of the training images that is held out to choose by.

    Raises:
        ValueError: if a field is out of range.
    """

    published: ClassVar[CIFARSet] = CIFAR10_SET
    classes: ClassVar[int] = 10
    means: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    deviations: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)
    summary: ClassVar[Summary | None] = Summary(
        samples="50,000 + 10,000", inputs="3x32x32", classes="10", source="cs.toronto.edu/~kriz"
    )

    batches: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.batches <= 5:
            raise ValueError(f"batches must be from 1 to 5, not {self.batches}")

    @property
    def training_files(self) -> int:
        return self.batches


@dataclass(frozen=True, kw_only=True)
class CIFAR100(CIFARImages):
    """Photographs in a hundred classes: 50,000 to train on, 10,000 to test.

    Inputs are bytes (N, 3, 32, 32); the model's first layer shifts and scales each channel to
    mean 0 and deviation 1 over the training images. The classes are the fine ones.

    Args:
        data_dir: folder with cifar-100-binary.tar.gz, or with the unpacked files, in itself, in
            cifar-100-binary or in cifar-100. Without it, the folder named by OFFBEAT_DATA is
            read in the same way, then ~/.cache/offbeat/cifar-100, to which a missing archive is
            downloaded.
        network: the model.
        width: maps of a ResNet's first stage, 16 if not given; the other networks have no width.
        batch_size: samples of one minibatch.
        limit: read only so many images of the training file, and of the test file; None for all.
        validation: fraction of the training images that is held out to choose by.

    Raises:
        ValueError: if a field is out of range.
    """

    published: ClassVar[CIFARSet] = CIFAR100_SET
    classes: ClassVar[int] = 100
    means: ClassVar[tuple[float, ...]] = (0.5071, 0.4865, 0.4409)
    deviations: ClassVar[tuple[float, ...]] = (0.2673, 0.2564, 0.2762)
    summary: ClassVar[Summary | None] = Summary(
        samples="50,000 + 10,000", inputs="3x32x32", classes="100", source="cs.toronto.edu/~kriz"
    )


@dataclass(frozen=True, kw_only=True)
class CIFARFiles(ImageFiles):
    """The files of a data set, and how much of them is read.

    Args:
        batches: how many of the training files, from the first on.
    """

    published: CIFARSet
    batches: int

    def read(self) -> tuple[Split, Split]:
        unpacked = self._unpacked()
        if unpacked is not None:
            self._require_all(unpacked)
        archive = None if unpacked is not None else self._archive()
        parts: list[Split] = []
        for name, records in (*self._train, self.published.test):
            if unpacked is not None:
                path = unpacked / name
                content = path.read_bytes()
            else:
                assert archive is not None
                path = archive / self.published.folder / name
                content = read_member(archive, f"{self.published.folder}/{name}")
            parts.append(parse(content, records, self.published.labels, path))
        *batches, test = parts
        images = torch.cat([batch.inputs for batch in batches])
        labels = torch.cat([batch.targets for batch in batches])
        limit = self.limit
        return Split(images[:limit], labels[:limit]), Split(
            test.inputs[:limit], test.targets[:limit]
        )

    def prepared(self, split: Split) -> Split:
        return Split(split.inputs, split.targets.to(torch.int64))

    def available(self) -> bool:
        """Whether all files, or the archive, are there."""
        unpacked = self._unpacked()
        if unpacked is not None:
            return not self._lacking(unpacked)
        return present([self.published.archive], self._folders())

    @property
    def _train(self) -> tuple[tuple[str, int], ...]:
        return self.published.train[: self.batches]

    def _folders(self) -> list[Path]:
        published = self.published
        return folders_of(published.name, self.data_dir, published.subfolders)

    def _archive(self) -> Path:
        published = self.published
        return obtain(
            published.name,
            [published.archive],
            data_dir=self.data_dir,
            subfolders=published.subfolders,
        )[0]

    def _unpacked(self) -> Path | None:
        """The first folder that holds a file of the data set and no archive."""
        names = [name for name, _ in (*self.published.train, self.published.test)]
        for folder in self._folders():
            if (folder / self.published.archive.name).is_file():
                return None
            if any((folder / name).is_file() for name in names):
                return folder
        return None

    def _lacking(self, folder: Path) -> list[str]:
        names = [name for name, _ in (*self._train, self.published.test)]
        return [name for name in names if not (folder / name).is_file()]

    def _require_all(self, folder: Path) -> None:
        lacking = self._lacking(folder)
        if not lacking:
            return
        here = [(folder / name).is_file() for name, _ in self._train]
        first = here.index(False) if False in here else 0
        less = (
            f"set batches to {first}, or " if first and lacking[0] != self.published.test[0] else ""
        )
        archive = self.published.archive
        raise DataError(
            f"{self.published.name} in {folder} lacks {', '.join(lacking)}: {less}get "
            f"{archive.wanted} from {archive.urls[0]}"
        )


def parse(content: bytes, records: int, labels: tuple[int, ...], path: Path) -> Split:
    """Bytes of the images (N, 3, 32, 32) and classes (N,) in the bytes of a file.

    Args:
        content: of the file.
        records: how many there must be.
        labels: how many values each byte of label has; the last one is the class.
        path: of the file, for errors.

    Raises:
        DataError: if the size is another or a label is out of range.
    """
    size = len(labels) + _PIXELS
    if len(content) != records * size:
        what = "truncated" if len(content) < records * size else "too long"
        raise DataError(
            f"{path} is {what}: {len(content)} bytes, {records * size} expected for {records:,} "
            f"records of {size} bytes"
        )
    # A bytearray, because torch wants memory that may be written.
    rows: Tensor = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(records, size)
    for column, classes in enumerate(labels):
        check_labels(rows[:, column], classes, path)
    return Split(rows[:, len(labels) :].reshape(-1, *SHAPE), rows[:, len(labels) - 1].clone())


def read_member(archive: Path, name: str) -> bytes:
    """The bytes of one regular file in a tar archive.

    Raises:
        DataError: if the archive is damaged or has no such file.
    """
    try:
        with tarfile.open(archive) as tar:
            member = tar.getmember(name)
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                raise DataError(f"{archive}: {name} is no regular file")
            return content.read()
    except KeyError:
        raise DataError(f"{archive} has no {name}") from None
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{archive} cannot be read: {error}") from error
