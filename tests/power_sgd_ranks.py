"""One rank of PyTorch's own PowerSGD: DistributedDataParallel with its hook, over gloo.

python tests/power_sgd_ranks.py RANK FOLDER: writes FOLDER/RANK.pt, the parameters (d,) after every
step of the experiment below and the errors (d,) that the hook keeps at its end.
tests/test_compressed_all_reduce.py compares them.
"""

import functools
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from offbeat.cluster import Cluster
from offbeat.experiment import Budget, Experiment
from offbeat.methods import PowerSGD
from offbeat.parameters import Layout
from offbeat.problems import Split, Supervised
from offbeat.runtime.world import World

WORKERS, STEPS = 2, 12


def network() -> nn.Module:
    """With a matrix that is compressed, one of four dimensions, and some that are not."""
    return nn.Sequential(
        nn.Conv2d(2, 12, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 3)
    ).double()


def samples(count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    return Split(draw(count, 2, 4, 4), draw(count, 3))


def experiment(rank: int, steps: int = STEPS) -> Experiment:
    return Experiment(
        problem=Supervised(
            model_factory=network,
            train=samples(60, 0),
            test=samples(10, 1),
            loss_function=nn.functional.mse_loss,
            batch_size=4,
        ),
        method=PowerSGD(rank=rank, min_compression_rate=1.0),
        optimizer=functools.partial(torch.optim.SGD, lr=0.2, momentum=0.5),
        cluster=Cluster(workers=WORKERS),
        budget=Budget(samples=steps * WORKERS * 4),
        evaluator="serial",
    )


def trained(rank: int, power_rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Parameters (steps, d) after each step, and errors (d,) after the last."""
    planned = experiment(power_rank)
    world = World(planned)
    module = world.make_module()
    layout, names = Layout.of(module), {p: n for n, p in module.named_parameters()}
    method = planned.method
    first = method.first_factors(layout, torch.zeros(1).double(), planned.seed)
    compressed = [layout.names[layout.spans.index(M.span)] for M in method.matrices(layout)]
    factor_of = dict(zip(compressed, first, strict=True))
    state = PowerSGDState(
        None,
        matrix_approximation_rank=power_rank,
        start_powerSGD_iter=2,
        min_compression_rate=1.0,
        orthogonalization_epsilon=0,
    )
    in_bucket: list[str] = []

    def hook(state, bucket):
        if state.iter == 2 and not state.q_memory_dict:
            # Begins at our Q instead of one that it draws.
            ordered = [names[p] for p in bucket.parameters()]
            in_bucket.extend(ordered)
            Qs = [factor_of[name] for name in ordered if name in factor_of]
            rows = [layout.shapes[layout.names.index(n)][0] for n in ordered if n in factor_of]
            state.q_memory_dict[0] = torch.cat([Q.reshape(-1) for Q in Qs])
            size = sum(n * Q.shape[1] for n, Q in zip(rows, Qs, strict=True))
            state.p_memory_dict[0] = torch.empty(size, dtype=torch.float64)
        return powerSGD_hook(state, bucket)

    parallel = DistributedDataParallel(module)
    parallel.register_comm_hook(state, hook)
    optimizer = planned.optimizer(module.parameters())
    train = world.data.train
    after = []
    for step in (0, 0, *range(STEPS)):
        rows = world.batches[rank].indices(step)
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(parallel(train.inputs[rows]), train.targets[rows])
        loss.backward()
        if state.iter > 2:  # The hook leaves the first two as they are, while buckets are rebuilt.
            optimizer.step()
            after.append(layout.flatten([p.detach() for p in module.parameters()]))
    sizes = [layout.sizes[layout.names.index(name)] for name in in_bucket]
    errors = dict(zip(in_bucket, state.error_dict[0].split(sizes), strict=True))
    return torch.stack(after), torch.cat([errors[name] for name in layout.names])


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORKERS
    )
    torch.save({r: trained(rank, r) for r in (1, 2, 3)}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    # Taking the interpreter down, torch now and then aborts over a thread of its own.
    os._exit(0)
