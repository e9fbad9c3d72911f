"""A small CNN on MNIST: a plain PyTorch script. What offbeat adds is marked with `# offbeat`.

python examples/mnist_cnn.py
torchrun --nproc-per-node 2 examples/mnist_cnn.py --method LocalSGD
"""

import argparse
import os
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import offbeat  # offbeat

parser = argparse.ArgumentParser()
parser.add_argument("--data-dir", help="folder with MNIST's four files; without it, downloaded")
parser.add_argument("--limit", type=int, help="use only so many images")
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--lr", type=float, default=0.05)
parser.add_argument("--method", default="AllReduceSGD")  # offbeat
options = parser.parse_args()

rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
torch.set_num_threads(1)  # ranks share this machine's cores
torch.manual_seed(0)  # the same result each time
try:
    mnist = offbeat.problems.MNIST(data_dir=options.data_dir, limit=options.limit).data()
except offbeat.problems.DataError as error:
    sys.exit(f"mnist_cnn.py: {error}")
train = TensorDataset(mnist.train.inputs, mnist.train.targets)  # (N, 1, 28, 28), (N,)
sampler = DistributedSampler(train, num_replicas=size, rank=rank)
loader = DataLoader(train, batch_size=32, sampler=sampler)

model = nn.Sequential(
    *(nn.Conv2d(1, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)),
)
optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9)
schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
method = getattr(offbeat.methods, options.method)()  # offbeat

with offbeat.distribute(model, optimizer, method=method) as optimizer:  # offbeat
    for epoch in range(options.epochs):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        if rank == 0:
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)

if rank == 0:
    model.eval()
    with torch.no_grad():
        right = (model(mnist.test.inputs).argmax(dim=1) == mnist.test.targets).float().mean()
    print(f"{size} ranks, test accuracy {right:.1%}")
