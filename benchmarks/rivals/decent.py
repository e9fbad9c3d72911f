"""decent-dp: decentralized data parallel training (Wang et al., ICLR 2025), over gloo."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from common.groups import Place, Step
from common.workloads import Optimizer, RandomData, minibatches
from torch.optim import Optimizer as TorchOptimizer


@contextmanager
def decent_dp(place: Place, problem: RandomData, topology: str) -> Generator[Step]:
    """Its quickstart's loop; the optimizer steps, and averaging begins, inside `backward`."""
    from decent_dp.ddp import DecentralizedDataParallel
    from loguru import logger

    logger.disable("decent_dp")
    with place.join_gloo():
        model = DecentralizedDataParallel(
            problem.model(), optim_fn=_optimizer, topology=topology, _local_world_size=place.size
        )
        draw = minibatches(problem, place.rank)

        def step() -> None:
            inputs, targets = draw()
            loss = problem.loss(model(inputs), targets)
            model.zero_grad()
            loss.backward()

        yield step
        model.global_avg(will_revert=False)


def _optimizer(named: list[tuple[str, Any]]) -> TorchOptimizer:
    return Optimizer([parameter for _, parameter in named])
