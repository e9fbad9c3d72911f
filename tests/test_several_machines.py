"""Runs over several machines, each an agent of its own; here all on loopback."""

from __future__ import annotations

import multiprocessing
import os
import queue
import shlex
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from offbeat.cli import main, nodes_file
from offbeat.cluster import Fault
from offbeat.experiment import Experiment
from offbeat.methods import ADPSGD, METHODS
from offbeat.runs import load_run
from offbeat.runtime.agent import Agent, Joining
from offbeat.runtime.checkpoint import latest_checkpoint
from offbeat.runtime.placement import Gathering
from offbeat.runtime.processes import run_processes
from offbeat.runtime.simulated import Simulation
from offbeat.runtime.tickets import LeasedTickets
from offbeat.runtime.world import World
from offbeat.trace import Trace
from test_handshake_tls import authority, member
from test_processes import assert_replays, experiment

SECRET = "0123456789abcdef0123456789abcdef"
SMALL = ["--budget.samples", "1600", "--workers", "2"]


def started(*options: str, cwd: Path, secret: str | None = SECRET, **environment: str):
    """`offbeat run` with these options, in the background."""
    pipe = subprocess.PIPE
    known = {k: v for k, v in os.environ.items() if k != "OFFBEAT_SECRET"}
    if secret is not None:
        known["OFFBEAT_SECRET"] = secret
    return subprocess.Popen(
        [sys.executable, "-m", "offbeat", "run", *options],
        stdout=pipe,
        stderr=pipe,
        text=True,
        cwd=cwd,
        env=known | environment,
    )


def ended(job: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = job.communicate(timeout=240)
    return job.returncode, output, errors


def come(pattern: str, folder: Path, job: subprocess.Popen[str]) -> None:
    """Wait until there is such a file, without which the job does not end."""
    while not list(folder.glob(pattern)):
        assert job.poll() is None
        time.sleep(0.02)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def most_in(seconds: float, trace: Trace) -> int:
    """The most gradients that one worker has begun within so many seconds."""
    found = 0
    for rank in set(trace.gradients["node"].tolist()):
        starts = np.sort(trace.gradients["start_ns"][trace.gradients["node"] == rank])
        after = np.searchsorted(starts, starts + round(1e9 * seconds), side="right")
        found = max(found, int((after - np.arange(len(starts))).max()))
    return found


@pytest.mark.parametrize("workers", [2, 4])
@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.shares_parameters])
def test_every_method_runs_over_machines_and_replays(name: str, workers: int, tmp_path: Path):
    planned = experiment(METHODS[name](), workers)
    reached: queue.SimpleQueue[str] = queue.SimpleQueue()

    def take_part() -> str:
        # An agent is a machine, wherever it is: what crosses between them goes over TCP.
        joining = Joining(coordinator=reached.get(timeout=60), slots=3, secret=SECRET.encode())
        return Agent(planned, joining).run().stop

    gathering = Gathering(
        listen="tcp:127.0.0.1:0", slots=2, secret=SECRET.encode(), on_listening=reached.put
    )
    with ThreadPoolExecutor(1) as pool:
        agent = None if World(planned).host_count() <= 2 else pool.submit(take_part)
        run = run_processes(planned, tmp_path, gathering=gathering)
        assert agent is None or agent.result(timeout=60) == "samples"
    assert run.error is None
    # Where workers may wait for one another when the budget ends, one of them may do so on a
    # machine that has been granted gradients in advance.
    waits = name in ("BackupSyncSGD", "RoundRobinSGD", "StaleSynchronousSGD")
    granted = workers * (1 + most_in(LeasedTickets.AHEAD, run.trace)) if waits else 0
    assert 1600 - 16 * granted <= run.metrics[-1].samples <= 1600
    assert_replays(run, tmp_path)
    if METHODS[name].synchronous:
        alone = Experiment(**{**planned.__dict__, "evaluator": "serial"})
        assert torch.equal(run.vector, Simulation(alone).run().vector)


