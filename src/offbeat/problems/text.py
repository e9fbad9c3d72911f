"""Guessing the next character of a text."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from offbeat.models.sequence import CharacterGRU, CharacterTransformer, check_heads
from offbeat.problems.classification import Classification
from offbeat.problems.fetch import PublishedFile, folders_of, obtain, present
from offbeat.problems.holdout import check_fraction
from offbeat.problems.problem import Data, DataError, Split, Summary

TEST_FRACTION = 0.1

TINY_SHAKESPEARE = PublishedFile(
    name="input.txt",
    urls=(
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ),
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
TINY_SHAKESPEARE_CHARACTERS = 65
SUBFOLDERS = ("tinyshakespeare", ".")


@dataclass(frozen=True, kw_only=True)
class CharacterText(Classification):
    """The next character of a text from those before it: Tiny Shakespeare, or a text of your own.

    Inputs are sequences (N, length) of character numbers, targets (N, length) the number of each
    next one. The last tenth of the text is the test part, what comes before it the validation
    part. Loss and accuracy are those of a character. Characters are numbered by their Unicode
    order in the whole text. Source: Karpathy, "The Unreasonable Effectiveness of Recurrent Neural
    Networks" (2015).

    Args:
        text: a text file of your own, UTF-8; Tiny Shakespeare if not given.
        data_dir: folder with input.txt of Tiny Shakespeare, in itself or in tinyshakespeare.
            Without it, the folder named by OFFBEAT_DATA is read in the same way, then
            ~/.cache/offbeat/tinyshakespeare, to which a missing file is downloaded.
        length: characters of one sample; samples to train on do not overlap.
        network: the model.
        width: of the model's embedding and its layers.
        layers: of the model.
        batch_size: samples of one minibatch.
        validation: fraction of what is not test that is held out from training to choose by.
        evaluated: validate and test with so many samples, evenly spaced over their part, where it
            has more; None for all.

    Raises:
        ValueError: if a field is out of range, or does not go with the others.
    """

    summary: ClassVar[Summary | None] = Summary(
        samples="1,003,854 + 111,540 characters",
        inputs="64 characters",
        classes="65",
        source="karpathy/char-rnn",
    )

    text: str | None = None
    data_dir: str | None = None
    length: int = 64
    network: Literal["transformer", "gru"] = "transformer"
    width: int = 64
    layers: int = 2
    batch_size: int = 16
    validation: float = 0.1
    evaluated: int | None = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(self.validation)
        for name in ("length", "width", "layers", "evaluated"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.network == "transformer":
            check_heads(self.width)
        if self.text is not None and self.data_dir is not None:
            raise ValueError(
                f"data_dir {self.data_dir} is for Tiny Shakespeare, and text names another file: "
                "give one of the two"
            )

    def model(self) -> nn.Module:
        symbols = TINY_SHAKESPEARE_CHARACTERS
        if self.text is not None:
            symbols = len(_read(self.text, None)[0])
        if self.network == "gru":
            return CharacterGRU(symbols, width=self.width, layers=self.layers)
        return CharacterTransformer(
            symbols, length=self.length, width=self.width, layers=self.layers
        )

    def data(self) -> Data:
        return _divide(self.text, self.data_dir, self.length, self.validation, self.evaluated)

    def available(self) -> bool:
        folders = folders_of("tinyshakespeare", self.data_dir, SUBFOLDERS)
        return self.text is not None or present([TINY_SHAKESPEARE], folders)


@lru_cache(maxsize=4)
def _read(text: str | None, data_dir: str | None) -> tuple[str, Tensor]:
    """The characters in order, and the text as their numbers (n,)."""
    if text is None:
        [path] = obtain(
            "tinyshakespeare", [TINY_SHAKESPEARE], data_dir=data_dir, subfolders=SUBFOLDERS
        )
    else:
        path = Path(text).expanduser()
    try:
        content = path.read_bytes().decode()
    except OSError as error:
        raise DataError(f"cannot read text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    points = np.frombuffer(content.encode("utf-32-le"), dtype="<u4")
    alphabet, numbers = np.unique(points, return_inverse=True)
    return "".join(map(chr, alphabet.tolist())), torch.from_numpy(numbers.astype(np.int64))


@lru_cache(maxsize=4)
def _divide(
    text: str | None, data_dir: str | None, length: int, validation: float, evaluated: int | None
) -> Data:
    numbers = _read(text, data_dir)[1]
    test = round(TEST_FRACTION * len(numbers))
    held = round(validation * (len(numbers) - test))
    parts = numbers.split([len(numbers) - test - held, held, test])
    if min(map(len, parts)) <= length:
        raise DataError(
            f"{text or 'Tiny Shakespeare'} has {len(numbers)} characters, "
            f"{min(map(len, parts))} of them in its smallest part, too few for a sample of "
            f"{length} and the next: use a shorter length or a longer text"
        )
    train, kept, tested = (windows(part, length) for part in parts)
    return Data(train=train, validation=_thinned(kept, evaluated), test=_thinned(tested, evaluated))


def windows(numbers: Tensor, length: int) -> Split:
    """Consecutive sequences (N, length) of numbers (n,), each with its next ones as targets."""
    count = (len(numbers) - 1) // length
    inputs, targets = numbers[: count * length], numbers[1 : count * length + 1]
    return Split(inputs.view(count, length), targets.view(count, length))


def _thinned(split: Split, most: int | None) -> Split:
    if most is None or len(split) <= most:
        return split
    return split.take(torch.arange(most) * len(split) // most)
