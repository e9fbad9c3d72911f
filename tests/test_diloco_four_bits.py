"""Streaming DiLoCo's outer gradients of four bits: the numbers, the mean, the bytes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offbeat.cluster import Cluster
from offbeat.collectives.e3m0 import LEVELS, FourBits, e3m0_mean, from_e3m0, to_e3m0
from offbeat.messages import codec_of
from offbeat.methods import StreamingDiLoCo
from offbeat.problems import Digits
from offbeat.runtime.simulated import Simulation
from offbeat.testing import simulated, small_experiment
from test_theory import close, run_of


def rounded(x):
    return from_e3m0(*to_e3m0(x), x)


def test_the_numbers_are_seven_powers_of_two_their_negatives_and_zero():
    exact = torch.tensor([*LEVELS, *(-level for level in LEVELS[1:])])
    assert exact.abs().unique().tolist() == [0, *(2.0**-k for k in range(6, -1, -1))]
    assert torch.equal(rounded(3.0 * exact), 3.0 * exact)
    codes, scale = to_e3m0(3.0 * exact)
    assert codes.dtype == torch.uint8
    assert len(codes) == 8
    assert scale == 3.0


def test_two_numbers_share_a_byte_the_first_in_its_lower_half():
    codes, scale = to_e3m0(torch.tensor([1.0, -0.5, 2.0]))
    assert codes.tolist() == [6 | (5 + 8) << 4, 7]
    assert scale == 2.0


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9))
def test_every_number_becomes_its_nearest(values):
    x = torch.tensor(values, dtype=torch.float64)
    numbers = torch.tensor([*LEVELS, *(-level for level in LEVELS)], dtype=torch.float64)
    distances = (x[:, None] - numbers * x.abs().max()).abs()
    torch.testing.assert_close((rounded(x) - x).abs(), distances.min(dim=1).values)


def test_what_is_not_a_number_is_not_hidden():
    assert not rounded(torch.tensor([1.0, float("nan")])).isfinite().all()
    assert not rounded(torch.tensor([1.0, float("inf")])).isfinite().all()
    assert rounded(torch.zeros(3)).tolist() == [0, 0, 0]
    assert rounded(torch.empty(0)).shape == (0,)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_all_workers_come_to_the_mean_of_the_rounded_vectors(script, n):
    x = torch.randn(n, 7, generator=torch.Generator().manual_seed(n))
    means = {}

    async def worker(node):
        means[node.rank] = await e3m0_mean(node, x[node.rank], node.workers, (0, 0))

    script(worker, workers=n)
    expected = torch.stack([rounded(row) for row in x]).mean(dim=0)
    for mean in means.values():
        assert torch.equal(mean, means[0])
        torch.testing.assert_close(mean, expected)
    assert len(means) == n


def test_streaming_diloco_of_four_bits_is_its_pseudocode():
    H, n, steps, overlap, mixing = 6, 3, 30, 2, 0.5
    method = StreamingDiLoCo(
        local_steps=H, fragments=2, overlap=overlap, mixing=mixing, sent="e3m0"
    )
    run, gradient = run_of(method, workers=n, steps=steps)
    x = torch.zeros(n, 8, dtype=torch.double)
    theta, m, sent = torch.zeros(8).double(), torch.zeros(8).double(), {}
    for t in range(1, steps + 1):
        x = torch.stack([x[r] - 0.05 * gradient(x[r], r, t - 1) for r in range(n)])
        for p, span in enumerate((slice(0, 4), slice(4, 8))):
            since = t - p * H // 2
            if since > 0 and since % H == 0:
                changes = [rounded(theta[span] - x[r, span]) for r in range(n)]
                sent[p] = torch.stack(changes).mean(dim=0)
            if p in sent and (since - overlap) % H == 0:
                delta = sent.pop(p)
                m[span] = 0.9 * m[span] + delta
                theta[span] = theta[span] - 0.7 * (delta + 0.9 * m[span])
                x[:, span] = mixing * x[:, span] + (1 - mixing) * theta[span]
    close(run.vector, x.mean(dim=0))


def test_the_bytes_on_the_wire_are_those_of_four_bits():
    def run(sent):
        method = StreamingDiLoCo(local_steps=4, fragments=1, overlap=1, sent=sent)
        cluster = Cluster(workers=2, latency=1e-3, bandwidth=1e6)
        return simulated(
            small_experiment(method, problem=Digits(), workers=2, steps=17, cluster=cluster)
        )

    full, four = run("full"), run("e3m0")
    d = full.vector.numel()
    size = codec_of(FourBits).size(
        FourBits(torch.zeros((d + 1) // 2, dtype=torch.uint8), 1.0, 0, 0)
    )
    assert size < d / 2 + 100
    assert set(four.trace.messages["bytes"].tolist()) == {size}
    assert len(four.trace.messages) == 4 * 2
    # With two workers a ring's all-reduce passes d numbers of four bytes: eight times as much.
    ratio = full.metrics[-1].bytes / four.metrics[-1].bytes
    assert ratio == pytest.approx(8, rel=0.1)


def test_it_trains_as_well_on_digits():
    losses = {}
    for sent in ("full", "e3m0"):
        method = StreamingDiLoCo(local_steps=8, sent=sent)
        experiment = small_experiment(method, problem=Digits(), steps=120, lr=0.1)
        simulation = Simulation(experiment)
        run = simulation.run()
        assert run.error is None
        losses[sent] = run.metrics[-1].loss
    assert losses["e3m0"] < 1.2 * losses["full"]
