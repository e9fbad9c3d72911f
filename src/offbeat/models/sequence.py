"""Models of sequences that guess each next symbol: a Transformer and a GRU."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 4
"""Of attention."""


class CharacterTransformer(nn.Module):
    """Decoder-only Transformer: symbols (N, T) to logits of each next symbol (N, symbols, T).

    Learned positions, LayerNorm before attention and before the network of each layer, GELU, no
    dropout. Reference: Radford et al., "Language Models are Unsupervised Multitask Learners"
    (2019), section 2.3, at a small size.

    Args:
        symbols: how many there are.
        length: the most symbols of a sequence, T.
        width: of the residual stream, a multiple of 4, the number of attention heads.
        layers: how many.

    Raises:
        ValueError: if the heads do not divide `width`.
    """

    def __init__(self, symbols: int, *, length: int, width: int, layers: int) -> None:
        super().__init__()
        check_heads(width)
        self.embedding = nn.Embedding(symbols, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.Sequential(*[_Layer(width) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, symbols)

    def forward(self, symbols: Tensor) -> Tensor:
        stream = self.embedding(symbols) + self.positions[: symbols.shape[-1]]
        return self.linear(self.norm(self.layers(stream))).mT


class CharacterGRU(nn.Module):
    """Recurrent network: symbols (N, T) to logits of each next symbol (N, symbols, T).

    Reference: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder" (2014).

    Args:
        symbols: how many there are.
        width: of the embedding and of the hidden state.
        layers: how many GRUs, one on the other.
    """

    def __init__(self, symbols: int, *, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.gru = nn.GRU(width, width, layers, batch_first=True)
        self.linear = nn.Linear(width, symbols)

    def forward(self, symbols: Tensor) -> Tensor:
        hidden, _ = self.gru(self.embedding(symbols))
        return self.linear(hidden).mT


def check_heads(width: int) -> None:
    """Raise ValueError unless a Transformer's heads can share `width`."""
    if width % HEADS:
        raise ValueError(f"width of a transformer must be a multiple of {HEADS}, not {width}")


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, stream: Tensor) -> Tensor:
        stream = stream + self.attended(self._attention(self.norm1(stream)))
        return stream + self.down(F.gelu(self.up(self.norm2(stream))))

    def _attention(self, stream: Tensor) -> Tensor:
        # By hand: F.scaled_dot_product_attention has no rule for batching its derivative.
        n, length, width = stream.shape
        heads = self.queries_keys_values(stream).view(n, length, 3, HEADS, width // HEADS)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4).unbind()  # (n, heads, length, .)
        scores = queries @ keys.mT / math.sqrt(width // HEADS)
        later = torch.ones(length, length, dtype=torch.bool, device=stream.device).triu(1)
        shares = scores.masked_fill(later, -math.inf).softmax(-1)
        return (shares @ values).transpose(1, 2).reshape(n, length, width)
