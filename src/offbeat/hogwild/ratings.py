"""Ratings in MovieLens's formats, with errors that name the line.

u.data: `user item rating timestamp` between tabs; ratings.dat: the same between double colons;
ratings.csv: between commas, below a line of names. Source: Harper, Konstan, "The MovieLens
Datasets: History and Context", ACM TiiS 2015 (https://grouplens.org/datasets/movielens/).
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..problems.problem import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratings:
    """Known entries of a matrix.

    Args:
        row: of each entry (N,) int64, from 0.
        column: of each entry (N,) int64, from 0.
        values: of each entry (N,).
        rows: how many rows there are.
        columns: how many columns there are.
    """

    row: NDArray[np.int64]
    column: NDArray[np.int64]
    values: NDArray[np.float64]
    rows: int
    columns: int

    def take(self, chosen: NDArray[np.int64]) -> Ratings:
        """Some of the entries, of the same matrix."""
        return Ratings(
            row=self.row[chosen],
            column=self.column[chosen],
            values=self.values[chosen],
            rows=self.rows,
            columns=self.columns,
        )


def read_ratings(path: Path, least: float, most: float) -> Ratings:
    """Read a file; users become rows and items columns, in the order of their numbers.

    Args:
        path: of the file.
        least: the lowest rating that there may be.
        most: the highest.

    Raises:
        DataError: naming the line, if it does not parse, a rating is out of range, or an item has
            two ratings of a user.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    try:
        text = path.read_bytes().replace(b"::", b"\t")
        if not (text.partition(b"\n")[2] if _named(text) else text).strip():
            # NumPy would warn of it.
            raise ValueError("it has no ratings")
        table: Any = np.loadtxt(
            io.BytesIO(text),
            delimiter=_delimiter(text).decode(),
            skiprows=int(_named(text)),
            usecols=(0, 1, 2),
            ndmin=2,
        )
    except (ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(_first_fault(path, least, most) or f"{path}: {reason}") from error
    users, items, values = table.T
    # The largest number that a float still tells from the next one.
    whole = all((ids == np.floor(ids)).all() and (abs(ids) < 2**53).all() for ids in (users, items))
    inside = ((values >= least) & (values <= most)).all()
    if not (len(values) and whole and inside):
        raise DataError(_first_fault(path, least, most) or f"{path} has no ratings")
    _, row = np.unique(users, return_inverse=True)
    _, column = np.unique(items, return_inverse=True)
    rows, columns = int(row.max()) + 1, int(column.max()) + 1
    if len(np.unique(row * columns + column)) < len(row):
        raise DataError(_first_fault(path, least, most) or f"{path} has an entry twice")
    return Ratings(row=row, column=column, values=values, rows=rows, columns=columns)


def _delimiter(text: bytes) -> bytes:
    first = text.partition(b"\n")[0]
    return b"," if b"," in first else b"\t"


def _named(text: bytes) -> bool:
    """Whether the first line holds names."""
    return text[:1].isalpha()


def _first_fault(path: Path, least: float, most: float) -> str | None:
    seen: dict[tuple[int, int], int] = {}
    text = path.read_bytes().replace(b"::", b"\t")
    delimiter, named = _delimiter(text), _named(text)
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or (number == 1 and named):
            continue
        words = line.split(delimiter)
        try:
            user, item, rating = int(words[0]), int(words[1]), float(words[2])
        except (ValueError, IndexError):
            shown = line[:60].decode(errors="backslashreplace")
            return f"{path}, line {number}: {shown!r} is no user, item and rating"
        if not math.isfinite(rating) or not least <= rating <= most:
            return f"{path}, line {number}: rating {rating:g} is not from {least:g} to {most:g}"
        if (user, item) in seen:
            first = seen[user, item]
            return f"{path}, line {number}: user {user} has rated item {item} in line {first}"
        seen[user, item] = number
    return None
