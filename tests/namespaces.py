"""Hosts of a test: network namespaces joined by a switch, with lines as slow as one likes.

    with Network(hosts=2, rate="100mbit") as network:
        one, other = network.hosts
        server = one.start([sys.executable, "server.py", one.address])
        other.run([sys.executable, "client.py", one.address])
        one.down()  # The cable is pulled ...
        one.up()  # ... and put back.

Every host has a namespace with a loopback and `eth0`; the switch is a bridge in a namespace of its
own. Whatever runs in them is killed, and all of it removed, when the block is left; if the test
itself was killed, when the next network is made. Files, Unix sockets in files and processes are
those of the machine: only the network is apart. Needs root, `ip` and `tc` (iproute2).
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SUBNET = "10.231.0"
_NAME = re.compile(r"offbeat-(\d+)-(\d+)-\d+-\w+")
_NUMBERS = count()


@dataclass(frozen=True, kw_only=True, eq=False)
class NetworkHost:
    """A network namespace with one line to the switch.

    Args:
        namespace: its name, for `ip netns exec`.
        switch: the namespace of the switch.
        port: the switch's end of the line.
        address: IPv4.
    """

    namespace: str
    switch: str
    port: str
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` here; it becomes that command, by exec."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def run(self, command: Sequence[str], **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its output is captured. A failure raises."""
        defaults = {"check": True, "capture_output": True, "text": True, "timeout": 120}
        return subprocess.run(self.command(command), **(defaults | settings))

    def start(self, command: Sequence[str], **settings: Any) -> subprocess.Popen[str]:
        """Start a command; its output can be read from pipes, as text.

        It is in the namespace when this returns, or has ended: who leaves the network right away
        finds it there.
        """
        pipe = subprocess.PIPE
        defaults = {"stdout": pipe, "stderr": pipe, "text": True}
        process = subprocess.Popen(self.command(command), **(defaults | settings))
        own = os.stat(f"/run/netns/{self.namespace}").st_ino
        while process.poll() is None and os.stat(f"/proc/{process.pid}/ns/net").st_ino != own:
            time.sleep(0.001)
        return process

    def down(self) -> None:
        """Pull the cable at the switch: nothing gets through, and no connection ends by it."""
        ip("-n", self.switch, "link", "set", self.port, "down")

    def up(self) -> None:
        ip("-n", self.switch, "link", "set", self.port, "up")


class Network:
    """Hosts on one switch, as a context manager.

    Args:
        hosts: how many.
        rate: of each line in each direction, in `tc`'s words, such as "100mbit"; unlimited if None.
        delay: one way, such as "5ms", half of it on each line passed; needs `netem` in the kernel.
    """

    def __init__(
        self, hosts: int = 2, *, rate: str | None = None, delay: str | None = None
    ) -> None:
        remove_leftovers()
        self._prefix = f"offbeat-{os.getpid()}-{_started(os.getpid())}-{next(_NUMBERS)}"
        self.switch = f"{self._prefix}-switch"
        self.hosts = [
            NetworkHost(
                namespace=f"{self._prefix}-{index}",
                switch=self.switch,
                port=f"port{index}",
                address=f"{SUBNET}.{index + 1}",
            )
            for index in range(hosts)
        ]
        try:
            self._build(rate, delay)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _build(self, rate: str | None, delay: str | None) -> None:
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.switch, "link", "set", "bridge", "up")
        for host in self.hosts:
            own = host.namespace
            ip("netns", "add", own)
            ends = ["name", host.port, "netns", self.switch, "type", "veth", "peer"]
            ip("link", "add", *ends, "name", "eth0", "netns", own)
            ip("-n", self.switch, "link", "set", host.port, "master", "bridge", "up")
            ip("-n", own, "address", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", own, "link", "set", "lo", "up")
            ip("-n", own, "link", "set", "eth0", "up")
            for namespace, device in [(own, "eth0"), (self.switch, host.port)]:
                _slow_down(namespace, device, rate, delay)

    def close(self) -> None:
        """Kill what runs in the hosts, and remove them."""
        for namespace in [host.namespace for host in self.hosts] + [self.switch]:
            _remove(namespace)


def _slow_down(namespace: str, device: str, rate: str | None, delay: str | None) -> None:
    """Bound what the device sends."""
    if delay is not None:
        amount = re.fullmatch(r"([\d.]+)([a-z]+)", delay)
        assert amount is not None, delay
        half = f"{float(amount[1]) / 2:g}{amount[2]}"
        limit = ["rate", rate] if rate is not None else []
        tc(namespace, "add", "dev", device, "root", "netem", "delay", half, *limit)
    elif rate is not None:
        # A burst of more than a tenth of a second's bytes would hide the rate from short tests.
        queue = ["burst", "64kb", "latency", "100ms"]
        tc(namespace, "add", "dev", device, "root", "tbf", "rate", rate, *queue)


def remove_leftovers() -> None:
    """Remove the hosts of processes that have ended without removing them."""
    for path in _named():
        named = _NAME.fullmatch(path.name)
        if named is not None and _started(int(named[1])) != int(named[2]):
            _remove(path.name)


def left_over() -> list[str]:
    """Namespaces that this process has made and not removed."""
    own = f"offbeat-{os.getpid()}-"
    return [path.name for path in _named() if path.name.startswith(own)]


@functools.cache
def skip_reason(*, delay: bool = False) -> str | None:
    """Why there can be no such networks here; None if there can be."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"there is no {program} (iproute2)"
    try:
        with Network(hosts=1, rate="100mbit", delay="2ms" if delay else None):
            return None
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` failed: {' '.join(error.stderr.split())}"


def ip(*arguments: str) -> str:
    command = ["ip", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def tc(namespace: str, *arguments: str) -> None:
    command = ["tc", "-n", namespace, "qdisc", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)


def _named() -> list[Path]:
    folder = Path("/run/netns")
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _remove(namespace: str) -> None:
    """Kill what runs in a namespace, and remove it with its devices; nothing if it is gone."""
    with contextlib.suppress(subprocess.CalledProcessError):
        # A namespace lives as long as a process in it does; what forks while it is killed is
        # found the next time.
        while pids := ip("netns", "pids", namespace).split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
                    _reap(int(pid))
        ip("netns", "delete", namespace)


def _reap(pid: int) -> None:
    """Wait for a killed process; a child of this one stays for whoever holds it to wait for."""
    while (state := _state(pid)) is not None and state != "Z":
        time.sleep(0.002)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; none if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _state(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[0] if fields else None


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot: a number given again has another."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None
