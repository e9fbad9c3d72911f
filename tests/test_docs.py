"""What the pages of docs/ say: their links, commands and Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from offbeat.cli import main
from offbeat.config import build, experiment_parser, parse
from workplace import enter_workplace

ROOT = Path(__file__).parents[1]
PAGES = {page.stem: page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))}
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
# What needs a data set, a file of the reader's, or an account; the tests of its area cover it.
NOT_RUN = ("CIFAR10", "MNIST", "a9a", "CharacterText", "my.txt", "wandb")
# Blocks that are parts of something: of a method, of a job under torchrun.
FRAGMENTS = ("class AsyncSGD", "replay_loop(")


def commands(text: str) -> list[list[str]]:
    """Those that stand in indented lines, which are the ones that take seconds."""
    joined = re.sub(r"\\\n\s+", "", text)
    lines = [line for line in joined.splitlines() if line.startswith("    offbeat ")]
    return [shlex.split(line) for line in lines if not any(name in line for name in NOT_RUN)]


def blocks(text: str) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block for block in found if not any(part in block for part in FRAGMENTS)]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter_workplace(tmp_path, monkeypatch)
    (tmp_path / "docs" / "images").mkdir(parents=True)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    for target in re.findall(r"\]\(([^)#]+)\)", PAGES[page]):
        if not target.startswith("https://"):
            assert (ROOT / "docs" / target).exists(), target


def test_the_index_lists_every_page():
    for page in PAGES:
        assert page == "README" or f"({page}.md)" in PAGES["README"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_describes_an_experiment(example: Path):
    parser = experiment_parser("offbeat")
    options = ["--config", str(example), "--method", "AsyncSGD"]
    assert build(parser, parse(parser, options)).cluster.workers >= 1


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if commands(text)])
def test_every_command_works_word_for_word(page: str, workplace: Path):
    for command in commands(PAGES[page]):
        assert main(command[1:]) in (0, None), shlex.join(command)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks(text)])
def test_every_python_block_runs(page: str, workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.path", ["examples", *__import__("sys").path])
    names = {"__name__": "docs"}
    for block in blocks(PAGES[page]):
        exec(compile(block, f"docs/{page}.md", "exec"), names)