def test_two_machines_carry_out_a_run_that_replays(port: int, tmp_path: Path):
    options = ["--method", "AsyncSGD", *SMALL, "--join", f"127.0.0.1:{port}", "--slots", "2"]
    jobs = [started(*options, "--out", name, cwd=tmp_path) for name in ("a", "b")]
    results = [ended(job) for job in jobs]
    assert [code for code, _, _ in results] == [0, 0], results
    coordinator = next(n for n in ("a", "b") if (tmp_path / n / "run.json").exists())
    took_part = next(errors for _, _, errors in results if "took part" in errors)
    assert took_part.startswith("offbeat: took part with process ")
    assert not (tmp_path / ("b" if coordinator == "a" else "a")).exists()
    command = [sys.executable, "-m", "offbeat", "replay", coordinator]
    replay = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert "equal to the bit" in replay.stdout, replay.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_machines_with_certificates_of_one_authority_meet(port: int, tmp_path: Path):
    ours, theirs = authority(tmp_path / "ours", "ca"), authority(tmp_path / "theirs", "ca")
    for ca in (ours, theirs):
        pair = member(ca, "cert")
        pair.key.rename(pair.key.with_name("key.pem"))
    join = ["--method", "AllReduceSGD", *SMALL, "--join", f"127.0.0.1:{port}"]
    coordinator = started(*join, "--tls", "ours", "--out", "a", cwd=tmp_path)
    come("a", tmp_path, coordinator)
    code, _, errors = ended(started(*join, "--tls", "theirs", "--patience", "3", cwd=tmp_path))
    assert code == 1
    assert errors.startswith("offbeat: cannot join the run at tcp:127.0.0.1:")
    assert errors.count("\n") == 1
    code, _, errors = ended(started(*join, "--tls", "ours", cwd=tmp_path))
    assert code == 0, errors
    assert ended(coordinator)[0] == 0


