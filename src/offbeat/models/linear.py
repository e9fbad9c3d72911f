"""A linear model of sparse samples, whose gradient is sparse."""

from torch import Tensor, nn


class SparseLinear(nn.Module):
    """Sparse samples (N, m, 2) to scores (N,): the sum of weight[index] * value.

    Each of a sample's m entries is an index, held as a float, and a value. The weights (features,
    1) start at zero. The gradient is a sparse COO tensor that names the indices of the minibatch.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weights = nn.Embedding(features, 1, sparse=True)
        nn.init.zeros_(self.weights.weight)

    def forward(self, samples: Tensor) -> Tensor:
        weights = self.weights(samples[..., 0].long()).squeeze(-1)
        return (weights * samples[..., 1]).sum(-1)
