"""`offbeat run --resume` of damaged, contradicted and unwritable run directories."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from offbeat.cli import main
from offbeat.runtime import coordinator
from offbeat.runtime.errors import RunError
from offbeat.runtime.torchrun import VARIABLES

SMALL = ("--method", "AsyncSGD", "--problem", "LeastSquares", "--workers", "2")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with checkpoints."""
    directory = tmp_path_factory.mktemp("runs") / "kept"
    options = ["--budget.seconds", "1", "--checkpoint", "0.3", "--out", str(directory)]
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        assert main(["run", *SMALL, *options]) == 0
    return directory


@pytest.fixture
def copied(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, called `kept` in the present directory."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(kept, "kept"))


def contents(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def told(capsys: pytest.CaptureFixture[str], *options: str, code: int = 2) -> str:
    """The one line that resuming ends with."""
    assert main(["run", "--resume", "kept", "--budget.seconds", "1.3", *options]) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--method", "LocalSGD", "method is AsyncSGD there and LocalSGD here"),
        ("--cluster.workers", "3", "cluster.workers is 2 there and 3 here"),
        ("--seed", "9", "seed is 0 there and 9 here"),
    ],
)
def test_another_experiment_is_refused(option, value, line, copied: Path, capsys):
    before = contents(copied)
    assert line in told(capsys, option, value)
    assert contents(copied) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", float("nan")),
        ("samples", 10),
        ("nodes", [0, 2]),
        ("metrics", []),
        ("crc32", None),
    ],
)
def test_what_was_not_written_so_is_damage(name, value, copied: Path, capsys):
    before = contents(copied)
    for file in copied.glob("checkpoints/*/checkpoint.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    assert "checkpoint.json is damaged: its contents have changed" in told(capsys)
    assert contents(copied).keys() == before.keys()


def test_a_folder_that_cannot_be_made_is_named(copied: Path, capsys, monkeypatch):
    before = contents(copied)
    mkdir = Path.mkdir

    def refuse(path: Path, *arguments, **named) -> None:
        if path.name == "journals":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        mkdir(path, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert told(capsys) == "offbeat: cannot write to kept/journals: Read-only file system"
    assert contents(copied) == before


@pytest.mark.parametrize(
    "stopped", [RunError("node 0 did not start: no room"), KeyboardInterrupt()]
)
def test_a_run_that_does_not_come_to_go_on_loses_nothing(
    stopped, copied: Path, capsys, monkeypatch
):
    before = contents(copied)

    def fail(*arguments: object) -> None:
        assert not any((copied / "journals").iterdir())
        raise stopped

    with monkeypatch.context() as patch:
        patch.setattr(coordinator, "assemble", fail)
        line = told(capsys, code=1 if isinstance(stopped, RunError) else 130)
    if isinstance(stopped, RunError):
        assert line == f"offbeat: {stopped}; what is in kept is as it was"
    assert contents(copied) == before
    # And one that was killed in the midst of that goes on all the same.
    (copied / "journals").rename(copied / "journals.earlier")
    (copied / "journals").mkdir()
    assert main(["run", "--resume", "kept", "--budget.seconds", "1.3"]) == 0
    assert main(["replay", "kept"]) == 0
    assert not (copied / "journals.earlier").exists()
