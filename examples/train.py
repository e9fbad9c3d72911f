"""A plain PyTorch loop made distributed; the changed lines are marked with <--.

torchrun --nproc-per-node 2 examples/train.py
"""

import os

import torch
import torch.nn.functional as F
from torch import nn

import offbeat
from offbeat.methods import StochasticGradientPush

torch.set_num_threads(1)  # ranks share this machine's cores
torch.manual_seed(0)  # the same result each time
rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
data = offbeat.problems.Digits().data()
mine = torch.utils.data.TensorDataset(data.train.inputs[rank::size], data.train.targets[rank::size])
loader = torch.utils.data.DataLoader(mine, batch_size=16, shuffle=True, drop_last=True)

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)

with offbeat.distribute(model, optimizer, method=StochasticGradientPush()) as optimizer:  # <--
    for _ in range(10):
        for inputs, targets in loader:
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

if rank == 0:  # after the block every rank holds the common model
    accuracy = (model(data.test.inputs).argmax(dim=1) == data.test.targets).float().mean()
    print(f"{size} ranks, test accuracy {accuracy:.1%}")