def torchrun(*options: str, cwd: Path, ranks: int, restarts: int = 0) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--max-restarts", str(restarts), "--nproc-per-node", str(ranks)]
    command += ["-m", "offbeat", "run", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_torchrun_starts_a_run(tmp_path: Path):
    code, output, errors = torchrun(
        "--method", "AllReduceSGD", *SMALL, "--out", "run", cwd=tmp_path, ranks=2
    )
    assert code == 0, errors
    assert "run as processes: 2 workers" in output
    assert "took part with process 1" in errors
    assert (tmp_path / "run" / "run.json").exists()


def test_who_departed_before_the_checkpoint_comes_back_with_the_ranks(tmp_path: Path):
    # As when a rank is lost, and the others go on and write one before torchrun has ended them.
    crash = Fault(kind="crash", rank=1, at=0.05)
    planned = experiment(ADPSGD(), samples=32_000, faults=(crash,))
    run_processes(planned, tmp_path / "run", checkpoint_every=0.05)
    checkpoint, _ = latest_checkpoint(tmp_path / "run")
    assert checkpoint.nodes == (0,)
    code, output, errors = torchrun(
        "--resume", "run", "--budget.samples", "64000", cwd=tmp_path, ranks=2
    )
    assert code == 0, errors
    assert "note       node 1 (worker) came back there" in output
    run = load_run(tmp_path / "run")
    assert (run.trace.gradients["node"] == 1).any()
    assert_replays(run, tmp_path / "run")


def test_the_number_of_ranks_must_be_that_of_the_processes(tmp_path: Path):
    code, _, errors = torchrun(
        "--method", "AsyncSGD", *SMALL, "--out", "run", cwd=tmp_path, ranks=2
    )
    assert code != 0
    text = (
        "offbeat: 2 workers and 1 servers of AsyncSGD take 3 processes, and there are 2 ranks: "
        "start 3 ranks, or change --workers"
    )
    assert text in errors
    assert not (tmp_path / "run").exists()


def test_ranks_are_all_there_from_the_start(tmp_path: Path):
    late = "[{kind: join, rank: 1, at: 0.5}]"
    options = ["--method", "ADPSGD", *SMALL, "--cluster.faults", late, "--out", "run"]
    code, _, errors = torchrun(*options, cwd=tmp_path, ranks=2)
    assert code != 0
    text = (
        "offbeat: worker 1 begins absent by cluster.faults, and ranks are all there from the "
        "start: leave its first join out, or start the run without ranks\n"
    )
    assert text in errors
    assert "has a place already" not in errors
    assert not (tmp_path / "run").exists()


def test_machines_with_other_experiments_are_refused_by_name(port: int, tmp_path: Path):
    join = ["--method", "AllReduceSGD", *SMALL, "--join", f"127.0.0.1:{port}", "--patience", "90"]
    coordinator = started(*join, "--out", "a", cwd=tmp_path)
    come("a", tmp_path, coordinator)
    other = started(*join, "--optimizer.lr", "0.5", cwd=tmp_path)
    code, _, errors = ended(other)
    assert code == 1
    assert errors == (
        "offbeat: refused by the coordinator: the experiments differ: optimizer.lr is 0.1 at the "
        "coordinator and 0.5 here; give the same options everywhere\n"
    )
    stranger = started(*join, cwd=tmp_path, secret="another secret, long enough")
    code, _, errors = ended(stranger)
    assert code == 1
    assert errors.startswith("offbeat: cannot join the run at tcp:127.0.0.1:")
    assert "refused in the handshake (is the secret that of the same run?)" in errors
    assert errors.count("\n") == 1
    # The run is unharmed, and takes the one that fits.
    code, _, errors = ended(started(*join, cwd=tmp_path))
    assert code == 0, errors
    assert ended(coordinator)[0] == 0


def test_a_needed_machine_that_is_lost_ends_the_run_in_one_line(port: int, tmp_path: Path):
    options = ["--method", "AllReduceSGD", "--workers", "2", "--budget.seconds", "60"]
    options += ["--join", f"127.0.0.1:{port}"]
    coordinator = started(*options, "--checkpoint", "0.2", "--out", "a", cwd=tmp_path)
    come("a", tmp_path, coordinator)
    other = started(*options, cwd=tmp_path)
    come("a/checkpoints/[0-9]*", tmp_path, coordinator)
    other.kill()
    ended(other)
    code, _, errors = ended(coordinator)
    assert code == 1
    last = errors.splitlines()[-1]
    assert last.startswith("offbeat: node 1 was on a machine that is gone, and no other can start")
    assert "Traceback" not in errors


def test_a_machine_that_never_comes_is_named(port: int, tmp_path: Path):
    options = ["--method", "AllReduceSGD", *SMALL, "--join", f"127.0.0.1:{port}"]
    code, _, errors = ended(started(*options, "--patience", "0.5", "--out", "a", cwd=tmp_path))
    assert code == 1
    assert "offbeat: nobody came for node 1 within 0.5 s: start the same command on more " in errors


def test_a_file_of_machines_starts_them_all(tmp_path: Path):
    (tmp_path / "machines").write_text("localhost slots=1  # the first\n\nlocalhost slots=2\n")
    options = ["--method", "AsyncSGD", *SMALL, "--nodes", "machines", "--rsh", "sh -c"]
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/sh\nshift\nexec sh -c "$1"\n')
    shell.chmod(0o755)
    options[-1] = str(shell)
    job = started(*options, "--out", "run", cwd=tmp_path, secret=None)
    code, output, errors = ended(job)
    assert code == 0, errors
    assert "3 " not in errors
    assert errors.count("took part with process") == 2
    assert "2 workers + 1 server" in output


@pytest.mark.parametrize(
    ("rsh", "line"),
    [
        ("'unclosed", '--rsh is "\'unclosed", which a shell cannot read: No closing quotation'),
        ("", "--rsh is empty; name a command such as ssh"),
    ],
)
def test_a_remote_shell_that_makes_no_sense_is_named(
    rsh, line, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("machines").write_text("localhost slots=3\n")
    assert main(["run", "--method", "AsyncSGD", *SMALL, "--nodes", "machines", "--rsh", rsh]) == 2
    assert capsys.readouterr().err == f"offbeat: {line}\n"


def test_a_remote_shell_that_ends_at_once_is_named(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("machines").write_text("localhost slots=3\n")
    start = subprocess.Popen

    def start_and_see_end(*arguments, **named):
        process = start(*arguments, **named)
        process.wait()
        return process

    monkeypatch.setattr(nodes_file.subprocess, "Popen", start_and_see_end)
    assert (
        main(["run", "--method", "AsyncSGD", *SMALL, "--nodes", "machines", "--rsh", "false"]) == 1
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "offbeat: false (--rsh) has ended with exit code 1, and started nothing on localhost"
    )


def test_who_takes_part_never_coordinates(tmp_path: Path, monkeypatch, capsys):
    """Whom `--nodes` starts may come when the run is over, and find the address free."""
    monkeypatch.chdir(tmp_path)
    Path("machines").write_text("localhost slots=3\n")
    Path("shell").write_text('#!/bin/sh\nread secret\necho "$2" > started\n')
    Path("shell").chmod(0o755)
    options = ["run", "--method", "AsyncSGD", *SMALL, "--patience", "0.5"]
    assert main([*options, "--nodes", "machines", "--rsh", "./shell", "--out", "out"]) == 1
    Path("secret").write_text(SECRET)
    Path("secret").chmod(0o600)
    started = shlex.split(Path("started").read_text())
    started = started[started.index("run") : started.index("--secret")]
    capsys.readouterr()
    assert main([*started, "--secret", "secret"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("offbeat: cannot join the run at tcp:127.0.0.1:")
    assert line.endswith(": [Errno 111] Connection refused")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("machines", "out", "secret", "shell", "started"),
    }


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--join", "here"], "--join is 'here'; it must be HOST:PORT, such as 10.0.0.1:29400"),
        (["--join", "127.0.0.1:0"], "--join is '127.0.0.1:0'; it must be HOST:PORT"),
        (["--join", "127.0.0.1:29400"], "machines that meet need a common secret: give --secret"),
        (["--slots", "2"], "--slots goes with --join HOST:PORT; without it the run stays here"),
        (["--nodes", "nowhere"], "cannot read --nodes nowhere"),
        (["--join", "127.0.0.1:1", "--secret", "nowhere"], "cannot read --secret nowhere"),
        (["--join", "a..b:29400"], "--join a..b:29400: there is no host a..b: this can be no name"),
        (["--patience", "-1"], "--patience is -1; it must be a positive number of seconds"),
        (["--take-part"], "--take-part goes with --join HOST:PORT, where the run is coordinated"),
        (["--tls", "here"], "--tls goes with --join HOST:PORT; without it the run stays here"),
    ],
)
def test_bad_options_are_one_line(
    options: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OFFBEAT_SECRET", raising=False)
    assert main(["run", "--method", "SGD", *options]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"offbeat: {text}")
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("<&-", "the secret in the first line of the input has 0 characters"),
        ("< secret", "the secret in the first line of the input is no text in UTF-8"),
    ],
)
def test_an_input_that_is_no_secret_is_named(shell: str, line: str, tmp_path: Path):
    (tmp_path / "secret").write_bytes(b"\xff\xfe0123456789abcdef\n")
    command = f"{shlex.quote(sys.executable)} -m offbeat run --method SGD --join 127.0.0.1:29400"
    found = subprocess.run(
        ["sh", "-c", f"{command} --secret - {shell}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 2
    assert found.stderr.startswith(f"offbeat: {line}")
    assert found.stderr.count("\n") == 1


def test_a_secret_of_the_environment_that_is_no_text_is_named(monkeypatch, capsys):
    monkeypatch.setitem(os.environb, b"OFFBEAT_SECRET", b"0123456789abcdef\xff")
    assert main(["run", "--method", "SGD", "--join", "127.0.0.1:29400"]) == 2
    errors = capsys.readouterr().err
    assert errors == "offbeat: the secret in OFFBEAT_SECRET is no text in UTF-8\n"


def test_what_a_remote_shell_started_does_not_outlive_the_run(tmp_path: Path, monkeypatch):
    """Else a wrapper's own children would go on, and keep the command's output open."""
    monkeypatch.chdir(tmp_path)
    Path("machines").write_text("localhost slots=3\n")
    Path("shell").write_text("#!/bin/sh\nsleep 600 &\necho $! > started\nwait\n")
    Path("shell").chmod(0o755)
    monkeypatch.setattr(nodes_file, "ENDING_SECONDS", 0.2)
    options = ["--nodes", "machines", "--rsh", "./shell", "--patience", "1"]
    assert main(["run", "--method", "AsyncSGD", *SMALL, *options, "--out", "out"]) == 1
    state = Path("/proc", Path("started").read_text().strip(), "stat")
    deadline = time.monotonic() + 30  # It was killed a moment ago.
    with suppress(FileNotFoundError, ProcessLookupError):
        while " Z " not in state.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("how", ["join", "coordinate", "first rank", "second rank"])
def test_a_device_that_is_not_there_is_named_on_every_machine(
    how: str,
    port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    options = ["--method", "AllReduceSGD", *SMALL, "--device", "cuda:77", "--out", "run"]
    if how in ("join", "coordinate"):
        monkeypatch.setenv("OFFBEAT_SECRET", "a secret that is long enough")
        host = "127.0.0.1" if how == "coordinate" else "127.0.0.2"
        options += ["--join", f"{host}:{port}", "--patience", "5"]
    else:
        rank = {"first rank": 0, "second rank": 1}[how]
        ranks = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
        for name, value in (ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items():
            monkeypatch.setenv(name, str(value))
    assert main(["run", *options]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("offbeat: device 'cuda:77' cannot be used: ")
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert not multiprocessing.active_children()
