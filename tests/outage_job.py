"""A rank of jobs in the user's own loop, on a machine of its own, that says how far it is.

It carries out the jobs that it reads, one method a line.
"""

import sys
import time

import torch
from torch import nn

import offbeat
from offbeat.methods import METHODS

STEPS = 300


def carry_out(name: str) -> None:
    torch.manual_seed(0)
    truth = torch.randn(16, 1)
    model = nn.Linear(16, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    everything = torch.randn(512, 16)

    def loss_of(inputs: torch.Tensor) -> torch.Tensor:
        return (model(inputs) - inputs @ truth).square().mean()

    print(f"loss {loss_of(everything).item()}", flush=True)
    longest = 0.0
    method = METHODS[name]()
    with offbeat.distribute(model, optimizer, method=method, timeout=60.0) as optimizer:
        for step in range(STEPS):
            loss_of(torch.randn(8, 16)).backward()
            began = time.monotonic()
            optimizer.step()
            longest = max(longest, time.monotonic() - began)
            optimizer.zero_grad()
            print(f"step {step}", flush=True)
            time.sleep(0.005)  # So that the outage comes before the end.
    print(f"longest {longest}", flush=True)
    print(f"loss {loss_of(everything).item()}", flush=True)
    print("ended", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        carry_out(line.strip())
