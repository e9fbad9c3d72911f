"""Scripts: methods of a test's own, whose roles are plain coroutine functions; and a web site."""

import os

# Tests run side by side, and threads of torch and NumPy that wait for each other keep a core busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hashlib
import http.server
import importlib
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from offbeat.cli import methods
from offbeat.experiment import Budget
from offbeat.method import Method
from offbeat.node import Node
from offbeat.runtime.forks import server_of_forks
from offbeat.runtime.simulated import Simulation
from offbeat.testing import small_experiment

# The same examples at every run, however slow the machine is.
hypothesis.settings.register_profile("offbeat", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("offbeat")


# What processes import that tests start: each takes seconds for it unless it is forked with it.
IMPORTED = (
    "offbeat.runtime.loop",
    "offbeat.testing",
    "torch._dynamo",
    "hypothesis",
    "pytest",
)


@pytest.fixture(scope="session", autouse=True)
def forks():
    server_of_forks(IMPORTED)


@pytest.fixture(scope="session", autouse=True)
def each_method_is_measured_once(tmp_path_factory: pytest.TempPathFactory):
    """`offbeat methods` simulates every method anew, for the same numbers each time."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which all of them share
    measure = methods.models_sent

    def measured(method: Method, workers: int) -> float:
        kept = folder / hashlib.sha256(repr((method, workers)).encode()).hexdigest()
        if not kept.exists():
            begun = kept.with_suffix(f".{os.getpid()}")
            begun.write_text(repr(measure(method, workers)))
            begun.replace(kept)
        return float(kept.read_text())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "models_sent", measured)
        yield


@dataclass(frozen=True, kw_only=True)
class Script(Method):
    """Every worker runs `worker(node)` once, and beside it each of `beside`, by name."""

    worker: Callable[[Node], Coroutine[Any, Any, None]]
    others: tuple[Callable[[Node], Coroutine[Any, Any, None]], ...] = ()

    async def step(self, node):
        raise AssertionError("a script has no rounds")

    def roles(self, node):
        named = {role.__name__: role(node) for role in self.others}
        return {"worker": self.worker(node)} | named


def run_script(worker, *others, workers=2, **settings):
    """Run coroutine functions as the roles of simulated workers: a Simulation that has ended."""
    settings.setdefault("budget", Budget(seconds=1000))
    method = Script(worker=worker, others=others)
    simulation = Simulation(small_experiment(method, workers=workers, **settings))
    simulation.result = simulation.run()
    return simulation


@pytest.fixture(scope="session")
def script():
    return run_script


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of its own, and no folder named by the environment."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OFFBEAT_DATA", raising=False)
    return tmp_path / "home"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def site(tmp_path, home):
    """A folder and the address at which it is served."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch):
    """timm's Lars and Lamb, the oracles of ours."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    try:
        return importlib.import_module("rivals.timm_optimizers")
    except ImportError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
