"""Sparse gradients: the coordinates that a model names, in every evaluator and runtime."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import offbeat
from offbeat import Budget, Cluster, Method, Node
from offbeat.methods import SGD, AllReduceSGD, AsyncSGD
from offbeat.parameters import Layout, SparseVector
from offbeat.problems import Split, Supervised
from offbeat.runtime.compute import (
    Job,
    PoolEvaluator,
    SerialEvaluator,
    VmapEvaluator,
    choose_evaluator,
)
from offbeat.runtime.loop import distribute
from offbeat.runtime.replay import replay_run
from offbeat.suspensions import Gradient

WORDS = 40


def bag() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(WORDS, 3, mode="sum", sparse=True), nn.Linear(3, 2))


def words(count: int, seed: int) -> Split:
    """Sentences (count, 4) of the first half of the words or of the second."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(count) % 2
    inputs = torch.randint(WORDS // 2, (count, 4), generator=generator)
    return Split(inputs + targets[:, None] * (WORDS // 2), targets)


PROBLEM = Supervised(
    model_factory=bag,
    train=words(400, 0),
    test=words(100, 1),
    loss_function=F.cross_entropy,
    batch_size=4,
)
TRAIN = PROBLEM.data().train
OPTIMIZER = functools.partial(torch.optim.SGD, lr=0.2)


def coo(indices: list[list[int]], values: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor(indices), values, shape, check_invariants=True)


def test_a_layout_flattens_sparse_tensors():
    layout = Layout(("bias", "embedding", "grid"), ((2,), (5, 2), (2, 3)))
    bias = torch.tensor([7.0, 0.0])
    # Row 3 twice: they add up.
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]])
    embedding = coo([[3, 0, 3]], rows, (5, 2))
    grid = coo([[1, 0], [0, 2]], torch.tensor([5.0, 6.0]), (2, 3))
    expected = torch.tensor([7, 0, 3, 4, 0, 0, 0, 0, 11, 2, 0, 0, 0, 0, 6, 5, 0, 0])
    assert torch.equal(layout.flatten([bias, embedding, grid]), expected.float())
    sparse = layout.flatten_sparse([bias, embedding, grid])
    assert sparse.indices.tolist() == [0, 1, 2, 3, 8, 9, 14, 15]
    assert sparse.values.tolist() == [7, 0, 3, 4, 11, 2, 6, 5]
    assert torch.equal(sparse.dense(), expected.float())


def test_a_dense_gradient_names_its_non_zero_entries():
    gradient = Gradient(torch.tensor([0.0, 2.0, 0.0, float("nan")]), (3,), 0.5)
    indices, values = gradient.sparse()
    assert indices.tolist() == [1, 3]
    assert indices.dtype == torch.int64
    assert values[0] == 2.0
    assert values[1].isnan(), "what is not a number is not zero"
    assert gradient.version == 3


def test_a_sparse_gradient_s_vector_is_made_once():
    made = SparseVector(size=4, indices=torch.tensor([0, 3]), values=torch.tensor([1.0, 2.0]))
    gradient = Gradient(made, (0,), 0.5)
    assert gradient.vector.tolist() == [1, 0, 0, 2]
    assert gradient.vector is gradient.vector
    assert gradient.sparse()[0] is made.indices


def jobs(count: int) -> list[Job]:
    generator = torch.Generator().manual_seed(0)
    size = Layout.of(bag()).size
    return [
        Job(
            torch.randn(size, generator=generator),
            torch.randint(len(TRAIN), (4,), generator=generator),
            seed,
        )
        for seed in range(count)
    ]


@pytest.mark.parametrize("name", ["serial", "pool"])
def test_evaluators_keep_what_the_model_names(name: str):
    evaluators = {
        "serial": lambda: SerialEvaluator(bag(), PROBLEM.loss, TRAIN),
        "pool": lambda: PoolEvaluator(bag, PROBLEM.loss, TRAIN, 2),
    }
    evaluator, asked = evaluators[name](), jobs(5)
    for job in asked:
        evaluator.ask(job)
    for job in asked:
        evaluator.answer(job)
    evaluator.close()
    dense = nn.Sequential(nn.EmbeddingBag(WORDS, 3, mode="sum"), nn.Linear(3, 2))
    for job in asked:
        assert isinstance(job.vector, SparseVector)
        nn.utils.vector_to_parameters(job.snapshot, dense.parameters())
        batch = TRAIN.take(job.indices)
        loss = F.cross_entropy(dense(batch.inputs), batch.targets)
        expected = torch.autograd.grad(loss, list(dense.parameters()))
        flat = torch.cat([g.reshape(-1) for g in expected])
        torch.testing.assert_close(job.vector.dense(), flat)
        seen = batch.inputs.unique()
        coordinates = (seen[:, None] * 3 + torch.arange(3)).reshape(-1).tolist()
        rest = range(WORDS * 3, WORDS * 3 + 8)
        assert job.vector.indices.tolist() == [*coordinates, *rest]


