"""The harness in `namespaces.py` itself: hosts that talk, slow lines, pulled cables, no remains."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from namespaces import Network, NetworkHost, left_over, remove_leftovers, skip_reason

pytestmark = pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))

ECHO = """
import socket, sys
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
    with connection:
        while data := connection.recv(1 << 16):
            connection.sendall(data)
"""
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    for number, patience in enumerate(sys.stdin):
        connection.settimeout(float(patience))
        connection.sendall(bytes([number]))
        try:
            # Answers that came too late for the questions before are passed over.
            while (got := connection.recv(1)) not in (b"", bytes([number])):
                pass
            print("answer" if got else "end", flush=True)
        except TimeoutError:
            print("silence", flush=True)
"""
SINK = """
import socket, sys, time
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
    with connection:
        total, began = 0, time.monotonic()
        while data := connection.recv(1 << 20):
            total += len(data)
        print(8 * total / (time.monotonic() - began), flush=True)
"""
POUR = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as connection:
    connection.sendall(bytes(int(sys.argv[3])))
"""
KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from namespaces import Network
network = Network(hosts=2)
network.hosts[0].start(["sleep", "1000"])
print("made", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hosts() -> Iterator[list[NetworkHost]]:
    with Network(hosts=2, rate="100mbit") as network:
        yield network.hosts
    assert left_over() == []


def python(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", program, *map(str, arguments)]


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@contextlib.contextmanager
def conversation(one: NetworkHost, other: NetworkHost) -> Iterator[subprocess.Popen[str]]:
    """A process at `other` that asks one at `one` whenever it is told how long to be patient."""
    with (
        one.start(python(ECHO, one.address), stderr=None) as server,
        other.start(
            python(ASK, one.address, said(server)), stdin=subprocess.PIPE, stderr=None
        ) as client,
    ):
        yield client


def ask(client: subprocess.Popen[str], patience: float) -> str:
    assert client.stdin is not None
    client.stdin.write(f"{patience}\n")
    client.stdin.flush()
    return said(client)


def test_two_hosts_talk_and_a_pulled_cable_only_delays(hosts: list[NetworkHost]):
    one, other = hosts
    with conversation(one, other) as client:
        assert ask(client, 10) == "answer"
        one.down()
        assert ask(client, 0.3) == "silence"
        one.up()
        assert ask(client, 10) == "answer"
        other.down()
        assert ask(client, 0.3) == "silence"
        other.up()
        assert ask(client, 10) == "answer"


def test_a_line_is_as_slow_as_it_was_ordered(hosts: list[NetworkHost]):
    one, other = hosts
    with one.start(python(SINK, one.address), stderr=None) as server:
        other.run(python(POUR, one.address, said(server), 4_000_000))
        bits_per_second = float(said(server))
    # Headers and the first burst aside; a busy machine may be slower, not faster.
    assert 40e6 < bits_per_second < 110e6


def test_without_a_rate_a_line_is_fast():
    with Network(hosts=2) as network:
        one, other = network.hosts
        with one.start(python(SINK, one.address), stderr=None) as server:
            other.run(python(POUR, one.address, said(server), 40_000_000))
            assert float(said(server)) > 200e6


def test_a_delay_is_half_on_each_line():
    if (reason := skip_reason(delay=True)) is not None:
        pytest.skip(reason)
    with Network(hosts=2, delay="40ms") as network:
        one, other = network.hosts
        with conversation(one, other) as client:
            assert ask(client, 10) == "answer"
            assert ask(client, 0.05) == "silence"


def test_hosts_see_each_other_and_nothing_else(hosts: list[NetworkHost]):
    links = hosts[0].run(["ip", "-brief", "link"]).stdout.splitlines()
    assert [link.split()[0].partition("@")[0] for link in links] == ["lo", "eth0"]
    ping = "import socket, sys; socket.create_connection((sys.argv[1], 9), timeout=5)"
    # Nobody listens there: the other host refuses, and the way to elsewhere is unknown.
    assert "ConnectionRefused" in hosts[0].run(python(ping, hosts[1].address), check=False).stderr
    assert "unreachable" in hosts[0].run(python(ping, "192.0.2.1"), check=False).stderr


def test_torch_starts_in_a_host_and_finds_the_loopback(hosts: list[NetworkHost]):
    program = (
        "import socket, torch; "
        "s = socket.create_server(('127.0.0.1', 0)); "
        "c = socket.create_connection(s.getsockname()); "
        "print(torch.ones(3).sum().item()); c.close(); s.close()"
    )
    assert hosts[0].run(python(program)).stdout.strip() == "3.0"


def test_what_runs_in_a_host_ends_with_the_network():
    with Network(hosts=1) as network:
        sleeper = network.hosts[0].start(["sleep", "1000"])
    with sleeper:
        assert sleeper.wait(timeout=10) == -9
    assert left_over() == []


def test_a_network_is_removed_when_the_test_fails():
    with pytest.raises(KeyError), Network(hosts=1):
        raise KeyError
    assert left_over() == []


def test_the_remains_of_a_killed_test_are_removed_by_the_next():
    here = Path(__file__).parent
    pipe = subprocess.PIPE
    with subprocess.Popen(python(KILLED, here), stdin=pipe, stdout=pipe, text=True) as killed:
        assert said(killed) == "made"
        killed.kill()
    assert remains(killed.pid)
    remove_leftovers()
    assert not remains(killed.pid)


def test_the_network_of_a_living_process_stays():
    with Network(hosts=1) as network:
        remove_leftovers()
        assert network.hosts[0].run(["true"]).returncode == 0


def remains(pid: int) -> list[Path]:
    return list(Path("/run/netns").glob(f"offbeat-{pid}-*"))
