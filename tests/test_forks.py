"""The server of forks."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVED = """
import os
from offbeat.runtime.forks import server_of_forks

if __name__ == "__main__":
    process = server_of_forks().Process(target=print, args=("forked",))
    process.start()
    process.join()
    print(process.exitcode, os.environ.get("PYTHONSAFEPATH"))
"""

FORKED = """
import os, sys, threading, time
import torch
from offbeat.runtime import forks

def begun(what, device="cpu"):
    forks.fork_server_of_forks(device)
    pid = forks.forkserver._forkserver._forkserver_pid
    if sys.stdout is not None:
        print(what, pid is not None, flush=True)

def say():
    text = f"{hasattr(forks, 'marked')} {torch.ones(1000, 1000).sum().item()} {os.getppid()}"
    with open("said", "w") as file:
        file.write(text)
    print(end="")

if __name__ == "__main__":
    begun("a GPU", "cuda")
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    begun("a thread")
    ended.set()
    thread.join()
    while forks.threads_here() > forks._IMPORTED[0]:
        time.sleep(0.01)  # Joined in Python, it may still end in the system.
    with open("opened", "w"):
        begun("a file")
    if "arithmetic" in sys.argv:
        torch.set_num_threads(2)
        torch.ones(1000, 1000).sum()
        begun("arithmetic")
        sys.exit()
    forks.marked = True
    if sys.stdout is not None:
        sys.stdout.write("buffered ")
    begun("nothing")
    # The server has no thread of this one's pool, and does not await any.
    torch.set_num_threads(2)
    torch.ones(1000, 1000).sum()
    process = forks.server_of_forks().Process(target=say)
    process.start()
    process.join()
    os.kill(os.getpid(), 9)
"""


CHANGING = ("PYTHONSAFEPATH", "PYTHONUNBUFFERED")
"""Variables that whoever runs the tests may have set."""


def run_script(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "scripts").mkdir()
    script = folder / "scripts" / "script.py"
    script.write_text(text)
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k not in CHANGING},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_modules_of_the_current_folder_are_not_taken_for_python_s(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError('the wrong queue')")
    ended = run_script(tmp_path, SERVED)
    assert ended.stderr == ""
    assert ended.stdout == "forked\n0 None\n"


def assert_forked(folder: Path) -> None:
    """The process that was started said so, and the server of forks ends."""
    forked, total, server = (folder / "said").read_text().split()
    assert (forked, total) == ("True", "1000000.0")
    deadline = time.monotonic() + 10
    while Path(f"/proc/{server}").exists():
        assert time.monotonic() < deadline, "the server outlives who forked it"
        time.sleep(0.01)


def test_the_server_is_a_fork_of_who_imported_everything_and_has_begun_nothing(
    tmp_path: Path,
) -> None:
    ended = run_script(tmp_path, FORKED)
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        "a GPU False",
        "a thread False",
        "a file False",
        "buffered nothing True",
    ]
    assert_forked(tmp_path)


def test_the_server_ends_though_there_are_no_standard_streams(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(FORKED)
    command = f"exec {sys.executable} script.py <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, timeout=60).returncode == -9
    assert_forked(tmp_path)


def test_who_has_a_pool_of_threads_is_not_forked(tmp_path: Path) -> None:
    ended = run_script(tmp_path, FORKED, "arithmetic")
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[-1] == "arithmetic False"


PROBLEM = """
from dataclasses import dataclass
from offbeat.problems import LeastSquares

with open("imports", "a") as file:
    print("imported", file=file)

@dataclass(frozen=True)
class Mine(LeastSquares):
    pass
"""


def test_a_run_imports_everything_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PROBLEM)
    command = [sys.executable, "-m", "offbeat", "run", "--method", "AsyncSGD"]
    options = ["--problem", "mine.Mine", "--budget.samples", "64", "--out", "out"]
    ended = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "imports").read_text() == "imported\n"


FUNCTION = """
import sys, threading
from offbeat.cli import main
ended = threading.Event()
if "thread" in sys.argv:
    threading.Thread(target=ended.wait).start()
code = main(["run", "--nothing"])
from offbeat.cli import commands
print(code, commands.alone)
ended.set()
"""


@pytest.mark.parametrize(("what", "alone"), [("nothing", "True"), ("thread", "False")])
def test_a_program_with_threads_of_its_own_is_not_alone(tmp_path: Path, what: str, alone: str):
    assert run_script(tmp_path, FUNCTION, what).stdout == f"2 {alone}\n"
