"""Machines that take part in many runs: a Python process on each host, which imports torch once.

with Network(hosts=2) as network, Machines(network.hosts) as machines:
    machines.begin(["--method", "ADPSGD"], Path("run"))
    machines.finish()
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from namespaces import NetworkHost

PORT = 29400

# It carries out the commands that it reads, one a line, and says how each ended.
MACHINE = """
import json, sys
from offbeat.cli import main
for line in sys.stdin:
    print("ended", main(json.loads(line)), flush=True)
"""


class Machines:
    """`offbeat run --join`, on all hosts at once; the first coordinates.

    Raises:
        RuntimeError: a run ended badly on one of them; with what it said.
    """

    def __init__(self, hosts: Sequence[NetworkHost]) -> None:
        self._meeting = hosts[0].address
        self._runs = 0
        self._stack = contextlib.ExitStack()
        environment = os.environ | {"OFFBEAT_SECRET": "a secret of these machines"}
        self._machines: list[subprocess.Popen[str]] = []
        for host in hosts:
            command = [sys.executable, "-c", MACHINE]
            said = {"stdin": subprocess.PIPE, "stderr": subprocess.STDOUT}
            machine = host.start(command, env=environment, **said)
            self._machines.append(self._stack.enter_context(machine))
            self._stack.callback(machine.kill)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def begin(self, options: Sequence[str], out: Path) -> None:
        """Let a run begin on all machines; its directory is the first one's."""
        self._runs += 1
        # A port of its own: connections of the last run may linger at the other.
        join = ["--join", f"{self._meeting}:{PORT + self._runs}", "--out", str(out)]
        for machine in self._machines:
            assert machine.stdin is not None
            machine.stdin.write(json.dumps(["run", *options, *join]) + "\n")
            machine.stdin.flush()

    def finish(self) -> None:
        """Wait until it has ended on all machines."""
        for machine in self._machines:
            assert machine.stdout is not None
            said: list[str] = []
            for line in machine.stdout:
                said.append(line)
                if line.startswith("ended "):
                    break
            if not said or said[-1] != "ended 0\n":
                raise RuntimeError("".join(said[-10:]) or "a machine is gone")
