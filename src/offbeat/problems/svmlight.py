"""The text format of SVMlight and LIBSVM, with errors that name the line."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offbeat.problems.problem import DataError, Split

_MOST_FEATURES = 1 << 24
"""Indices are held as float32, which is exact up to here."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseRows:
    """Sparse samples.

    Args:
        matrix: scipy's CSR matrix (N, features).
        classes: of each sample, 0 for the smaller label and 1 for the larger (N,).
        labels: the smaller and the larger label as they are in the file.
    """

    matrix: Any
    classes: Any
    labels: tuple[float, float]

    @property
    def features(self) -> int:
        return int(self.matrix.shape[1])


def read_svmlight(
    path: Path,
    features: int | None = None,
    labels: tuple[float, float] | None = None,
    *,
    empty: bool = True,
) -> SparseRows:
    """Read a file, which is unpacked first if its name ends in .gz or .bz2.

    Args:
        path: of the file.
        features: the largest index that there may be; None for the largest that there is.
        labels: the two that there may be; None for the two that there are.
        empty: whether there may be samples without any feature.

    Raises:
        DataError: naming the line, if the file is damaged or says something else.
    """
    # Here, because it takes a second to import and most problems do without.
    from sklearn.datasets import load_svmlight_file

    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        loader: Any = load_svmlight_file  # whose own annotations refuse a false `zero_based`
        matrix, targets = loader(str(path), n_features=features, dtype=np.float64, zero_based=False)
    except (ValueError, OSError, EOFError, OverflowError) as error:
        reason = " ".join(str(error).split())
        fault = _first_fault(path, features, labels, empty)
        raise DataError(fault or f"{path}: {reason}") from error
    found: list[float] = np.unique(targets).tolist()
    if labels is None and len(found) == 2:
        labels = (found[0], found[1])
    sound = (
        labels is not None
        and np.isfinite(labels).all()
        and set(found) <= set(labels)
        and np.isfinite(matrix.data).all()
        and matrix.shape[1] <= _MOST_FEATURES
        and (empty or bool(np.diff(matrix.indptr).all()))
    )
    if not sound or labels is None:
        fault = _first_fault(path, features, labels, empty)
        raise DataError(fault or f"{path} has {_count(found)}, and two classes are wanted")
    return SparseRows(matrix=matrix, classes=(targets == labels[1]).astype(np.int64), labels=labels)


def pack(rows: SparseRows) -> Split:
    """Inputs (N, m, 2) float32 of index and value, m being that of the fullest sample.

    A shorter sample is filled up with its own last index and the value 0, so that its gradient
    names no other feature than its own; a sample without any with index 0.
    """
    matrix = rows.matrix
    lengths = np.diff(matrix.indptr)
    most = max(int(lengths.max()), 1)
    places = np.arange(most)
    last = np.maximum(lengths - 1, 0)[:, None]
    where = np.minimum(places, last) + matrix.indptr[:-1, None]
    where = np.minimum(where, max(matrix.nnz - 1, 0))
    inside = places < lengths[:, None]
    packed = np.zeros((len(lengths), most, 2), dtype=np.float32)
    if matrix.nnz:
        packed[..., 0] = np.where(lengths[:, None] > 0, matrix.indices[where], 0)
        packed[..., 1] = np.where(inside, matrix.data[where], 0)
    return Split(torch.from_numpy(packed), torch.from_numpy(rows.classes))


def _first_fault(
    path: Path, features: int | None, labels: tuple[float, float] | None, empty: bool
) -> str | None:
    """What is wrong with the first line that is, for the library does not say which."""
    import bz2
    import gzip

    openers = {".gz": gzip.open, ".bz2": bz2.open}
    most = _MOST_FEATURES if features is None else features
    allowed = list(labels or ())
    try:
        with openers.get(path.suffix, open)(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                words = line.split(b"#")[0].split()
                fault = _fault(words, most, allowed, labels is None)
                if not fault and len(words) == 1 and not empty:
                    fault = "a sample without any feature"
                if fault:
                    return f"{path}, line {number}: {fault}"
    except (OSError, EOFError) as error:
        return f"{path} cannot be read: {error}"
    return None


def _fault(words: list[bytes], most: int, labels: list[float], collect: bool) -> str | None:
    """What is wrong with the words of a line; `labels` grows to two if they are collected."""
    if not words:
        return None
    try:
        label = float(words[0])
    except ValueError:
        return f"{_text(words[0])} is no label: a line starts with a number"
    if not math.isfinite(label):
        return f"label {label:g} is not finite"
    if collect and label not in labels and len(labels) < 2:
        labels.append(label)
    if label not in labels:
        return f"label {label:g} is neither {labels[0]:g} nor {labels[1]:g}: two classes are wanted"
    before = 0
    for word in words[1:]:
        try:
            index_text, value_text = word.split(b":")
            index, value = int(index_text), float(value_text)
        except ValueError:
            return f"{_text(word)} is no index:value"
        if index < 1:
            return f"index {index} is below 1"
        if index <= before:
            order = "is repeated" if index == before else f"comes after {before}"
            return f"index {index} {order}: indices must increase"
        if index > most:
            return f"index {index} is beyond the {most} features"
        if not math.isfinite(value):
            return f"{_text(word)} has no finite value"
        before = index
    return None


def _text(word: bytes) -> str:
    return repr(word[:40].decode(errors="backslashreplace"))


def _count(labels: list[float]) -> str:
    if not labels:
        return "no samples"
    return f"one label only, {labels[0]:g}"
