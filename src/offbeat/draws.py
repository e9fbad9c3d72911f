"""Draws: random numbers whose state of some moment can be had later."""

from __future__ import annotations

import random
from typing import Any


class Draws(random.Random):
    """The numbers of `random.Random`, to the bit.

    A state has 625 numbers, and a copy of it takes longer than many a message. So one that is to be
    kept is copied when the first number is drawn, and if none is, not at all.
    """

    _kept: Any = None
    _keeps = False

    def keep(self) -> None:
        """From now on `kept` is the present state."""
        self._kept, self._keeps = None, True

    @property
    def kept(self) -> Any:
        """As of `getstate`, when `keep` was called last; the present state if it never was."""
        return self.getstate() if self._kept is None else self._kept

    # What all other methods draw by, and the one that may give a number drawn before.

    def random(self) -> float:
        if self._keeps:
            self._copy()
        return super().random()

    def getrandbits(self, k: int, /) -> int:
        if self._keeps:
            self._copy()
        return super().getrandbits(k)

    def gauss(self, mu: float = 0.0, sigma: float = 1.0) -> float:
        if self._keeps:
            self._copy()
        return super().gauss(mu, sigma)

    def _copy(self) -> None:
        self._kept, self._keeps = self.getstate(), False
