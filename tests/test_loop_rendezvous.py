"""How the ranks of a job find each other, on one machine and on several."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from loop_job import main, network, optimizer_of
from loop_ranks import assert_fine, rank_and_size, run_ranks
from offbeat.methods import METHODS
from offbeat.runtime.errors import RunError
from offbeat.runtime.gradient_log import replay_loop
from offbeat.runtime.loop import joining, rendezvous
from offbeat.runtime.loop.rendezvous import (
    Rendezvous,
    interface,
    listening,
    machine,
    numbered,
    reachable,
)

METHODS_APART = ("AllReduceSGD", "ADPSGD", "AsyncSGD")


def apart(out: Path, machines: list[str], runs: dict[str, dict]) -> None:
    """As if the ranks were in containers, or on machines, of these names."""
    rank, _ = rank_and_size()
    found: list[str] = []
    joining.machine = lambda: machines[rank]  # pyright: ignore[reportAttributeAccessIssue]
    connect = joining.RankHost.connect

    def spied(self, addresses, timeout):
        found.extend(addresses[other] for other in sorted(addresses))
        connect(self, addresses, timeout)

    joining.RankHost.connect = spied
    main(out, runs)
    (out / f"addresses-{rank}.txt").write_text("\n".join(found))


def test_ranks_of_several_machines_meet_by_tcp_and_neighbours_by_unix_sockets(tmp_path: Path):
    runs = {name: {"method": name, "record": True, "steps": [12] * 3} for name in METHODS_APART}
    machines = ["boot/1", "boot/1", "boot/2"]
    assert_fine(run_ranks(apart, 3, tmp_path, machines, runs))
    for name in METHODS_APART:
        finals = [torch.load(tmp_path / name / f"final-{rank}.pt") for rank in range(3)]
        model = network()
        replayed = replay_loop(
            tmp_path / name, model, optimizer_of(model), method=METHODS[name](), workers=3
        )
        for final in finals:
            assert torch.equal(final, replayed), name
    for rank, expected in enumerate(("ut", "ut", "tt")):
        used = (tmp_path / f"addresses-{rank}.txt").read_text().splitlines()[:2]
        assert all(a.startswith(("unix:@offbeat-", "tcp:127.0.0.1:")) for a in used)
        assert "".join(address[0] for address in used) == expected


def test_a_loopback_master_is_refused_between_machines(tmp_path: Path):
    runs = {"run": {"method": "AsyncSGD", "may_fail": True}}
    assert_fine(run_ranks(apart, 2, tmp_path, ["one/1", "other/1"], runs))
    for rank in range(2):
        error = (tmp_path / "run" / f"error-{rank}.txt").read_text()
        assert f"rank {1 - rank} is on another machine than rank {rank} and listens on" in error
        assert "set MASTER_ADDR to an address of rank 0's machine" in error


@dataclass
class SlowStore:
    """A store at the end of a slow line."""

    store: Any

    def set(self, key: str, value: str) -> None:
        self.store.set(key, value)

    def get(self, key: str) -> bytes:
        time.sleep(0.3)
        return self.store.get(key)


def exchange_and_end(out: Path) -> None:
    rank, _ = rank_and_size()
    job = Rendezvous.of_job(60)
    if rank == 1:
        job = replace(job, store=SlowStore(job.store))
    values = job.exchange("word", str(rank))
    (out / f"values-{rank}.txt").write_text(str(values))
    os._exit(0)


def test_the_keeper_of_the_store_ends_after_all_have_read(tmp_path: Path):
    assert_fine(run_ranks(exchange_and_end, 2, tmp_path))
    for rank in range(2):
        assert (tmp_path / f"values-{rank}.txt").read_text() == "{0: '0', 1: '1'}"


def end_or_exchange(out: Path) -> None:
    rank, _ = rank_and_size()
    job = Rendezvous.of_job(60)
    if rank == 0:
        job.store.get("ready")  # pyright: ignore[reportOptionalMemberAccess]
        os._exit(0)
    job.store.set("ready", "")  # pyright: ignore[reportOptionalMemberAccess]
    job.exchange("word", str(rank))


def test_a_store_that_is_gone_is_one_line(tmp_path: Path):
    keeper, other = run_ranks(end_or_exchange, 2, tmp_path)
    assert keeper.returncode == 0
    assert other.returncode == 1
    assert "RunError: the word of all ranks did not come: a rank has ended" in other.output
    assert "Traceback" not in other.output


def alone(out: Path) -> None:
    os.environ["WORLD_SIZE"] = "2"
    Rendezvous.of_job(1)


def test_ranks_that_never_come_are_one_line(tmp_path: Path):
    (only,) = run_ranks(alone, 1, tmp_path)
    assert only.returncode == 1
    assert "RunError: the ranks of the job did not come" in only.output


def test_addresses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    here = machine()
    assert here == machine()
    unix = "unix:@name"
    listen = partial(listening, unix=unix)
    assert listen(0, {0: here}) == [unix]
    assert listen(0, {0: here, 1: here}) == [unix]
    assert listen(0, {0: here, 1: "b/1"}) == ["tcp:127.0.0.1:0"]
    assert listen(0, {0: here, 1: "b/1", 2: here}) == [unix, "tcp:127.0.0.1:0"]
    assert numbered({0: "b", 1: "a", 2: "b"}) == [0, 1, 0]
    monkeypatch.setenv("MASTER_ADDR", "::1")
    assert interface() == "[::1]"
    with pytest.raises(RunError, match="rank 1 is on another machine than rank 0"):
        reachable(0, {0: "a/1", 1: "b/1"}, {0: "tcp:10.0.0.1:1", 1: "tcp:[::1]:2"})
    far = reachable(0, {0: "a/1", 1: "b/1"}, {0: "tcp:10.0.0.1:1", 1: "tcp:10.0.0.2:2"})
    assert far[1] == "tcp:10.0.0.2:2"


def test_a_master_that_is_no_address_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("MASTER_ADDR", "nowhere.invalid")
    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", _unknown)
    with pytest.raises(RunError, match=r"MASTER_ADDR nowhere\.invalid cannot be reached"):
        interface()


def _unknown(*args, **kwargs):
    raise OSError("Name or service not known")
