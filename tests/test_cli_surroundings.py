"""The command line among damaged folders, half-set variables and full outputs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from offbeat.cli import commands, main
from offbeat.cli.commands import claimed, output_directory
from offbeat.cli.errors import UsageError
from offbeat.runtime import torchrun
from offbeat.runtime.torchrun import VARIABLES

SMALL = ("--method", "SGD", "--problem", "LeastSquares", "--workers", "2", "--budget.samples", "80")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def told(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    """The one line that a command ends with, having said nothing else."""
    assert main(argv) == code
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


# A run directory that was damaged


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real") / "run"
    assert main(["run", *SMALL, "--checkpoint", "0.05", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("model.safetensors", None, "model.safetensors is missing"),
        ("model.safetensors", b"", "model.safetensors cannot be read"),
        ("experiment.yaml", b"", "describes no experiment: the following arguments are required"),
        ("experiment.yaml", b"method: SGD\nxyz: 1\n", "describes no experiment: "),
        ("experiment.yaml", b"cluster: {co9lectives: ring}", "describes no experiment: "),
        ("run.json", b"[]", "run.json is damaged: it names no kind of run"),
        ("run.json", b"null", "run.json is damaged: it names no kind of run"),
        ("journals/node-0.journal", None, "node-0.journal"),
        ("journals/node-0.journal", b"", "node-0.journal is no journal of a run"),
        ("journals/node-0.journal", ..., "node-0.journal cannot be read: Is a directory"),
    ],
)
def test_what_is_damaged_is_named(name, content, line, real: Path, capsys):
    capsys.readouterr()
    shutil.copytree(real, "damaged")
    path = Path("damaged") / name
    path.unlink()
    if content is ...:
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    said = told(capsys, "replay", "damaged")
    assert line in said
    assert "damaged" in said


# A run directory that another run uses


def test_a_run_that_goes_on_is_not_resumed(real: Path, capsys):
    capsys.readouterr()
    journals = {path: path.read_bytes() for path in (real / "journals").iterdir()}
    assert journals
    with claimed(real):
        said = told(capsys, "run", "--resume", str(real), "--budget.samples", "160")
    assert f"the run in {real} is still going on; end it first" in said
    assert {path: path.read_bytes() for path in (real / "journals").iterdir()} == journals


def test_a_run_claims_its_directory_for_as_long_as_it_goes_on(monkeypatch):
    simulate, tried = commands.simulate_experiment, []

    def meanwhile(experiment, progress, directory):
        with (
            pytest.raises(UsageError, match="the run in out is still going on"),
            claimed(directory),
        ):
            pass
        tried.append(directory)
        return simulate(experiment, progress)

    monkeypatch.setattr(commands, "simulate_experiment", meanwhile)
    assert main(["simulate", *SMALL, "--out", "out"]) == 0
    assert tried == [Path("out")]
    with claimed(Path("out")):
        pass


def test_runs_of_one_second_get_directories_of_their_own():
    together = threading.Barrier(8)

    def begun(_: int) -> Path:
        together.wait(10)
        with output_directory(None, "SGD") as directory:
            together.wait(10)
            return directory

    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            directories = list(pool.map(begun, range(8)))
            assert len(set(directories)) == 8
            assert all(directory.parent == Path("runs") for directory in directories)


# Paths and devices


def test_paths_that_are_too_long_and_devices_without_memory(capsys):
    name = 300 * "x"
    assert "cannot write to --out xxx" in told(capsys, "run", *SMALL, "--out", name)
    assert "there is no such directory" in told(capsys, "run", "--resume", name)
    assert "device 'meta' cannot be used" in told(capsys, "run", *SMALL, "--device", "meta")


def test_without_out_a_folder_that_cannot_be_made_is_named(capsys, tmp_path: Path):
    (tmp_path / "runs").write_text("no folder\n")
    line = f"offbeat: cannot write to {tmp_path}/runs: File exists; name another directory by "
    for command in ("run", "simulate"):
        assert told(capsys, command, *SMALL) == f"{line}--out"


# What torchrun sets


RANKED = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}


@pytest.mark.parametrize(
    ("variables", "line", "code"),
    [
        ({"WORLD_SIZE": "2"}, "one of several ranks by WORLD_SIZE=2, but RANK, MASTER_ADDR", 2),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "but MASTER_ADDR is not set", 2),
        ({"RANK": "3"}, "ranks by RANK=3, but WORLD_SIZE", 2),
        (RANKED | {"RANK": "2"}, "RANK is '2'; it must be a whole number from 0", 1),
        (RANKED | {"RANK": "-1"}, "RANK is '-1'; it must be a whole number from 0", 1),
        (RANKED | {"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; it must be a whole number", 1),
        (RANKED | {"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'; it must be a whole", 1),
        (RANKED | {"MASTER_ADDR": "no.invalid"}, "'no.invalid' cannot be resolved", 1),
        (RANKED | {"TORCHELASTIC_RESTART_COUNT": "x"}, "RESTART_COUNT is 'x'; it must be a", 2),
    ],
)
def test_variables_that_make_no_sense_are_named(variables, line, code, monkeypatch, capsys):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert line in told(capsys, "run", *SMALL, code=code)
    assert not Path("runs").exists()


def test_a_single_rank_and_half_of_what_torchrun_sets_are_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_PORT", "29400")
    torchrun.require_alone()
    monkeypatch.setenv("RANK", "0")
    torchrun.require_alone()


# Standard output


def shell(line: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m offbeat {line}"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=120
    )


def test_output_may_be_closed_full_or_unread():
    closed = shell(f"run {' '.join(SMALL)} --out closed >&-")
    assert (closed.returncode, closed.stderr) == (0, "")
    assert Path("closed/run.json").exists()
    full = shell(f"simulate {' '.join(SMALL)} --out full > /dev/full")
    assert (full.returncode, full.stderr) == (1, "offbeat: [Errno 28] No space left on device\n")
    assert Path("full/run.json").exists(), "what was computed is kept"
    version = shell("--version > /dev/full")
    assert (version.returncode, version.stderr) == (full.returncode, full.stderr)
    unread = shell("cite ADPSGD | true")
    assert unread.stderr == ""
