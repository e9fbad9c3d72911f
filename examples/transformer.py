"""A small character Transformer with AdamW, mixed precision, accumulation and checkpoints.

A plain PyTorch script. What offbeat adds is marked with `# offbeat`.

python examples/transformer.py --text README.md
torchrun --nproc-per-node 2 examples/transformer.py --text README.md --checkpoint job.pt
"""

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import offbeat  # offbeat

parser = argparse.ArgumentParser()
parser.add_argument("--text", type=Path, required=True, help="a text file, UTF-8")
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--length", type=int, default=64, help="characters of a sample")
parser.add_argument("--accumulate", type=int, default=2, help="minibatches of a step")
parser.add_argument("--checkpoint", type=Path, help="written at the end; gone on from if there")
parser.add_argument("--method", default="StreamingDiLoCo")  # offbeat
options = parser.parse_args()

rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
torch.set_num_threads(1)  # ranks share this machine's cores
torch.manual_seed(0)  # the same result each time
if not options.text.is_file():
    sys.exit(f"transformer.py: there is no file {options.text}; name a text by --text")
text = options.text.read_text(encoding="utf-8")
symbols = sorted(set(text))
number = {symbol: n for n, symbol in enumerate(symbols)}
numbers = torch.tensor([number[symbol] for symbol in text])
if len(numbers) < 10 * options.length:
    sys.exit(f"transformer.py: {options.text} has {len(text)} characters; give a longer text")


class Transformer(nn.Module):
    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.symbols = nn.Embedding(len(symbols), width)
        self.positions = nn.Embedding(options.length, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.output = nn.Linear(width, len(symbols))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (b, T) to (b, T, symbols)
        hidden = self.symbols(x) + self.positions(torch.arange(x.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.output(self.layers(hidden, mask=mask, is_causal=True))


model = Transformer()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=20)
scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
method = getattr(offbeat.methods, options.method)()  # offbeat
generator = torch.Generator().manual_seed(rank)
own = options.checkpoint and options.checkpoint.with_suffix(f".{rank}.pt")  # one for each rank

with offbeat.distribute(model, optimizer, method=method, scaler=scaler) as optimizer:  # offbeat
    if own and own.exists():
        saved = torch.load(own)
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        scaler.load_state_dict(saved["scaler"])
        generator.set_state(saved["generator"])
    for step in range(options.steps):
        for _ in range(options.accumulate):
            starts = torch.randint(len(numbers) - options.length - 1, (8,), generator=generator)
            x = torch.stack([numbers[s : s + options.length] for s in starts])
            y = torch.stack([numbers[s + 1 : s + 1 + options.length] for s in starts])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            scaler.scale(loss / options.accumulate).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
        if rank == 0 and step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    if own:
        saved = {
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "scaler": scaler.state_dict(),
            "generator": generator.get_state(),
        }
        torch.save(saved, own)

if rank == 0:
    print(f"{size} ranks, last loss {loss.item():.3f}")
