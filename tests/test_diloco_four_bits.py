"""Streaming DiLoCo's compressed outer gradients: the mean, the pseudocode, the bytes."""

import random

import pytest
import torch

from offbeat.cluster import Cluster
from offbeat.collectives import CompressedVector, compressed_mean
from offbeat.compression import E3M0, Identity, Sign
from offbeat.messages import codec_of
from offbeat.methods import StreamingDiLoCo
from offbeat.methods.streaming_diloco import fragment_spans, layout_of, part_of
from offbeat.parameters import Layout
from offbeat.problems import Digits
from offbeat.runtime.simulated import Simulation
from offbeat.testing import simulated, small_experiment
from test_theory import close, run_of


def rounded(x):
    layout = Layout(("x",), ((len(x),),))
    return E3M0().decompress(E3M0().compress(x, layout, random.Random(0)), layout)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_all_workers_come_to_the_mean_of_the_rounded_vectors(script, n):
    x = torch.randn(n, 7, generator=torch.Generator().manual_seed(n))
    layout = Layout(("x",), ((7,),))
    means = {}

    async def worker(node):
        means[node.rank] = await compressed_mean(
            node, x[node.rank], E3M0(), layout, node.workers, (0, 0)
        )

    script(worker, workers=n)
    expected = torch.stack([rounded(row) for row in x]).mean(dim=0)
    for mean in means.values():
        assert torch.equal(mean, means[0])
        torch.testing.assert_close(mean, expected)
    assert len(means) == n


def test_streaming_diloco_of_four_bits_is_its_pseudocode():
    H, n, steps, overlap, mixing = 6, 3, 30, 2, 0.5
    method = StreamingDiLoCo(
        local_steps=H, fragments=2, overlap=overlap, mixing=mixing, compressor=E3M0()
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
    def run(compressor):
        method = StreamingDiLoCo(local_steps=4, fragments=1, overlap=1, compressor=compressor)
        cluster = Cluster(workers=2, latency=1e-3, bandwidth=1e6)
        return simulated(
            small_experiment(method, problem=Digits(), workers=2, steps=17, cluster=cluster)
        )

    full, four = run(Identity()), run(E3M0())
    d = full.vector.numel()
    codes = torch.zeros((d + 1) // 2, dtype=torch.uint8)
    size = codec_of(CompressedVector).size(CompressedVector(codes, torch.ones(1), 0, 0))
    assert size < d / 2 + 100
    assert set(four.trace.messages["bytes"].tolist()) == {size}
    assert len(four.trace.messages) == 4 * 2
    # With two workers a ring's all-reduce passes d numbers of four bytes: eight times as much.
    ratio = full.metrics[-1].bytes / four.metrics[-1].bytes
    assert ratio == pytest.approx(8, rel=0.1)


def test_it_trains_as_well_on_digits():
    losses = {}
    for compressor in (Identity(), E3M0()):
        method = StreamingDiLoCo(local_steps=8, compressor=compressor)
        experiment = small_experiment(method, problem=Digits(), steps=120, lr=0.1)
        simulation = Simulation(experiment)
        run = simulation.run()
        assert run.error is None
        losses[compressor] = run.metrics[-1].loss
    assert losses[E3M0()] < 1.2 * losses[Identity()]


@pytest.mark.parametrize("pattern", ["consecutive", "strided"])
def test_a_compressor_sees_the_tensors_of_each_fragment(pattern):
    layout = Layout(("a.weight", "a.bias", "b.weight", "c.weight"), ((2, 3), (3,), (4,), (5,)))
    x = torch.arange(1.0, 19.0)
    for spans in fragment_spans(layout, 2, pattern):
        own = layout_of(layout, spans)
        views = dict(zip(layout.names, layout.views(x), strict=True))
        part = part_of(x, spans)
        assert own.size == len(part)
        for name, view in zip(own.names, own.views(part), strict=True):
            assert torch.equal(view, views[name])
        result = Sign().decompress(Sign().compress(part, own, random.Random(0)), own)
        assert len(result.unique()) == len(own.names), "a scale for each tensor"
