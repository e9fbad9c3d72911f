"""A folder in which the commands of README.md and docs/ run as they stand, in less time."""

from pathlib import Path

import pytest

from offbeat import config

EXAMPLES = Path(__file__).parents[1] / "examples"
SAMPLES = 6000
"""Of runs that are given none: a fifth. What they come to is nobody's question here."""


def enter_workplace(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder the current one, with the examples in it."""
    here = folder / "examples"
    here.mkdir()
    for example in EXAMPLES.glob("*.*"):
        (here / example.name).symlink_to(example)
    digits = (EXAMPLES / "digits.yaml").read_text()
    (here / "digits.yaml").unlink()
    (here / "digits.yaml").write_text(digits.replace("samples: 30000", f"samples: {SAMPLES}"))
    monkeypatch.setattr(config, "DEFAULT_SAMPLES", SAMPLES)
    # Processes that share the work take seconds to start, and give the same.
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.chdir(folder)
