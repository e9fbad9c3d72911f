"""Processes that kill themselves at a chosen await: what watches, what is drawn, what must hold."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from offbeat.cluster import Cluster, Constant
from offbeat.experiment import Budget, Experiment
from offbeat.methods import ADPSGD, METHODS, SGD, AllReduceSGD
from offbeat.problems import Digits
from offbeat.runtime.processes import run_processes
from offbeat.runtime.simulated import Simulation
from offbeat.testing import small_experiment
from offbeat.testing.chaos import Await, Saboteur, Watched, count_awaits
from offbeat.testing.kills import KilledRun, draw_kills, run_killed
from offbeat.testing.pauses import PausedRun, Pauser, run_paused
from offbeat.testing.recoveries import RecoveredRun, RejoinedRun, run_recovering, run_rejoining
from offbeat.testing.remains import Belongings, adopt_orphans, descendants

SURVIVORS = [name for name, m in METHODS.items() if m.survives_loss and m is not SGD]


def experiment(name: str, samples: int = 3200) -> Experiment:
    """Each gradient takes at least 2 ms, so that on a busy machine too all workers take part."""
    return small_experiment(
        METHODS[name](),
        problem=Digits(),
        cluster=Cluster(workers=4, compute=Constant(seconds=0.002)),
        budget=Budget(samples=samples),
        inject=True,
    )


# Who kills, and where


@pytest.mark.parametrize("kind", list(Await))
def test_where_to_kill_is_read_and_written_alike(kind: Await):
    text = f"2:{kind}:40"
    saboteur = Saboteur.parse(text)
    assert (saboteur.rank, saboteur.kind, saboteur.number) == (2, kind, 40)
    assert str(saboteur) == text


@pytest.mark.parametrize(
    "text", ["", "2", "2:recv", "recv:2:40", "-1:recv:4", "2:recv:x", "1:2:3:4"]
)
def test_what_says_no_place_is_refused(text: str):
    with pytest.raises(ValueError, match=r"OFFBEAT_CHAOS is .* must be rank:kind:number, as 2:rec"):
        Saboteur.parse(text)


def test_an_unknown_kind_and_a_number_below_one_are_refused():
    with pytest.raises(ValueError, match=r"'2:nap:1': no await is a 'nap'; it must be one of gra"):
        Saboteur.parse("2:nap:1")
    with pytest.raises(ValueError, match="number is 0; it must be at least 1"):
        Saboteur.parse("2:recv:0")
    with pytest.raises(ValueError, match="rank is -1; it must not be negative"):
        Saboteur(rank=-1, kind=Await.RECV, number=1)


class Sabotaged(Simulation):
    """A simulation in which a saboteur watches, as on a real host."""

    saboteur: Saboteur

    def watched(self, node, coroutine):
        return self.saboteur.watch(node, coroutine)


@pytest.mark.parametrize("kind", ["gradient", "recv", "round", "task"])
def test_it_strikes_once_at_the_chosen_await_of_its_node(kind: str):
    struck: list[str] = []
    simulation = Sabotaged(small_experiment(ADPSGD(), workers=3, steps=10))
    rounds = iter(range(1, 1000))

    def strike() -> None:
        node = simulation.scheduler.nodes[1]
        struck.append(f"round {node.round} {next(rounds)}")

    simulation.saboteur = Saboteur(rank=1, kind=Await(kind), number=7, strike=strike)
    run = simulation.run()
    assert run.error is None
    assert len(struck) == 1
    # One gradient and one averaging a round; a round and an offer of each of two roles.
    if kind in ("gradient", "task"):
        assert struck == ["round 6 1"]
    assert simulation.saboteur.seen == count_awaits(simulation.experiment)[1][Await(kind)]


def test_a_process_is_ended_by_sigkill():
    program = (
        "from offbeat.testing.chaos import *; from offbeat.testing import *; "
        "from offbeat.methods import SGD; from offbeat.runtime.simulated import Simulation\n"
        "class Sabotaged(Simulation):\n"
        "    def watched(self, node, coroutine):\n"
        "        return Saboteur.parse('0:gradient:3').watch(node, coroutine)\n"
        "Sabotaged(small_experiment(SGD(), workers=1)).run()\n"
        "print('survived')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (-9, b"")


def test_a_watched_coroutine_is_the_coroutine_it_watches():
    log: list[object] = []

    async def role():
        try:
            log.append(await Echo(1))
            await Echo(2)
        except KeyError:
            log.append("thrown")
            await Echo(3)
        finally:
            log.append("closed")

    watched = Watched(role(), lambda suspension: log.append(suspension.number))
    watched.send(None)
    watched.send("answer")
    watched.throw(KeyError())
    watched.close()
    assert log == [1, "answer", 2, "thrown", 3, "closed"]


@dataclasses.dataclass
class Echo:
    number: int

    def __await__(self):
        return (yield self)


# What is drawn


def test_awaits_are_counted_by_node_and_kind():
    counted = count_awaits(small_experiment(AllReduceSGD(), workers=3, steps=5))
    each = {Await.ROUND: 6, Await.GRADIENT: 6, Await.COLLECTIVE: 5}
    assert counted == {rank: Counter(each) for rank in range(3)}
    parts = Cluster(workers=3, collectives="messages")
    counted = count_awaits(small_experiment(AllReduceSGD(), workers=3, cluster=parts, steps=5))
    # 2 (n - 1) chunks of a ring.
    assert counted[0] == Counter(each | {Await.COLLECTIVE: 5 * 4})


def test_kills_repeat_by_their_seed_and_go_through_the_kinds_in_turn():
    planned, ranks = experiment("ADPSGD"), range(4)
    drawn = [str(kill) for kill in draw_kills(planned, ranks, 8, seed=1)]
    assert drawn == [str(kill) for kill in draw_kills(planned, ranks, 8, seed=1)]
    assert drawn[:4] == [str(kill) for kill in draw_kills(planned, ranks, 4, seed=1)]
    assert drawn != [str(kill) for kill in draw_kills(planned, ranks, 8, seed=2)]
    assert [kill.split(":")[1] for kill in drawn] == ["gradient", "recv", "round", "task"] * 2
    awaits = count_awaits(planned)
    for kill in draw_kills(planned, ranks, 40, seed=3):
        assert 1 <= kill.number <= awaits[kill.rank][kill.kind]


# Real runs


@pytest.fixture
def before(server_of_forks: None) -> Belongings:
    return Belongings.now()


@pytest.fixture(scope="module")
def server_of_forks() -> None:
    """What stays when a run has ended is there before anything is counted."""
    run_processes(experiment("ADPSGD", 64))


@pytest.mark.parametrize("name", SURVIVORS)
def test_the_others_finish_when_a_worker_dies_at_an_await(
    name: str, before: Belongings, tmp_path: Path
):
    # Drawn from a run of a sixteenth of its length: who gets little of a busy machine comes to it.
    (where,) = draw_kills(experiment(name, 400), range(4), 5, seed=0)[-1:]
    killed = run_killed(experiment(name, 6400), where, tmp_path)
    assert killed.struck
    assert killed.wrong() == []
    assert before.remains() == []


def test_a_server_that_dies_at_an_await_is_named(before: Belongings, tmp_path: Path):
    (where,) = draw_kills(experiment("AsyncSGD", 800), range(4, 5), 1, seed=0)
    killed = run_killed(experiment("AsyncSGD", 160_000), where, tmp_path)
    assert killed.run.error is not None
    assert "server 4 is gone" in killed.run.error
    assert killed.wrong() == []
    assert before.remains() == []


def test_a_server_that_dies_after_the_last_gradient_takes_the_model_along(
    before: Belongings, tmp_path: Path
):
    # Its 41st round begins when it has applied and answered the 40th gradient, the last.
    where = Saboteur.parse("4:round:41")
    killed = run_killed(experiment("AsyncSGD", 640), where, tmp_path)
    assert killed.struck
    assert killed.run.error is not None
    assert killed.wrong() == []
    assert before.remains() == []


def test_a_worker_that_a_method_cannot_spare_is_named(before: Belongings, tmp_path: Path):
    killed = run_killed(experiment("AllReduceSGD"), Saboteur.parse("2:collective:9"), tmp_path)
    assert killed.run.error is not None
    assert "node 2 (worker) was killed by SIGKILL" in killed.run.error
    assert killed.wrong() == []
    assert before.remains() == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> KilledRun:
    """A run that came to no kill."""
    folder = tmp_path_factory.mktemp("whole")
    return run_killed(experiment("AsyncSGD", 640), Saboteur.parse("1:recv:100000"), folder)


def test_a_run_without_its_kill_has_to_be_whole(whole: KilledRun):
    assert not whole.struck
    assert whole.wrong() == []


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"error": "it broke"}, ["error: it broke"]),
        ({"stop": "seconds"}, ["stopped for seconds, not because the budget was spent"]),
        ({"vector": torch.full((2410,), torch.inf)}, ["the model is not finite"]),
        ({"vector": torch.zeros(2410)}, ["its replay gives another model"]),
        ({"metrics": "backwards"}, ["the loss went from "]),
        ({"experiment": experiment("AsyncSGD", 1280)}, ["40 gradients were computed of 80"]),
        ({"experiment": experiment("SyncSGD", 64)}, ["gradients of 1", "it cannot be replayed: "]),
    ],
)
def test_what_is_wrong_with_a_result_is_said(whole: KilledRun, changed: dict, wrong: list[str]):
    if "metrics" in changed:
        changed = {"metrics": whole.run.metrics[::-1]}
    spoilt = dataclasses.replace(whole, run=dataclasses.replace(whole.run, **changed))
    text = "; ".join(spoilt.wrong())
    for part in wrong:
        assert part in text


def test_what_is_wrong_with_an_end_is_said(whole: KilledRun):
    where = Saboteur.parse("4:recv:1")
    died = dataclasses.replace(whole.run, notes=["node 4 (server) was killed by SIGKILL at 1 s"])
    assert "no error, although" in wrong_of(whole, where, died)
    named = dataclasses.replace(died, error="server 4 is gone")
    assert wrong_of(whole, where, named) == ""
    assert "took 99.0 s" in wrong_of(whole, where, named, seconds=99.0)
    assert "several lines" in wrong_of(whole, where, dataclasses.replace(named, error="node 4 \nb"))
    assert "does not name node 4" in wrong_of(whole, where, dataclasses.replace(died, error="oh"))
    assert "is lost" in wrong_of(whole, where, dataclasses.replace(named, metrics=[]))


def wrong_of(killed: KilledRun, where: Saboteur, run, seconds: float = 1.0) -> str:
    return "; ".join(dataclasses.replace(killed, where=where, run=run, seconds=seconds).wrong())


# Who comes back


@pytest.mark.parametrize(("name", "server"), [("LocalSGD", False), ("SyncSGD", True)])
def test_a_run_with_checkpoints_goes_on_whoever_is_killed(
    name: str, server: bool, before: Belongings, tmp_path: Path
):
    planned = experiment(name, 6400)
    ranks = range(4, 5) if server else range(4)
    (where,) = draw_kills(experiment(name, 3200), ranks, 1, seed=0)
    recovered = run_recovering(planned, where, tmp_path, run_processes(planned).vector)
    assert recovered.struck
    assert recovered.needed
    assert any("all went back to where they were" in note for note in recovered.run.notes)
    assert recovered.wrong() == []
    assert before.remains() == []


@pytest.mark.parametrize("name", ["AsyncSGD", "ADPSGD"])
def test_a_worker_that_was_killed_joins_again(name: str, before: Belongings, tmp_path: Path):
    (where,) = draw_kills(experiment(name, 800), range(4), 1, seed=0)
    rejoined = run_rejoining(experiment(name, 72_000), where, tmp_path, at=0.5)
    assert rejoined.struck
    assert rejoined.wrong() == []
    assert before.remains() == []


def test_what_is_wrong_with_a_recovery_is_said(whole: KilledRun):
    fields = {field.name: getattr(whole, field.name) for field in dataclasses.fields(whole)}
    other = RecoveredRun(**fields, whole=torch.zeros(2410))
    assert other.wrong() == ["its model is not that of the uninterrupted run"]
    assert dataclasses.replace(other, whole=whole.run.vector).wrong() == []
    first, *_, last = whole.run.metrics
    backwards = dataclasses.replace(whole.run, metrics=[last, first, last])
    assert "samples went backwards" in "; ".join(dataclasses.replace(other, run=backwards).wrong())
    fewer = dataclasses.replace(whole.run, experiment=experiment("AsyncSGD", 1280))
    assert "640 samples were computed of 1280" in dataclasses.replace(other, run=fewer).wrong()
    assert "nobody joined" in RejoinedRun(**fields).wrong()
    notes = ["node 1 (worker) joined at 0.50 s"]
    joined = RejoinedRun(**fields | {"run": dataclasses.replace(whole.run, notes=notes)})
    assert joined.wrong() == []
    mute = dataclasses.replace(joined.run, trace=type(joined.run.trace)())
    assert "who joined again computed nothing" in dataclasses.replace(joined, run=mute).wrong()


# Who is stopped for moments


@pytest.mark.parametrize(("name", "join"), [("ADPSGD", 0.3), ("LocalSGD", None), ("Hogwild", None)])
def test_nothing_of_a_result_shows_that_processes_were_paused(
    name: str, join: float | None, before: Belongings, tmp_path: Path
):
    planned = experiment(name, 36_000 if join else 6400)
    whole = run_processes(planned).vector if METHODS[name].synchronous else None
    paused = run_paused(planned, tmp_path, "0", whole, join)
    assert paused.pauses > 5
    assert paused.wrong() == []
    assert any("joined at" in note for note in paused.run.notes) == (join is not None)
    assert before.remains() == []


def test_what_is_wrong_with_a_paused_run_is_said(whole: KilledRun):
    run = whole.run
    paused = PausedRun(run=run, seconds=1.0, journals=whole.journals, pauses=3, whole=run.vector)
    assert paused.wrong() == []
    other = dataclasses.replace(paused, whole=torch.zeros(2410))
    assert other.wrong() == ["its model is not that of the undisturbed run"]
    late = dataclasses.replace(run, notes=["node 3 (worker) joined at 0.31 s"])
    assert dataclasses.replace(paused, run=late).wrong() == []
    gone = dataclasses.replace(run, notes=["node 1 (worker) gave no sign of life for 30 s"])
    assert dataclasses.replace(paused, run=gone).wrong() == gone.notes


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_it_is_the_processes_started_since_that_are_paused():
    earlier, later = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    try:
        later.kill()
        later.wait()
        with Pauser("0") as pauser:
            later = subprocess.Popen(["sleep", "60"])
            stopped = Counter[str]()
            deadline = time.monotonic() + 30
            while pauser.count < 20 and time.monotonic() < deadline:
                stopped["earlier"] += is_stopped(earlier.pid)
                stopped["later"] += is_stopped(later.pid)
        assert pauser.count >= 20
        assert stopped["later"] > 0
        assert stopped["earlier"] == 0
        assert not is_stopped(later.pid)
    finally:
        for process in (earlier, later):
            process.kill()
            process.wait()


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, server_of_forks: None) -> Generator[ModuleType]:
    """`benchmarks/chaos.py`, whose parts carry commands out."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    adopt_orphans()
    yield importlib.import_module("chaos")
    adopt_orphans(adopt=False)


