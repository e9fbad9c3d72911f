"""The registry of methods: one file here and one line below for each."""

from __future__ import annotations

from ..method import Method
from .ad_psgd import ADPSGD
from .all_reduce import AllReduceSGD, RingAllReduceSGD
from .async_local_sgd import AsyncLocalSGD
from .async_sgd import AsyncSGD
from .bmuf import BMUF
from .d_psgd import DPSGD
from .dc_asgd import AdaptiveDelayCompensatedSGD, DelayCompensatedSGD
from .diloco import DiLoCo
from .dispatched_async_sgd import DispatchedAsyncSGD
from .downpour import Downpour
from .easgd import ElasticAveragingSGD
from .hierarchical_local_sgd import HierarchicalLocalSGD
from .hogwild import Hogwild
from .local_sgd import LocalSGD
from .post_local_sgd import PostLocalSGD
from .sgd import SGD
from .sgp import StochasticGradientPush
from .slowmo import SlowMo
from .sparse_async_sgd import SparseAsyncSGD
from .streaming_diloco import StreamingDiLoCo
from .sync_sgd import SyncSGD

METHODS: dict[str, type[Method]] = {
    method.__name__: method
    for method in (
        SGD,
        AllReduceSGD,
        RingAllReduceSGD,
        SyncSGD,
        AsyncSGD,
        Downpour,
        SparseAsyncSGD,
        DispatchedAsyncSGD,
        DelayCompensatedSGD,
        AdaptiveDelayCompensatedSGD,
        Hogwild,
        DPSGD,
        ADPSGD,
        StochasticGradientPush,
        LocalSGD,
        PostLocalSGD,
        HierarchicalLocalSGD,
        SlowMo,
        BMUF,
        DiLoCo,
        StreamingDiLoCo,
        ElasticAveragingSGD,
        AsyncLocalSGD,
    )
}

__all__ = ["METHODS", *METHODS]  # pyright: ignore[reportUnsupportedDunderAll]
