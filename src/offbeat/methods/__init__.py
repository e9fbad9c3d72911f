"""The registry of methods: one file here and one line below for each."""

from __future__ import annotations

from ..method import Method
from .accumulated import AccumulatedAsyncSGD
from .ad_psgd import ADPSGD
from .all_reduce import AllReduceSGD, RingAllReduceSGD
from .async_local_sgd import AsyncLocalSGD
from .async_sgd import AsyncSGD
from .averaged_async import AveragedAsyncSGD
from .backup_sync import BackupSyncSGD
from .bmuf import BMUF
from .choco_sgd import ChocoSGD
from .compressed_all_reduce import CompressedAllReduceSGD
from .d_psgd import DPSGD
from .dana import DANA
from .dc_asgd import AdaptiveDelayCompensatedSGD, DelayCompensatedSGD
from .delay_adaptive import DelayAdaptiveSGD
from .diloco import DiLoCo
from .dispatched_async_sgd import DispatchedAsyncSGD
from .downpour import Downpour
from .easgd import ElasticAveragingSGD
from .gradient_tracking import GradientTracking
from .hierarchical_local_sgd import HierarchicalLocalSGD
from .hogwild import Hogwild
from .local_sgd import LocalSGD
from .noloco import NoLoCo
from .post_local_sgd import PostLocalSGD
from .power_sgd import PowerSGD
from .relay_sgd import RelaySGD
from .rennala import RennalaSGD
from .ringmaster import RingmasterSGD
from .round_robin import RoundRobinSGD
from .sgd import SGD
from .sgp import StochasticGradientPush
from .slowmo import SlowMo
from .softsync import SoftsyncSGD
from .sparse_async_sgd import SparseAsyncSGD
from .stale_synchronous import StaleSynchronousSGD
from .streaming_diloco import StreamingDiLoCo
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
        BackupSyncSGD,
        StaleSynchronousSGD,
        AsyncSGD,
        AveragedAsyncSGD,
        RoundRobinSGD,
        AccumulatedAsyncSGD,
        SoftsyncSGD,
        DelayAdaptiveSGD,
        RennalaSGD,
        RingmasterSGD,
        Downpour,
        SparseAsyncSGD,
        DispatchedAsyncSGD,
        DelayCompensatedSGD,
        AdaptiveDelayCompensatedSGD,
        DANA,
        Hogwild,
        DPSGD,
        GradientTracking,
        RelaySGD,
        ADPSGD,
        StochasticGradientPush,
        ChocoSGD,
        LocalSGD,
        PostLocalSGD,
        HierarchicalLocalSGD,
        SlowMo,
        BMUF,
        DiLoCo,
        StreamingDiLoCo,
        ElasticAveragingSGD,
        NoLoCo,
        AsyncLocalSGD,
    )
}

__all__ = ["METHODS", *METHODS]  # pyright: ignore[reportUnsupportedDunderAll]
