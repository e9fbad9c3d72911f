"""Compressed all-reduce SGD and PowerSGD: what error feedback keeps, and PyTorch's own hook."""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from offbeat.cluster import Cluster
from offbeat.compression import QSGD, Compressed, Half, Identity, RandomK, Sign, TopK
from offbeat.messages import codec_of
from offbeat.methods import AllReduceSGD, CompressedAllReduceSGD, PowerSGD, RingAllReduceSGD
from offbeat.methods.compressed_all_reduce import ErrorMemory
from offbeat.methods.power_sgd import LowRank, orthonormal
from offbeat.parameters import Layout
from offbeat.problems import Digits, Split, Supervised
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.world import World
from offbeat.testing import Quadratic, simulated, small_experiment
from power_sgd_ranks import STEPS, WORKERS, experiment
from test_theory import by_hand, close

LOSSY = [TopK(fraction=0.2), RandomK(fraction=0.5), Sign(), QSGD(bits=2, unbiased=False), Half()]


# Compressed all-reduce SGD


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_without_compression_it_is_all_reduce_to_the_bit(workers):
    settings = {"workers": workers, "momentum": 0.9}
    whole = simulated(small_experiment(RingAllReduceSGD(), **settings))
    for feedback in (True, False):
        method = CompressedAllReduceSGD(compressor=Identity(), error_feedback=feedback)
        assert torch.equal(simulated(small_experiment(method, **settings)).vector, whole.vector)


def test_without_compression_it_is_all_reduce_to_the_bit_on_a_network_too():
    methods = (AllReduceSGD(), CompressedAllReduceSGD(compressor=Identity()))
    runs = [simulated(small_experiment(m, problem=Digits(), steps=5)) for m in methods]
    assert torch.equal(runs[0].vector, runs[1].vector)


class Watched(Simulation):
    """Keeps every gradient and every message, by node."""

    def __init__(self, planned):
        super().__init__(planned)
        self.sent = {rank: [] for rank in self.world.workers}

    def send(self, node, to, message):
        # The same to everyone: what goes to the next is enough.
        if to == (node.rank + 1) % len(node.workers):
            self.sent[node.rank].append(codec_of(type(message)).copy(message))
        super().send(node, to, message)


@pytest.mark.parametrize("compressor", LOSSY, ids=str)
def test_what_was_sent_and_what_is_kept_are_all_the_gradients(compressor):
    planned = small_experiment(CompressedAllReduceSGD(compressor=compressor), steps=30)
    simulation = Watched(planned)
    assert simulation.run().error is None
    gradient = by_hand(planned)
    layout = simulation.nodes[0].layout
    decompressed = [
        [compressor.decompress(message, layout) for message in simulation.sent[rank]]
        for rank in range(4)
    ]
    x = torch.zeros(8, dtype=torch.float64)
    totals = torch.zeros(4, 8, dtype=torch.float64)
    for step in range(30):
        totals += torch.stack([gradient(x, rank, step) for rank in range(4)])
        x = x - 0.05 * torch.stack([sent[step] for sent in decompressed]).mean(dim=0)
    close(simulation.nodes[2].parameters, x)
    for node, sent, total in zip(simulation.nodes, decompressed, totals, strict=True):
        kept = node.state(ErrorMemory).error
        assert kept.any() or compressor == Half()
        close(torch.stack(sent).sum(dim=0) + kept, total)


def test_top_k_with_error_feedback_is_its_formula():
    planned = small_experiment(
        CompressedAllReduceSGD(compressor=TopK(fraction=0.25)), workers=3, steps=20, momentum=0.5
    )
    gradient = by_hand(planned)
    x, m = torch.zeros(2, 8, dtype=torch.float64)
    e = torch.zeros(3, 8, dtype=torch.float64)
    for step in range(20):
        p = torch.stack([gradient(x, rank, step) for rank in range(3)]) + e
        q = torch.zeros_like(p)
        for row in range(3):
            largest = p[row].abs().argsort(descending=True)[:2]
            q[row, largest] = p[row, largest]
        e = p - q
        m = 0.5 * m + q.mean(dim=0)
        x = x - 0.05 * m
    close(simulated(planned).vector, x)


def test_without_error_feedback_nothing_is_kept():
    method = CompressedAllReduceSGD(compressor=QSGD(bits=4), error_feedback=False)
    simulation = Simulation(small_experiment(method, steps=10))
    assert simulation.run().error is None
    assert all(node.state(ErrorMemory).error is None for node in simulation.nodes)


# Karimireddy et al. 2019, section 3: every gradient has the signs of (1, -1) or of (-1, 1).
def test_error_feedback_converges_where_bare_signs_cannot():
    rows = torch.tensor([[1.5, -0.5], [-0.5, 1.5]], dtype=torch.float64).repeat(50, 1)
    data = Split(rows, torch.zeros(100, 1, dtype=torch.float64))

    def both_at_one():
        module = nn.Linear(2, 1, bias=False).double()
        nn.init.ones_(module.weight)
        return module

    problem = Supervised(
        model_factory=both_at_one,
        train=data,
        test=data,
        loss_function=nn.functional.mse_loss,
        batch_size=1,
    )
    ends = {}
    for feedback in (True, False):
        method = CompressedAllReduceSGD(compressor=Sign(), error_feedback=feedback)
        run = simulated(small_experiment(method, problem=problem, workers=2, steps=400, lr=0.05))
        ends[feedback] = run.vector
    assert ends[True].abs().max() < 1e-4
    assert ends[False].sum().item() == pytest.approx(2.0, abs=1e-12)


