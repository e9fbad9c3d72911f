"""Checkpoints: whole or not there, the last two are kept, and what does not fit is refused."""

import dataclasses
import errno
import functools
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from offbeat.config import load_experiment
from offbeat.experiment import Experiment, to_config
from offbeat.methods import ADPSGD, AsyncSGD
from offbeat.problems import Digits
from offbeat.runs import Metrics
from offbeat.runtime.checkpoint import (
    Checkpoint,
    CheckpointError,
    _sum,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from offbeat.testing import small_experiment

NODES = {0: b"zero" * 100, 1: b"one", 2: b""}
ROW = Metrics(
    seconds=1.5, samples=64, steps=4, loss=0.5, accuracy=math.nan, consensus=0.25, bytes=1000
)


def experiment(method=AsyncSGD(), workers: int = 2, **settings) -> Experiment:  # noqa: B008
    return small_experiment(method, workers=workers, problem=Digits(), **settings)


def checkpoint(samples: int = 64, **changes) -> Checkpoint:
    made = Checkpoint(
        experiment=to_config(experiment()),
        samples=samples,
        seconds=2.5,
        tickets=4,
        steps=3,
        bytes=1234,
        metrics=(ROW, ROW),
        nodes=(0, 1, 2),
    )
    return dataclasses.replace(made, **changes)


def save(directory: Path, samples: int, **changes) -> Path:
    return save_checkpoint(directory, checkpoint(samples, **changes), NODES)


def kept(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def test_a_checkpoint_comes_back(tmp_path: Path):
    path = save(tmp_path, 64)
    assert path == tmp_path / "checkpoints" / "64"
    loaded = load_checkpoint(path)
    assert {rank: loaded.node(rank) for rank in loaded.nodes} == NODES
    for name in ("experiment", "samples", "seconds", "tickets", "steps", "bytes", "versions"):
        assert getattr(loaded, name) == getattr(checkpoint(), name), name
    assert len(loaded.metrics) == 2
    assert math.isnan(loaded.metrics[0].accuracy)
    assert dataclasses.replace(loaded.metrics[0], accuracy=0.0) == dataclasses.replace(
        ROW, accuracy=0.0
    )
    assert latest_checkpoint(tmp_path)[0].path == path
    assert latest_checkpoint(tmp_path)[1] == []


def test_its_files_are_plain(tmp_path: Path):
    path = save(tmp_path, 64)
    listed = ["checkpoint.json", "experiment.yaml"]
    assert sorted(p.name for p in path.iterdir()) == [
        *listed,
        *(f"node-{rank}.safetensors" for rank in NODES),
    ]
    summary = json.loads((path / "checkpoint.json").read_text())
    assert summary["metrics"][0]["accuracy"] is None
    load_checkpoint(path).require_same(load_experiment(path / "experiment.yaml"))


def test_the_last_two_are_kept(tmp_path: Path):
    for samples in (8, 100, 20_000, 3000):
        save(tmp_path, samples)
    # Those of more samples are of a course that was given up.
    assert kept(tmp_path) == ["100", "3000"]
    save(tmp_path, 3000, tickets=7)
    assert kept(tmp_path) == ["100", "3000"]
    assert latest_checkpoint(tmp_path)[0].tickets == 7


def damage(path: Path, how: str) -> None:
    file = path / "node-0.safetensors"
    data = file.read_bytes()
    if how == "short":
        file.write_bytes(data[:-1])
    elif how == "changed":
        file.write_bytes(b"Z" + data[1:])
    elif how == "missing":
        file.unlink()
    elif how == "no summary":
        (path / "checkpoint.json").unlink()
    elif how == "half a summary":
        text = (path / "checkpoint.json").read_text()
        (path / "checkpoint.json").write_text(text[: len(text) // 2])
    elif how == "empty":
        shutil.rmtree(path)
        path.mkdir()


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("short", r"200/node-0.safetensors is damaged: it has 399 bytes, and had 400"),
        ("changed", r"200/node-0.safetensors is damaged: its contents have changed"),
        ("missing", r"200/node-0.safetensors cannot be read: No such file or directory"),
        ("no summary", r"200 has no checkpoint.json: it is no checkpoint"),
        ("half a summary", r"200/checkpoint.json is damaged: "),
        ("empty", r"200 has no checkpoint.json: it is no checkpoint"),
    ],
)
def test_a_torn_checkpoint_gives_way_to_the_one_before(how: str, text: str, tmp_path: Path):
    save(tmp_path, 100)
    newest = save(tmp_path, 200)
    damage(newest, how)
    with pytest.raises(CheckpointError, match=text) as raised:
        load_checkpoint(newest)
    assert "\n" not in str(raised.value)
    found, notes = latest_checkpoint(tmp_path)
    assert found.samples == 100
    assert notes == [f"{raised.value}; the checkpoint before it is taken"]
    damage(tmp_path / "checkpoints" / "100", "no summary")
    with pytest.raises(CheckpointError, match=text + ".*, and there is no other"):
        latest_checkpoint(tmp_path)


def test_no_checkpoint_at_all(tmp_path: Path):
    with pytest.raises(CheckpointError, match=f"{tmp_path} has no checkpoint to resume from"):
        latest_checkpoint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".part-64").mkdir()
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from"):
        latest_checkpoint(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path):
    path = save(tmp_path, 64)
    summary = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(summary | {"format": 99}))
    with pytest.raises(CheckpointError, match=r"64 was written by another version of offbeat: it "):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "summary",
    [
        [],
        {"format": 2},
        {"format": 2, "files": []},
        {"format": 2, "files": {"experiment.yaml": 3}},
        {"format": 2, "files": {}},
        {"format": 2, "files": {}, "crc32": _sum({"format": 2, "files": {}})},
        {"format": 2, "files": {}, "samples": "x"},
    ],
)
def test_a_summary_of_the_wrong_shape_is_damaged(summary, tmp_path: Path):
    path = save(tmp_path, 64)
    (path / "checkpoint.json").write_text(json.dumps(summary))
    with pytest.raises(CheckpointError, match="is damaged: ") as raised:
        load_checkpoint(path)
    assert "\n" not in str(raised.value)


