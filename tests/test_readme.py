"""What the README says, word for word."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from offbeat.cli import main
from offbeat.methods import METHODS
from workplace import enter_workplace

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line)
    for line in re.sub(r"\\\n\s+", "", README).splitlines()
    if line.startswith("    offbeat ")
]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_method_of_the_registry_is_in_the_table():
    for name in METHODS:
        assert f"`{name}`" in README


def test_the_shown_method_is_the_file():
    shown = next(block for block in PYTHON if "class AsyncSGD" in block)
    source = (ROOT / "src/offbeat/methods/async_sgd.py").read_text()
    for part in re.split(r"\n\n+(?=@message|class|    async def)", shown):
        if part.startswith("class AsyncSGD"):
            part = part.split("\n", 1)[1]
        assert part.strip("\n") in source


def test_the_user_s_own_method_is_the_example_and_conforms(monkeypatch: pytest.MonkeyPatch):
    example = (ROOT / "examples/gosgd.py").read_text()
    assert example in PYTHON
    assert len(example.splitlines()) <= 40
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from gosgd import GoSGD

    check = next(block for block in PYTHON if "check_method" in block)
    exec(check, {"GoSGD": GoSGD})


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]):
    example = next(block for block in PYTHON if "offbeat.simulate(" in block)
    exec(example, {})
    assert re.fullmatch(r"9\d\.\d% after \d\.\d\d virtual seconds\n", capsys.readouterr().out)


def test_the_loop_is_that_of_the_example():
    loop = next(block for block in PYTHON if block.startswith("with offbeat.distribute"))
    flat = re.sub(r"\s+", " ", (ROOT / "examples/train.py").read_text())
    for line in loop.splitlines():
        assert line.strip() in flat


def test_the_example_loop_trains_alone():
    ended = subprocess.run(
        [sys.executable, ROOT / "examples/train.py"], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert re.fullmatch(r"1 ranks, test accuracy 9\d\.\d%\n", ended.stdout)


def test_every_command_works_word_for_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    enter_workplace(tmp_path, monkeypatch)
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        assert main(command[1:]) in (0, None), command
    assert capsys.readouterr().out.count("equal to the bit") == 2
