"""World: what every runtime builds from an experiment: model, shards, nodes, evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from ..batch_norm import (
    estimation_batches,
    has_running_statistics,
    own_buffers,
    reestimate_statistics,
    require_reestimable,
)
from ..experiment import Experiment
from ..method import Holder
from ..node import Node, Runtime, Shard, SharedParameters
from ..parameters import Layout, SparseVector, Values
from ..problems import IID, Batches, Partition, shard, top_up
from ..problems.classification import class_beyond
from ..runs import Metrics
from ..suspensions import GradientRequest
from .compute import EvaluationBuffer, Job
from .errors import RunError

EVALUATED_AT_ONCE = 512
"""Samples."""
LOST = 1e4
"""Times the loss at the start (or 1, if that is more): a final loss above that is divergence."""


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
        self._check_layers()
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
        batch_size = self.problem.batch_size
        dealt, short = top_up(self._shards(experiment.partition, cluster.workers), batch_size)
        self.batches = [
            Batches(part, batch_size, experiment.seed, rank) for rank, part in enumerate(dealt)
        ]
        self.notes = [_topped_up(short, batch_size)] if short else []
        """What the user should know of this experiment, a line each."""

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
        shared: SharedParameters | None = None,
        replica: Tensor | None = None,
    ) -> Node:
        """A node that begins at the parameters `start` (d,), kept in `storage` if given.

        With `shared` it begins at what those are by now. With `replica`, which is memory (d,) of
        all workers, it steps a part of it.

        Raises:
            ValueError: the method shares its parameters and the runtime gives none to share.
        """
        method, part = self.experiment.method, None
        if method.shares_parameters and shared is None:
            raise ValueError(
                f"{type(method).__name__} changes one vector that all workers "
                "share, without locks; only `simulate`, and `run` on one machine, can do that, "
                "and such a run cannot be replayed"
            )
        layout = self.layout
        if rank in self.servers:
            layout = self.server_layouts[rank - self.servers.start]
        if replica is not None:
            storage, part = replica, layout.even_spans(len(self.workers))[rank]
        if shared is not None:
            parameters = shared.vector
        else:
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
            minibatches=self.minibatch,
            shared=shared,
            replicated=method.replicated,
            part=part,
            survives_loss=method.survives_loss,
        )

    def minibatch(self, number: int) -> Tensor:
        """Sample numbers (b,) of a minibatch of all training samples, as one worker has them."""
        return self._all_batches.indices(number)

    @cached_property
    def _all_batches(self) -> Batches:
        whole = self._shards(IID(), 1)[0]
        return Batches(whole, self.problem.batch_size, self.experiment.seed, rank=0)

    def _shards(self, partition: Partition, workers: int) -> list[Tensor]:
        return shard(partition, self.data.train.targets.cpu(), workers, self.experiment.seed)

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

    @contextmanager
    def _judged(self, vector: Tensor) -> Generator[nn.Module]:
        """The model with the parameters (d,) and statistics of its own, in eval mode.

        What is random in it repeats, and leaves torch's generators as they were.
        """
        module, seed = self._judge.module, self.experiment.seed
        self._judge.flat.copy_(vector)
        devices = [vector.device] if vector.is_cuda else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            if vector.is_cuda:
                torch.cuda.manual_seed(seed)
            if has_running_statistics(module):
                reestimate_statistics(module, estimation_batches(self.data.train.inputs))
            yield module

    def evaluate(self, vector: Tensor) -> dict[str, float]:
        """Loss, and accuracy where there is one, of the parameters (d,)."""
        split = getattr(self.data, self.experiment.evaluate_on)
        with self._judged(vector) as module:
            # In parts whose activations stay in the cache: half the time for a convolutional net.
            outputs = [module(part) for part in split.inputs.split(EVALUATED_AT_ONCE)]
            return self.problem.evaluate(torch.cat(outputs), split.targets)

    def buffers(self, vector: Tensor) -> dict[str, Tensor]:
        """What the state_dict of the model with the parameters (d,) holds beside those."""
        with self._judged(vector) as module:
            state = module.state_dict()
            return {name: state[name].clone() for name in state if name not in self.layout.names}

    def measure(
        self, nodes: Sequence[Holder], seconds: float, samples: int, steps: int, sent: int
    ) -> Metrics:
        """One row of metrics from the live nodes."""
        method = self.experiment.method
        judged = self.evaluate(method.model(nodes))
        workers = [node.parameters for node in nodes if not node.is_server]
        if method.shares_parameters:
            workers = workers[:1]  # Copies of one vector, from different moments of a real run.
        return Metrics(
            seconds=seconds,
            samples=samples,
            steps=steps,
            loss=judged["loss"],
            accuracy=judged.get("accuracy", float("nan")),
            consensus=consensus_distance(workers),
            bytes=sent,
        )

    def _check_layers(self) -> None:
        try:
            require_reestimable(self.module)
        except ValueError as error:
            raise ValueError(f"{type(self.problem).__name__}: {error}") from None

    def _check_output(self) -> None:
        split = self.data.train
        few = min(2, self.problem.batch_size, len(split))
        inputs, targets = split.inputs[:few], split.targets[:few]
        name = type(self.problem).__name__
        before = own_buffers(self.module)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            try:
                outputs = self.module(inputs)
            except Exception as error:
                raise ValueError(
                    f"{name}: the model cannot take inputs of shape {tuple(inputs.shape)}: {error}"
                ) from error
            for part in (self.data.train, self.data.validation, self.data.test):
                beyond = class_beyond(outputs, part.targets)
                if beyond is not None:
                    raise ValueError(
                        f"{name}: targets hold class {beyond} but the model has "
                        f"{outputs.shape[1]} outputs, for classes 0 to {outputs.shape[1] - 1}"
                    )
            try:
                loss = self.problem.loss(outputs, targets)
            except Exception as error:
                raise ValueError(
                    f"{name}: the loss cannot compare the model's output of shape "
                    f"{tuple(outputs.shape)} with targets of shape {tuple(targets.shape)}: {error}"
                ) from error
        for buffer, value in own_buffers(self.module).items():
            if not torch.equal(value, before[buffer]):
                raise ValueError(
                    f"{name}: buffer {buffer} of the model changes in training, and only "
                    "parameters travel between nodes; make it a parameter, or do without it"
                )
        if loss.dim() != 0:
            raise ValueError(
                f"{name}: the loss has shape {tuple(loss.shape)}; it must be one number"
            )


class Diverged(RunError):
    """A loss or gradient is not finite any more."""


LOOKED_AT = 1 << 16
"""Numbers of a gradient up to which all are looked at."""
TURNS = 64
"""Steps, at most, in which all numbers of a larger one are looked at."""


def require_finite(job: Job, rank: int, step: int, seconds: float) -> None:
    """Refuse a gradient, or its loss, that is not finite.

    To read all of a large gradient once more would take a good part of a step. One part of it is
    looked at, another with every step: what is overlooked shows in the next loss, as a rule.

    Raises:
        Diverged: in one line that says whose and when.
    """
    if not math.isfinite(job.loss):
        what = f"loss {job.loss}"
    elif not all(map(_finite, _looked_at(job.vector, step))):
        what = f"loss {job.loss:.6g} and a gradient that is not finite"
    else:
        return
    raise Diverged(
        f"diverged: worker {rank} had {what} at its gradient {step}, "
        f"{seconds:.6g} s into the run; lower the learning rate"
    )


def _looked_at(vector: Values | None, step: int) -> Sequence[Tensor]:
    """What of a gradient is looked at after that step; the same however it is kept."""
    assert vector is not None
    if isinstance(vector, SparseVector):
        return [vector.values]
    size = vector.shape[0]
    count = max(LOOKED_AT, -(-size // TURNS))
    start = step % max(1, -(-size // count)) * count
    if isinstance(vector, Tensor):
        return [vector[start : start + count]]
    return vector.parts(start, start + count)


def _finite(values: Tensor) -> bool:
    # One pass is enough where the sum is finite; that of large numbers may overflow.
    return math.isfinite(values.sum().item()) or bool(values.isfinite().all())


def require_same_layout(expected: Layout, found: Layout, expected_at: str, found_at: str) -> None:
    """Every node must hold the same model.

    Raises:
        RunError: naming the first parameter that differs, and both shapes.
    """
    if expected == found:
        return
    ours = dict(zip(expected.names, expected.shapes, strict=True))
    theirs = dict(zip(found.names, found.shapes, strict=True))
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if ours.get(name) != theirs.get(name):
            raise RunError(
                f"the models differ: parameter {name} has shape {ours.get(name, 'none')} on "
                f"{expected_at} and {theirs.get(name, 'none')} on {found_at}"
            )
    raise RunError(
        f"the models differ: {expected_at} and {found_at} order their parameters differently"
    )


def divergence(metrics: Sequence[Metrics]) -> str | None:
    """What to say of a run whose last evaluation is no result; None if it is one.

    A loss that is not finite is none, nor is one beyond any that could have been meant: a network
    whose units have all died has a finite loss, whatever the rate that killed them.
    """
    if not metrics:
        return None
    first, last = metrics[0], metrics[-1]
    if math.isfinite(last.loss) and not last.loss > LOST * max(1.0, first.loss):
        return None
    return (
        f"diverged: after {last.samples:,} samples the model's loss is {last.loss:.4g}, and was "
        f"{first.loss:.4g} at the start; lower the learning rate"
    )


def consensus_distance(parameters: Sequence[Tensor]) -> float:
    """Root mean square distance of vectors (d,) to their mean; NaN of none."""
    if not parameters:
        return float("nan")
    stacked = torch.stack(list(parameters))
    stacked -= stacked.mean(dim=0)
    return stacked.square_().sum(dim=1).mean().sqrt().item()


def _topped_up(short: Sequence[int], batch_size: int) -> str:
    """Which workers the partition gave too little."""
    names = [str(worker) for worker in short]
    who = f"worker {names[0]}" if len(names) == 1 else f"workers {', '.join(names[:-1])}"
    if len(names) > 1:
        who += f" and {names[-1]}"
    return (
        f"partition: {who} held fewer than batch_size {batch_size} samples and "
        f"{'was' if len(names) == 1 else 'were'} topped up from the largest shards"
    )


Progress = Callable[[Metrics], None]