@pytest.mark.parametrize("part", ["launchers", "torchruns"])
def test_a_command_that_is_killed_goes_on_to_the_bit(part: str, parts: ModuleType):
    from mishaps.outcomes import Settings

    # Of this seed the first kills come 0.11 s after the first checkpoint, so before any run's end.
    settings = Settings(only=("AllReduceSGD",), runs=1, seed=91, deadline=120.0)
    outcome = next(parts.PARTS[part](settings))
    assert outcome.wrong == []
    assert outcome.done


def test_where_a_run_resumed_from_is_read(parts: ModuleType):
    from mishaps.jobs import wrong_origin

    said = "note       resumed from /tmp/run/checkpoints/640, 0.31 s after the beginning\n"
    assert wrong_origin(said, 640) == wrong_origin(said, 320) == []
    assert wrong_origin(said, 656) == ["it resumed from 640 samples, and had 656"]
    assert wrong_origin("saved in run\n", 0) == ["it does not say that it resumed"]


def test_a_run_that_hangs_is_ended(before: Belongings, tmp_path: Path):
    endless = experiment("AsyncSGD", 100_000_000)
    with pytest.raises(TimeoutError, match=r"0:sleep:1: no end after 2 s"):
        run_killed(endless, Saboteur.parse("0:sleep:1"), tmp_path, deadline=2.0)
    assert before.remains() == []
    assert "OFFBEAT_CHAOS" not in os.environ


# What is left


def test_all_that_remains_is_named():
    before = Belongings.now()
    assert before.remains(patience=0) == []
    memory = os.memfd_create("of a test")
    folder = Path(f"/tmp/offbeat-{os.getpid()}-of-a-test")
    named = Path(f"/dev/shm/offbeat-{os.getpid()}")
    elsewhere = Path(f"/dev/shm/1-{named.name}")
    folder.mkdir()
    named.touch()
    # Process 1 lives: what is named after it is not of this test.
    elsewhere.touch()
    try:
        with subprocess.Popen(["sleep", "1000"]) as sleeper:
            assert descendants()[sleeper.pid] == "sleep"
            found = before.remains(patience=0)
            sleeper.kill()
    finally:
        os.close(memory)
        folder.rmdir()
        named.unlink()
        elsewhere.unlink()
    assert found == [
        f"process {sleeper.pid} sleep",
        f"shared memory /memfd:of a test (deleted) of {os.getpid()}",
        f"named memory {named.name}",
        f"folder {folder}",
        "1 open files of its own",
    ]
    assert before.remains(patience=0) == []
