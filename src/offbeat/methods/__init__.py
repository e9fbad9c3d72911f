"""The registry of methods: one file here and one line below for each."""

from __future__ import annotations

from ..method import Method
from .ad_psgd import ADPSGD
from .all_reduce import AllReduceSGD, RingAllReduceSGD
from .async_sgd import AsyncSGD
from .dc_asgd import DelayCompensatedSGD
from .diloco import StreamingDiLoCo
from .local_sgd import LocalSGD
from .sgd import SGD
from .sgp import StochasticGradientPush
from .slowmo import SlowMo

METHODS: dict[str, type[Method]] = {
    method.__name__: method
    for method in (
        SGD,
        AllReduceSGD,
        RingAllReduceSGD,
        AsyncSGD,
        DelayCompensatedSGD,
        ADPSGD,
        StochasticGradientPush,
        LocalSGD,
        SlowMo,
        StreamingDiLoCo,
    )
}

__all__ = ["METHODS", *METHODS]  # pyright: ignore[reportUnsupportedDunderAll]
