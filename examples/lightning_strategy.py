"""Lightning's Trainer with a method of offbeat as its strategy, automatic optimization and all.

python examples/lightning_strategy.py
torchrun --nproc-per-node 2 examples/lightning_strategy.py --checkpoints checkpoints

Every rank is a Trainer of its own on one device, and keeps checkpoints of its own: its part of
the job is in them, so `--resume` goes on where all ranks were.
"""

import argparse
import os
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import offbeat


class OffbeatStrategy(SingleDeviceStrategy):
    """Steps the module's one optimizer by a method, among the ranks that torchrun has started."""

    def __init__(self, method: offbeat.Method) -> None:
        super().__init__(device="cpu")
        self.method = method

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        super().setup_optimizers(trainer)
        (own,) = self.optimizers
        self.optimizers = [offbeat.distribute(self.lightning_module, own, method=self.method)]

    def teardown(self) -> None:
        for optimizer in self.optimizers:
            optimizer.__exit__(None, None, None)  # now the module holds the common model
        super().teardown()

    def on_exception(self, exception: BaseException) -> None:
        for optimizer in self.optimizers:
            optimizer.__exit__(type(exception), exception, None)
        self.optimizers = []


class Classifier(pl.LightningModule):
    """An ordinary LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        inputs, targets = batch
        return F.cross_entropy(self.network(inputs), targets)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--method", default="StochasticGradientPush")
    parser.add_argument("--checkpoints", type=Path, help="a folder to keep checkpoints in")
    parser.add_argument("--resume", action="store_true", help="go on from the last of them")
    options = parser.parse_args()

    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    torch.set_num_threads(1)  # ranks share this machine's cores
    torch.manual_seed(0)  # the same result each time
    data = offbeat.problems.Digits().data()
    mine = TensorDataset(data.train.inputs[rank::size], data.train.targets[rank::size])
    loader = DataLoader(mine, batch_size=16, shuffle=True, drop_last=True)

    model = Classifier()
    folder = options.checkpoints and options.checkpoints / f"rank-{rank}"
    trainer = pl.Trainer(
        strategy=OffbeatStrategy(getattr(offbeat.methods, options.method)()),
        plugins=[LightningEnvironment()],  # to Lightning each rank is alone
        callbacks=[ModelCheckpoint(folder, filename="last", enable_version_counter=False)]
        if folder
        else [],
        enable_checkpointing=folder is not None,
        max_epochs=options.epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader, ckpt_path=folder / "last.ckpt" if options.resume else None)
    if rank == 0:
        right = (model.network(data.test.inputs).argmax(1) == data.test.targets).float().mean()
        print(f"{size} ranks, epoch {trainer.current_epoch}, test accuracy {right:.1%}")


if __name__ == "__main__":
    main()
