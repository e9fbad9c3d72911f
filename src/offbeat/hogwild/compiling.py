"""Compiled functions, and where their machine code is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config as _config

# Its settings have no annotations.
config: Any = _config

KEPT = Path.home() / ".cache" / "offbeat" / "compiled"
"""Machine code that was compiled before; NUMBA_CACHE_DIR names another folder."""
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}
"""Sums may be reordered, so that they use vector registers; infinities and NaN stay what they are,
for they tell that a run diverged."""


def compiled(function: Callable[..., Any]) -> Any:
    """`function` as machine code that runs without Python's lock, compiled when first called.

    The code is kept between processes. numba asks only whether the function's own file has
    changed, and code of other files is part of it, so what is kept is kept by the contents of the
    whole package.
    """
    before = config.CACHE_DIR
    config.CACHE_DIR = before or str(KEPT / _digest())
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=FASTMATH)(function)
    except RuntimeError:
        # No folder can be written to: every process compiles for itself.
        return numba.njit(nogil=True, error_model="numpy", fastmath=FASTMATH)(function)
    finally:
        config.CACHE_DIR = before


def inlined(function: Callable[..., Any]) -> Any:
    """`function` as a part of each compiled one that calls it.

    To hand a tuple of arrays over takes as long as a hundred additions.
    """
    return numba.njit(inline="always")(function)


def _digest() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