def test_the_time_of_a_step_is_that_of_the_compressed_bytes():
    # d = 8 doubles: a message is its header and k entries of 12 bytes.
    header = codec_of(Compressed).header.size
    for compressor, body in ((Identity(), 64), (TopK(fraction=0.25), 24), (Sign(), 1 + 4 * 8)):
        method = CompressedAllReduceSGD(compressor=compressor)
        messages = simulated(small_experiment(method, steps=3)).trace.messages
        assert set(messages["bytes"]) == {header + body}
        assert len(messages) == 3 * 4 * 3


def test_fewer_bytes_are_less_time():
    cluster = Cluster(workers=4, latency=0.0, bandwidth=1e6)
    seconds = [
        simulated(
            small_experiment(
                CompressedAllReduceSGD(compressor=compressor),
                problem=Quadratic(dimension=10_000, samples=16),
                cluster=cluster,
                steps=4,
            )
        ).seconds
        for compressor in (Identity(), QSGD(), Sign(), TopK(fraction=0.01))
    ]
    # 80 kB to each of three others, then an eighth of it, a sixty-fourth, and 1.2 kB.
    assert seconds[0] - seconds[1] == pytest.approx(3 * 3 * 0.07, rel=0.05)
    assert seconds == sorted(seconds, reverse=True)


def test_error_feedback_on_what_does_not_contract_grows_and_is_refused():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Unchecked(CompressedAllReduceSGD):
        def validate(self, workers):
            pass

    settings = {"problem": Quadratic(dimension=400, samples=400), "steps": 60, "lr": 0.01}
    kept = {}
    for compressor in (QSGD(bits=2), QSGD(bits=2, unbiased=False)):
        simulation = Simulation(small_experiment(Unchecked(compressor=compressor), **settings))
        simulation.run()
        kept[compressor.unbiased] = simulation.nodes[0].state(ErrorMemory).error.norm()
    assert not kept[True] < 1e6 * kept[False]
    with pytest.raises(ValueError, match=r"and QSGD\(bits=2, .*\) does not: what is left out"):
        CompressedAllReduceSGD(compressor=QSGD(bits=2)).validate(4)
    CompressedAllReduceSGD(compressor=QSGD(bits=2), error_feedback=False).validate(4)


# PowerSGD


def test_power_sgd_of_uncompressed_tensors_is_all_reduce_to_the_bit():
    bare = simulated(small_experiment(AllReduceSGD(), problem=Digits(), steps=5))
    method = PowerSGD(min_compression_rate=math.inf)
    assert torch.equal(
        simulated(small_experiment(method, problem=Digits(), steps=5)).vector, bare.vector
    )


def test_matrices_are_those_that_shrink_enough():
    names = ("bias", "matrix", "filters", "square", "none")
    layout = Layout(names, ((7,), (30, 20), (8, 4, 3, 3), (4, 4), (0, 5)))
    found = PowerSGD(rank=2, min_compression_rate=2.0).matrices(layout)
    assert [(M.rows, M.columns, M.rank) for M in found] == [(30, 20, 2), (8, 36, 2)]
    assert [M.span.start for M in found] == [7, 607]
    # 30 * 20 / (2 * (30 + 20)) is 6, and not more than 6.
    assert len(PowerSGD(rank=2, min_compression_rate=6.0).matrices(layout)) == 0
    assert len(PowerSGD(rank=2, min_compression_rate=5.9).matrices(layout)) == 1
    assert not PowerSGD(rank=50).matrices(layout)


def test_orthonormal_columns_span_the_same_even_of_what_has_no_full_rank():
    P = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for matrix in (P, P @ torch.ones(3, 3).double(), torch.zeros(9, 3).double()):
        basis = orthonormal(matrix)
        close(basis.T @ basis, torch.eye(3).double())
        close(basis @ (basis.T @ matrix), matrix)
    assert orthonormal(P.bfloat16()).dtype == torch.bfloat16


