"""The registry of methods: one file here and one line below for each."""

from __future__ import annotations

from ..method import Method
from .ad_psgd import ADPSGD
from .all_reduce import AllReduceSGD, RingAllReduceSGD
from .async_sgd import AsyncSGD
from .choco_sgd import ChocoSGD
from .compressed_all_reduce import CompressedAllReduceSGD
from .d_psgd import DPSGD
from .dc_asgd import AdaptiveDelayCompensatedSGD, DelayCompensatedSGD
from .diloco import StreamingDiLoCo
from .dispatched_async_sgd import DispatchedAsyncSGD
from .hogwild import Hogwild
from .local_sgd import LocalSGD
from .post_local_sgd import PostLocalSGD
from .power_sgd import PowerSGD
from .sgd import SGD
from .sgp import StochasticGradientPush
from .slowmo import SlowMo
from .sparse_async_sgd import SparseAsyncSGD
from .sync_sgd import SyncSGD

METHODS: dict[str, type[Method]] = {
    method.__name__: method
    for method in (
        SGD,
        AllReduceSGD,
        RingAllReduceSGD,
        CompressedAllReduceSGD,
        PowerSGD,
        SyncSGD,
        AsyncSGD,
        SparseAsyncSGD,
        DispatchedAsyncSGD,
        DelayCompensatedSGD,
        AdaptiveDelayCompensatedSGD,
        Hogwild,
        DPSGD,
        ADPSGD,
        StochasticGradientPush,
        ChocoSGD,
        LocalSGD,
        PostLocalSGD,
        SlowMo,
        StreamingDiLoCo,
    )
}

__all__ = ["METHODS", *METHODS]  # pyright: ignore[reportUnsupportedDunderAll]
