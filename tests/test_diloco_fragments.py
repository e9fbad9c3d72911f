"""What a fragment of streaming DiLoCo is: consecutive tensors, or every P-th layer."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from offbeat.methods import StreamingDiLoCo
from offbeat.methods.streaming_diloco import fragment_spans, part_of
from offbeat.parameters import Layout
from offbeat.runtime.simulated import Simulation
from offbeat.testing import Quadratic, fingerprint, simulated, small_experiment
from test_theory import by_hand, close, free

LAYOUT = Layout(
    ("0.weight", "0.bias", "2.weight", "2.bias", "norm.gain", "4.weight"),
    ((2, 3), (2,), (1, 2), (1,), (4,), (5,)),
)


def test_strided_fragments_are_dealt_out_layer_by_layer():
    first, second = fragment_spans(LAYOUT, 2, "strided")
    assert first == (slice(0, 6), slice(6, 8), slice(11, 15))
    assert second == (slice(8, 10), slice(10, 11), slice(15, 20))
    x = torch.arange(20.0)
    assert part_of(x, first).tolist() == [*range(8), *range(11, 15)]


@pytest.mark.parametrize("pattern", ["consecutive", "strided"])
@pytest.mark.parametrize("fragments", [1, 2, 3, 4])
def test_fragments_share_all_parameters_out(fragments, pattern):
    dealt = fragment_spans(LAYOUT, fragments, pattern)
    assert len(dealt) == fragments
    numbers = [i for spans in dealt for span in spans for i in range(20)[span]]
    assert sorted(numbers) == [*range(20)]


def test_consecutive_fragments_are_views():
    x = torch.zeros(20)
    for spans in fragment_spans(LAYOUT, 3, "consecutive"):
        part_of(x, spans).add_(1.0)
    assert x.tolist() == [1.0] * 20


class Layer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size - 1, dtype=torch.double))
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.double))


class Layered(nn.Module):
    def __init__(self, layers, size):
        super().__init__()
        self.layers = nn.ModuleList(Layer(size) for _ in range(layers))

    def forward(self, inputs):
        return inputs @ torch.cat(list(self.parameters()))


@dataclass(frozen=True, kw_only=True)
class InLayers(Quadratic):
    """Four layers of two numbers."""

    def model(self):
        return Layered(4, self.dimension // 4)


def test_strided_streaming_diloco_is_its_pseudocode():
    H, n, steps, overlap, mixing, P = 6, 3, 30, 2, 0.5, 2
    method = StreamingDiLoCo(
        local_steps=H, fragments=P, overlap=overlap, mixing=mixing, pattern="strided"
    )
    experiment = small_experiment(
        method, problem=InLayers(), workers=n, steps=steps, cluster=free(n)
    )
    run, gradient = simulated(experiment), by_hand(experiment)
    x = torch.zeros(n, 8, dtype=torch.double)
    theta, m, sent = torch.zeros(8).double(), torch.zeros(8).double(), {}
    for t in range(1, steps + 1):
        x = torch.stack([x[r] - 0.05 * gradient(x[r], r, t - 1) for r in range(n)])
        for p, part in enumerate(([0, 1, 4, 5], [2, 3, 6, 7])):
            since = t - p * H // P
            if since > 0 and since % H == 0:
                sent[p] = (theta[part] - x[:, part]).mean(dim=0)
            if p in sent and (since - overlap) % H == 0:
                delta = sent.pop(p)
                m[part] = 0.9 * m[part] + delta
                theta[part] = theta[part] - 0.7 * (delta + 0.9 * m[part])
                x[:, part] = mixing * x[:, part] + (1 - mixing) * theta[part]
    close(run.vector, x.mean(dim=0))


def test_one_strided_fragment_is_one_of_consecutive_tensors():
    whole, strided = (
        simulated(
            small_experiment(
                StreamingDiLoCo(fragments=1, local_steps=5, pattern=pattern), problem=InLayers()
            )
        )
        for pattern in ("consecutive", "strided")
    )
    assert fingerprint(whole) == fingerprint(strided)


def test_more_strided_fragments_than_layers_end_the_run_with_the_numbers():
    method = StreamingDiLoCo(fragments=5, pattern="strided")
    run = Simulation(small_experiment(method, problem=InLayers())).run()
    assert "cannot deal out 4 layers to 5 fragments; ask for 1 to 4" in run.error
