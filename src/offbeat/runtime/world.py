"""World: what every runtime builds from an experiment: model, shards, nodes, evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from ..experiment import Experiment
from ..method import Holder
from ..node import GradientRequest, Node, Runtime, Shard
from ..parameters import Layout
from ..problems import IID, Batches, shard
from ..run import Metrics
from .compute import EvaluationBuffer, Job
from .scheduler import RunError

EVALUATED_AT_ONCE = 512
"""Samples."""


class World:
    """Model, data and nodes of one experiment.

    Raises:
        ValueError: in one line, for whatever of the experiment cannot work.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.problem = experiment.problem
        self.data = self.problem.data().to(experiment.device)
        self.module = self.make_module()
        self.layout = Layout.of(self.module)
        if not self.layout.names:
            raise ValueError(f"{type(self.problem).__name__}: the model has no parameters")
        self.initial = torch.cat([p.detach().reshape(-1) for p in self.module.parameters()])
        self._refuse_running_statistics()
        self._check_output()
        cluster = experiment.cluster
        self.workers = range(cluster.workers)
        servers = experiment.method.server_count
        self.servers = range(cluster.workers, cluster.workers + servers)
        self.server_layouts = self.layout.split(servers) if servers else ()
        spans = self.layout.split_spans(servers) if servers else ()
        self.shards = tuple(
            Shard(i, rank, span)
            for i, (rank, span) in enumerate(zip(self.servers, spans, strict=True))
        )
        indices = shard(IID(seed=experiment.seed), self.data.train.targets.cpu(), cluster.workers)
        batch_size = self.problem.batch_size
        self.batches = [
            Batches(part, batch_size, experiment.seed, rank) for rank, part in enumerate(indices)
        ]

    def make_module(self) -> nn.Module:
        """The model as the seed decides it, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.experiment.seed)
            return self.problem.model().to(self.experiment.device)

    @property
    def hosts(self) -> list[int]:
        """The host of each node: its own, or for a colocated server that of a worker."""
        n = len(self.workers)
        colocate = self.experiment.method.colocate
        return [*self.workers, *(s - n if colocate else s for s in self.servers)]

    def host_count(self) -> int:
        return max(self.hosts) + 1

    def part(self, rank: int, whole: Tensor) -> Tensor:
        """What that node holds of the parameters (d,): all of them, or a server's shard."""
        if rank not in self.servers:
            return whole
        return whole[self.shards[rank - self.servers.start].span]

    def node(
        self,
        rank: int,
        runtime: Runtime,
        start: Tensor,
        storage: Tensor | None = None,
    ) -> Node:
        """A node that begins at the parameters `start` (d,), kept in `storage` if given."""
        layout = self.layout
        if rank in self.servers:
            layout = self.server_layouts[rank - self.servers.start]
        start = self.part(rank, start)
        parameters = torch.empty_like(start) if storage is None else storage
        parameters.copy_(start)
        return Node(
            rank=rank,
            workers=self.workers,
            servers=self.servers,
            parameters=parameters,
            layout=layout,
            runtime=runtime,
            optimizer_factory=self.make_optimizer,
            schedule=self.experiment.schedule,
            batch_size=self.problem.batch_size,
            seed=self.experiment.seed,
            shards=self.shards,
        )

    def make_optimizer(self, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        return self.experiment.optimizer([parameter for _, parameter in named])

    def job(self, rank: int, request: GradientRequest) -> Job:
        indices = request.batch
        if indices is None:
            indices = self.batches[rank].indices(request.step)
        seed = (self.experiment.seed * 1_000_003 + rank) * 1_000_003 + request.step
        return Job(request.snapshot, indices, seed & 0x7FFF_FFFF_FFFF_FFFF)

    # Evaluation

    @cached_property
    def _judge(self) -> EvaluationBuffer:
        return EvaluationBuffer(self.make_module().eval())

    def evaluate(self, vector: Tensor) -> dict[str, float]:
        """Loss, and accuracy where there is one, of the parameters (d,)."""
        experiment = self.experiment
        split = getattr(self.data, experiment.evaluate_on)
        self._judge.flat.copy_(vector)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(experiment.seed)
            # In parts whose activations stay in the cache: half the time for a convolutional net.
            outputs = [self._judge.module(part) for part in split.inputs.split(EVALUATED_AT_ONCE)]
            return self.problem.evaluate(torch.cat(outputs), split.targets)

    def measure(
        self, nodes: Sequence[Holder], seconds: float, samples: int, steps: int, sent: int
    ) -> Metrics:
        """One row of metrics from the live nodes."""
        judged = self.evaluate(self.experiment.method.model(nodes))
        return Metrics(
            seconds=seconds,
            samples=samples,
            steps=steps,
            loss=judged["loss"],
            accuracy=judged.get("accuracy", float("nan")),
            consensus=consensus_distance([n.parameters for n in nodes if not n.is_server]),
            bytes=sent,
        )

    def _refuse_running_statistics(self) -> None:
        for name, module in self.module.named_modules():
            if getattr(module, "track_running_stats", False):
                raise ValueError(
                    f"{type(self.problem).__name__}: {name} ({type(module).__name__}) keeps "
                    "running statistics, which cannot be simulated yet; use GroupNorm or "
                    "LayerNorm, or track_running_stats=False"
                )

    def _check_output(self) -> None:
        split = self.data.train
        few = min(2, self.problem.batch_size, len(split))
        inputs, targets = split.inputs[:few], split.targets[:few]
        name = type(self.problem).__name__
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                outputs = self.module(inputs)
            except Exception as error:
                raise ValueError(
                    f"{name}: the model cannot take inputs of shape {tuple(inputs.shape)}: {error}"
                ) from error
            try:
                loss = self.problem.loss(outputs, targets)
            except Exception as error:
                raise ValueError(
                    f"{name}: the loss cannot compare the model's output of shape "
                    f"{tuple(outputs.shape)} with targets of shape {tuple(targets.shape)}: {error}"
                ) from error
        if loss.dim() != 0:
            raise ValueError(
                f"{name}: the loss has shape {tuple(loss.shape)}; it must be one number"
            )


class Diverged(RunError):
    """A loss or gradient is not finite any more."""


def require_finite(loss: float, rank: int, step: int, seconds: float) -> None:
    if not -float("inf") < loss < float("inf"):
        raise Diverged(
            f"diverged: worker {rank} had loss {loss} at its gradient {step}, "
            f"{seconds:.6g} s into the run; lower the learning rate"
        )


def consensus_distance(parameters: Sequence[Tensor]) -> float:
    """Root mean square distance of vectors (d,) to their mean; NaN of none."""
    if not parameters:
        return float("nan")
    stacked = torch.stack(list(parameters))
    stacked -= stacked.mean(dim=0)
    return stacked.square_().sum(dim=1).mean().sqrt().item()


Progress = Callable[[Metrics], None]