def test_a_summary_that_names_other_files_reads_none_of_them(tmp_path: Path):
    path = save(tmp_path, 64)
    (tmp_path / "secret").write_text("x")
    summary = json.loads((path / "checkpoint.json").read_text())
    summary["files"]["../../secret"] = {"bytes": 1, "crc32": 0}
    summary["crc32"] = _sum(summary)
    (path / "checkpoint.json").write_text(json.dumps(summary))
    with pytest.raises(CheckpointError, match="64/secret cannot be read"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (experiment(ADPSGD()), "method is AsyncSGD there and ADPSGD here"),
        (experiment(AsyncSGD(servers=2)), "method.servers is 1 there and 2 here"),
        (experiment(workers=3), "cluster.workers is 2 there and 3 here"),
        (small_experiment(AsyncSGD(), workers=2), "problem is Digits there and Quadratic here"),
        (experiment(lr=0.5), "optimizer.lr is 0.05 there and 0.5 here"),
        (experiment(momentum=0.9), "optimizer.momentum is 0 there and 0.9 here"),
        (
            experiment(optimizer=functools.partial(torch.optim.Adam, lr=0.05)),
            "optimizer is SGD there and Adam here",
        ),
        (
            experiment(optimizer=functools.partial(torch.optim.SGD, lr=0.05, nesterov=True)),
            "optimizer.nesterov is False there and True here",
        ),
        (experiment(seed=1), "seed is 0 there and 1 here"),
    ],
)
def test_another_experiment_is_refused_by_field_and_values(other, text, tmp_path: Path):
    loaded = load_checkpoint(save(tmp_path, 64))
    with pytest.raises(CheckpointError, match=rf"64 is of another experiment: {text}$"):
        loaded.require_same(other)


