"""Numbers on their way into a page: packed arrays, and sums over bins of time."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Packed = dict[str, str]
"""Plotly's form of a typed array: its dtype, its bytes in base64, and its shape if not flat."""


def packed(values: ArrayLike, dtype: str = "f8") -> Packed:
    """Little-endian; NaN stays NaN, which JSON's numbers could not say."""
    array = np.asarray(values, dtype=np.dtype(dtype).newbyteorder("<"))
    form = {"dtype": dtype, "bdata": base64.b64encode(array.tobytes()).decode()}
    return form if array.ndim == 1 else form | {"shape": ", ".join(map(str, array.shape))}


def binned(
    starts: NDArray[Any], ends: NDArray[Any], amounts: ArrayLike, edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How much of each amount, spread evenly from its start to its end, falls between the edges.

    Args:
        starts, ends: in the unit of the edges (m,). An amount without duration is at its instant.
        amounts: (m,) or one for all.
        edges: ascending (bins + 1,). What is before the first or after the last is left out.

    Returns:
        Sums (bins,).
    """
    begins = np.asarray(starts, dtype=float)
    # A tiny duration, well below a bin, stands for none.
    least = (edges[-1] - edges[0]) * 1e-9
    lasts = np.maximum(np.asarray(ends, dtype=float), begins + least)
    rates = np.broadcast_to(np.asarray(amounts, dtype=float), begins.shape) / (lasts - begins)
    times = np.concatenate([begins, lasts])
    order = np.argsort(times, kind="stable")
    times = times[order]
    slopes = np.cumsum(np.concatenate([rates, -rates])[order])
    if not len(times):
        return np.zeros(len(edges) - 1)
    so_far = np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(times))])
    return np.maximum(np.diff(np.interp(edges, times, so_far)), 0.0)


def binned_by(
    groups: Sequence[int],
    keys: NDArray[Any],
    starts: NDArray[Any],
    ends: NDArray[Any],
    amounts: ArrayLike,
    edges: NDArray[np.float64],
) -> NDArray[np.float64]:
    """`binned` for the rows of each group by itself (groups, bins)."""
    each = np.broadcast_to(np.asarray(amounts, dtype=float), keys.shape)
    rows = [binned(starts[keys == g], ends[keys == g], each[keys == g], edges) for g in groups]
    return np.stack(rows)