def by_formula(planned, steps):
    """PowerSGD in its paper's matrices, with gradients by autograd.

    Returns parameters (d,) after each step, the hook's memories by worker and matrix, what ours
    have over them, and what the sum of all mean gradients has over the sum of all steps (d,).
    """
    world, method = World(planned), planned.method
    module = world.make_module()
    layout, n = Layout.of(module), planned.cluster.workers
    matrices = method.matrices(layout)
    Qs = method.first_factors(layout, torch.zeros(1).double(), planned.seed)
    Es = [[torch.zeros(M.rows, M.columns).double() for M in matrices] for _ in range(n)]
    apart = [[torch.zeros_like(E) for E in kept] for kept in Es]
    optimizer = planned.optimizer(module.parameters())
    after, left = [], torch.zeros(layout.size).double()
    for step in range(steps):
        gradients = []
        for rank in range(n):
            rows = world.batches[rank].indices(step)
            train = world.data.train
            optimizer.zero_grad()
            nn.functional.mse_loss(module(train.inputs[rows]), train.targets[rows]).backward()
            gradients.append(layout.flatten([p.grad for p in module.parameters()]))
        mean = torch.stack(gradients).mean(dim=0)
        left += mean
        for k, M in enumerate(matrices):
            Ms = [g[M.span].view(M.rows, M.columns) + Es[i][k] for i, g in enumerate(gradients)]
            P, _ = torch.linalg.qr(sum(m @ Qs[k] for m in Ms) / n)
            Qs[k] = sum(m.T @ P for m in Ms) / n
            for i, m in enumerate(Ms):
                Es[i][k] = m - P @ Qs[k].T  # As PyTorch's hook has it.
                apart[i][k] += P @ (Qs[k] - (m + apart[i][k]).T @ P).T
            mean[M.span] = (P @ Qs[k].T).reshape(-1)
        left -= mean
        for parameter, view in zip(module.parameters(), layout.views(mean), strict=True):
            parameter.grad = view.clone()
        optimizer.step()
        after.append(layout.flatten([p.detach() for p in module.parameters()]))
    return after, Es, apart, left


@pytest.mark.parametrize("rank", [1, 3])
def test_power_sgd_is_its_formula(rank):
    planned = experiment(rank)
    simulation = Simulation(planned)
    assert simulation.run().error is None
    after, Es, apart, left = by_formula(planned, STEPS)
    for node in simulation.nodes:
        close(node.parameters, after[-1])
    kept = [node.state(LowRank).errors for node in simulation.nodes]
    for k, M in enumerate(planned.method.matrices(simulation.nodes[0].layout)):
        # Each worker's memory is another than the hook's, and their mean the same.
        for ours, theirs, difference in zip(kept, Es, apart, strict=True):
            assert difference[k].abs().max() > 1e-3
            close(ours[k] - theirs[k], difference[k])
        close(sum(E[k] for E in kept) / WORKERS, sum(E[k] for E in Es) / WORKERS)
        # It is what has not been sent.
        close(sum(E[k] for E in kept).reshape(-1) / WORKERS, left[M.span])


@pytest.fixture(scope="module")
def hook_s(tmp_path_factory: pytest.TempPathFactory) -> list:
    """By worker and rank of PowerSGD: parameters (steps, d), and errors (d,) at the end."""
    folder = tmp_path_factory.mktemp("hook")
    program = Path(__file__).with_name("power_sgd_ranks.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(rank), folder],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORKERS)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert [process.returncode for process in ranks] == [0] * WORKERS, said
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORKERS)]


def test_power_sgd_is_pytorch_s_own_hook(hook_s):
    for rank in (1, 2, 3):
        after = hook_s[0][rank][0]
        assert len(after) == STEPS
        assert torch.equal(after, hook_s[1][rank][0])
        for steps in (1, 2, STEPS):
            ours = simulated(experiment(rank, steps)).vector
            close(ours, after[steps - 1])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_power_sgd_s_errors_differ_from_the_hook_s_where_it_says_so(hook_s, rank):
    planned = experiment(rank)
    simulation = Simulation(planned)
    assert simulation.run().error is None
    _, _, apart, _ = by_formula(planned, STEPS)
    for node in simulation.nodes:
        _, errors = hook_s[node.rank][rank]
        kept = node.state(LowRank).errors
        for k, M in enumerate(planned.method.matrices(node.layout)):
            close(kept[k] - errors[M.span].view_as(kept[k]), apart[node.rank][k])


def test_power_sgd_sends_the_numbers_of_its_factors():
    # Of 32 x 64 and 10 x 32, of which the second would not shrink by more than 5.
    method = PowerSGD(rank=2, min_compression_rate=5.0)
    planned = small_experiment(
        method, problem=Digits(hidden=32), steps=2, workers=2, cluster=Cluster(workers=2)
    )
    simulation = Simulation(planned)
    run = simulation.run()
    layout = simulation.nodes[0].layout
    [M] = method.matrices(layout)
    assert (M.rows, M.columns) == (32, 64)
    others = layout.size - 32 * 64
    messages = run.trace.messages
    # Two collectives a step; a ring of two sends as many numbers as each has.
    numbers = sum(messages["bytes"]) / 4
    assert numbers == pytest.approx(2 * 2 * (others + (32 + 64) * 2), rel=0.15)


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (PowerSGD(rank=0), "rank is 0; it must be at least 1"),
        (PowerSGD(min_compression_rate=0.5), "min_compression_rate is 0.5; it must be at least 1"),
    ],
)
def test_bad_settings_are_refused(method, text):
    with pytest.raises(ValueError, match=text):
        method.validate(4)