def test_a_larger_budget_is_the_same_experiment(tmp_path: Path):
    loaded = load_checkpoint(save(tmp_path, 64))
    loaded.require_same(experiment(steps=500, evaluate_every=7, threads=2))


def test_a_node_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match="has no node 7"):
        load_checkpoint(save(tmp_path, 64)).node(7)


@pytest.fixture
def record(monkeypatch):
    """What is asked of the system, in order: (call, name of the file)."""
    calls: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    real = {name: getattr(os, name) for name in ("open", "fsync", "rename")}

    def opened(path, *args, **kwargs):
        fd = real["open"](path, *args, **kwargs)
        names[fd] = Path(path).name
        return fd

    def synced(fd):
        calls.append(("fsync", names[fd]))
        real["fsync"](fd)

    def renamed(source, target):
        calls.append(("rename", Path(target).name))
        real["rename"](source, target)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    return calls


def test_all_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, record):
    save(tmp_path, 64)
    at = record.index(("rename", "64"))
    files = {*(f"node-{rank}.safetensors" for rank in NODES), "experiment.yaml"}
    before = [name for call, name in record[:at] if call == "fsync"]
    assert set(before[:-2]) == files
    assert before[-2:] == ["checkpoint.json", ".part-64"]
    assert ("fsync", "checkpoints") in record[at:]


@pytest.mark.parametrize("after", [0, 1, 350, 403, 404, 900])
def test_a_full_disk_loses_no_checkpoint(after: int, tmp_path: Path, monkeypatch):
    save(tmp_path, 100)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    room, real = after, os.write

    def write(fd, data):
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(fd, bytes(data[:room]))
        room -= written
        return written

    monkeypatch.setattr(os, "write", write)
    for samples in (100, 200):
        with pytest.raises(CheckpointError, match=f"/{samples} cannot be written: No space left"):
            save(tmp_path, samples)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert kept(tmp_path) == ["100"]
    assert latest_checkpoint(tmp_path)[0].samples == 100
    monkeypatch.undo()
    save(tmp_path, 200)
    assert kept(tmp_path) == ["100", "200"]


def test_a_disk_that_takes_a_little_at_a_time(tmp_path: Path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data[:100])))
    loaded = load_checkpoint(save(tmp_path, 64))
    assert {rank: loaded.node(rank) for rank in loaded.nodes} == NODES


def test_a_really_full_disk(tmp_path: Path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        save(tmp_path, 100)
        with pytest.raises(CheckpointError, match="200 cannot be written: No space left on device"):
            save_checkpoint(tmp_path, checkpoint(200), NODES | {0: bytes(1 << 20)})
        assert kept(tmp_path) == ["100"]
        assert latest_checkpoint(tmp_path)[0].node(0) == NODES[0]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch):
    class Killed(BaseException):
        pass

    save(tmp_path, 100)
    names = ("write", "fsync", "rename")
    real = {name: getattr(os, name) for name in names}
    moments = 0
    seen: list[int] = []

    def dying(name, left):
        def call(*args):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real[name](*args)

        return call

    alive = True
    while alive:
        left = [moments]
        for name in names:
            monkeypatch.setattr(os, name, dying(name, left))
        try:
            save(tmp_path, 100, tickets=5)
            alive = False
        except Killed:
            moments += 1
        monkeypatch.undo()
        seen.append(latest_checkpoint(tmp_path)[0].tickets)
    # The earlier one up to some moment, then the later one.
    assert seen == sorted(seen)
    assert set(seen) == {4, 5}
    assert len(seen) > 13
    assert kept(tmp_path) == ["100"]


def test_the_settings_of_a_checkpoint_are_the_yaml_form(tmp_path: Path):
    path = save(tmp_path, 64)
    assert (
        yaml.safe_load((path / "experiment.yaml").read_text()) == load_checkpoint(path).experiment
    )