@dataclass(eq=False)
class Seen:
    counts: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Sparsely(Method):
    """SGD that reads only what `sparse` names."""

    synchronous: ClassVar[bool] = True

    async def step(self, node: Node) -> None:
        gradient = await node.gradient()
        indices, values = gradient.sparse()
        node.state(Seen).counts.append(len(indices))
        assert len(indices) <= 4 * 4 * 3 + 8
        assert bool((indices.diff() > 0).all())
        whole = torch.zeros_like(node.parameters).index_copy_(0, indices, values)
        node.apply(whole, taken_at=gradient.version)


SETTINGS = {"optimizer": OPTIMIZER, "budget": Budget(samples=800), "seed": 3}


def test_a_method_that_reads_coordinates_is_the_one_that_reads_vectors():
    cluster = Cluster(workers=2)
    sparsely = offbeat.simulate(Sparsely(), PROBLEM, cluster=cluster, **SETTINGS)
    plain = offbeat.simulate(SGD(), PROBLEM, cluster=cluster, **SETTINGS)
    assert sparsely.error is None
    assert torch.equal(sparsely.vector, plain.vector)
    assert plain.metrics[-1].accuracy > 0.9 > plain.metrics[0].accuracy


def test_processes_compute_them_and_a_replay_too(tmp_path: Path):
    settings = SETTINGS | {"cluster": Cluster(workers=2)}
    run = offbeat.run(AllReduceSGD(), PROBLEM, **settings, directory=tmp_path)
    assert run.error is None
    simulated = offbeat.simulate(AllReduceSGD(), PROBLEM, **settings, evaluator="serial")
    assert torch.equal(run.vector, simulated.vector)
    replayed = replay_run(run.experiment, tmp_path / "journals")
    assert torch.equal(replayed.vector, run.vector)


def test_the_choice_leaves_vmap_to_others_and_vmap_refuses():
    assert choose_evaluator(bag(), 2) == "serial"
    assert choose_evaluator(bag(), 8) == "pool"
    assert choose_evaluator(nn.Embedding(5, 2, sparse=True), 8) == "pool"
    assert choose_evaluator(nn.Embedding(5, 2), 8) == "vmap"
    with pytest.raises(ValueError, match="vmap cannot batch sparse gradients; choose serial or"):
        offbeat.simulate(SGD(), PROBLEM, cluster=Cluster(workers=4), evaluator="vmap")


class Hidden(nn.Module):
    """A sparse gradient that no layer shows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(WORDS, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.embedding(x, self.weight, sparse=True).sum(1)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_hidden_sparse_gradient_under_vmap_is_one_line():
    evaluator = VmapEvaluator(Hidden(), PROBLEM.loss, TRAIN)
    job = Job(torch.zeros(2 * WORDS), torch.arange(4), 0)
    evaluator.ask(job)
    with pytest.raises(offbeat.runtime.compute.EvaluatorError) as caught:
        evaluator.answer(job)
    assert "cannot be computed together" in str(caught.value)
    assert "choose --evaluator serial" in str(caught.value)
    assert len(str(caught.value)) < 320
    assert "\n" not in str(caught.value)


def test_the_user_s_loop_takes_sparse_grads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    trained = []
    for distributed in (False, True):
        torch.manual_seed(0)
        model = bag()
        optimizer = OPTIMIZER(model.parameters())

        def train(model=model, optimizer=optimizer):
            for step in range(20):
                batch = slice(4 * step, 4 * step + 4)
                F.cross_entropy(model(TRAIN.inputs[batch]), TRAIN.targets[batch]).backward()
                optimizer.step()
                optimizer.zero_grad()

        if distributed:
            with distribute(model, optimizer, method=AsyncSGD()) as wrapped:
                train(optimizer=wrapped)
        else:
            train()
        trained.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(*trained)
