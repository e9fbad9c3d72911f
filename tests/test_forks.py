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
import os, sys, threading
import torch
from offbeat.runtime import forks

def say():
    files = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3, 64)
             if os.path.exists(f"/proc/self/fd/{fd}")]
    print(hasattr(forks, "marked"), any("kept" in name for name in files),
          torch.ones(1000, 1000).sum().item(), os.getppid())

def begin(what):
    if what == "a thread":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    elif what == "arithmetic":
        torch.set_num_threads(2)
        torch.ones(1000, 1000).sum()
    forks.marked = True
    forks.fork_server_of_forks("cuda" if what == "a GPU" else "cpu")
    torch.ones(1000, 1000).sum()
    process = forks.server_of_forks().Process(target=say)
    process.start()
    process.join()

if __name__ == "__main__":
    print("buffered")
    with open(sys.argv[2], "w"):
        begin(sys.argv[1])
    print(os.getpid(), flush=True)
    os.kill(os.getpid(), 9)
"""


def run_script(folder: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "scripts").mkdir()
    script = folder / "scripts" / "script.py"
    script.write_text(text)
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_modules_of_the_current_folder_are_not_taken_for_python_s(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError('the wrong queue')")
    ended = run_script(tmp_path, SERVED)
    assert ended.stderr == ""
    assert ended.stdout == "forked\n0 None\n"


@pytest.mark.parametrize("what", ["nothing", "a GPU", "a thread", "arithmetic"])
def test_the_server_is_a_fork_of_who_imported_everything_and_has_begun_nothing(
    tmp_path: Path, what: str
) -> None:
    ended = run_script(tmp_path, FORKED, what, str(tmp_path / "kept"))
    assert ended.stderr == ""
    buffered, said, pid = ended.stdout.splitlines()
    forked, kept, total, server = said.split()
    assert buffered == "buffered"
    assert forked == str(what == "nothing")
    assert (kept, total) == ("False", "1000000.0")
    assert server != pid
    deadline = time.monotonic() + 10
    while Path(f"/proc/{server}").exists():
        assert time.monotonic() < deadline, "the server outlives who forked it"
        time.sleep(0.01)


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
