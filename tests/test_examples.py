"""The scripts of examples/: alone, as two ranks, and one of them under torchrun itself."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from loop_ranks import VARIABLES, assert_fine, run_ranks
from offbeat.problems import MNIST
from offbeat.problems.mnist import IDXSet
from offbeat.runtime.capture import read_state
from published import idx, published

EXAMPLES = Path(__file__).parents[1] / "examples"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
needs_lightning = pytest.mark.skipif(
    importlib.util.find_spec("lightning") is None,
    reason="lightning is not installed; pip install -c constraints.txt 'offbeat[examples]'",
)


def run(out: Path, name: str, *arguments: str) -> None:
    """An example as `python examples/NAME ARGUMENTS`, in this process."""
    sys.argv = [name, *arguments]
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_train_under_torchrun():
    command = [*TORCHRUN, str(EXAMPLES / "train.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"2 ranks, test accuracy ([\d.]+)%", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) > 90


# MNIST


def bars(folder: Path) -> IDXSet:
    """A data set of ten classes in MNIST's files: a bright bar, lower down for each class."""
    random = np.random.default_rng(0)
    contents = []
    for count in (640, 100):
        labels = random.integers(0, 10, count)
        images = random.integers(0, 50, (count, 28, 28))
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 2 : 2 * label + 6] += 200
        contents += [idx(images), idx(labels)]
    names = MNIST.published.files
    files = []
    for file, content in zip(names, contents, strict=True):
        made, packed = published(file.name, content)
        (folder / file.name).write_bytes(packed)
        files.append(made)
    return IDXSet(name="bars", files=tuple(files), subfolders=(".",), mean=0.1, deviation=0.2)


def run_on_bars(out: Path, *arguments: str) -> None:
    folder = out / f"data-{os.environ.get('RANK', 0)}"
    folder.mkdir()
    MNIST.published = bars(folder)
    run(out, "mnist_cnn.py", "--data-dir", str(folder), *arguments)


def test_mnist_cnn(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MNIST, "published", MNIST.published)
    run_on_bars(tmp_path, "--epochs", "2")
    assert re.search(r"epoch 2: loss [\d.]+\n1 ranks, test accuracy", capsys.readouterr().out)


def test_mnist_cnn_on_two_ranks(tmp_path: Path):
    arguments = ("--epochs", "3", "--method", "LocalSGD")
    ended = run_ranks(run_on_bars, 2, tmp_path, *arguments)
    assert_fine(ended)
    accuracy = re.search(r"2 ranks, test accuracy ([\d.]+)%", ended[0].output)
    assert accuracy is not None
    assert float(accuracy[1]) > 80
    assert ended[1].output == ""


def test_mnist_cnn_without_data_says_what_is_missing(tmp_path: Path):
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, "mnist_cnn.py", "--data-dir", str(tmp_path))
    assert re.match(r"mnist_cnn\.py: .*train-images-idx3-ubyte", str(caught.value))


# The Transformer

TEXT = "to be, or not to be: that is the question\n" * 60


def test_transformer_on_two_ranks_goes_on_from_its_checkpoint(tmp_path: Path):
    (tmp_path / "text").write_text(TEXT)
    arguments = ["--text", str(tmp_path / "text"), "--length", "16", "--checkpoint"]
    losses = []
    for name, legs in (("whole", ("40",)), ("parts", ("18", "22"))):
        for steps in legs:
            ended = run_ranks(
                run, 2, tmp_path, "transformer.py", *arguments, str(tmp_path / name),
                "--steps", steps,
            )  # fmt: skip
            assert_fine(ended)
        losses.append(re.search(r"2 ranks, last loss ([\d.]+)", ended[0].output))
    assert losses[0] is not None
    assert losses[1] is not None
    assert float(losses[0][1]) < 2.9
    assert losses[0][1] == losses[1][1], "interrupted or not"
    held = [torch.load(tmp_path / f"{name}.1.pt")["optimizer"] for name in ("whole", "parts")]
    whole, parts = (read_state(part["nodes"][1].numpy().tobytes()) for part in held)
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, parts.parameters[name])


def test_transformer_alone_and_what_it_refuses(tmp_path: Path, capsys):
    (tmp_path / "text").write_text(TEXT)
    text = ["--text", str(tmp_path / "text")]
    run(tmp_path, "transformer.py", *text, "--steps", "2", "--length", "16", "--method", "SGD")
    assert "1 ranks, last loss" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="there is no file nowhere; name a text by --text"):
        run(tmp_path, "transformer.py", "--text", "nowhere")
    with pytest.raises(SystemExit, match="2520 characters; give a longer text"):
        run(tmp_path, "transformer.py", *text, "--length", "400")


# Lightning


@needs_lightning
def test_lightning_on_two_ranks_and_resumed(tmp_path: Path):
    folder = ["--checkpoints", str(tmp_path / "kept")]
    for epochs, more in (("1", ()), ("3", ("--resume",))):
        arguments = ["--epochs", epochs, *folder, *more]
        ended = run_ranks(run, 2, tmp_path, "lightning_strategy.py", *arguments)
        assert_fine(ended)
        assert f"2 ranks, epoch {epochs}, test accuracy" in ended[0].output
    assert len(list((tmp_path / "kept").glob("rank-*/last.ckpt"))) == 2
