"""Coordinator: assembles, watches and ends one real run."""

from __future__ import annotations

import functools
import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..experiment import Experiment, to_config
from ..method import ModelLost
from ..runs import Run
from ..trace import Trace
from . import control
from .arrivals import Arrivals
from .checkpoint import Checkpoint, save_checkpoint
from .control import FIRST_AGENT
from .evaluations import Evaluations
from .host import Snapshot
from .keeping import Keeper
from .placement import Gathering, Placement
from .scheduler import RunError
from .seats import DEPARTED, TO_COME, Seat, latenesses, quiet, waits
from .spawning import require_sendable, uninterrupted
from .tickets import Tickets
from .world import Progress, World, divergence, require_same_layout

START_TIMEOUT = 120.0
"""Seconds for all processes to build their model and find each other."""
PATIENCE = 30.0
"""Seconds without a word from a process after which it counts as hung."""
FAREWELL = 8.0
"""Seconds that processes have to end by themselves."""
REASON = 2.0
"""Seconds to wait for the reason why a connection ended."""


class Coordinator:
    """One run: its processes here and, with a `gathering`, on other machines.

    Args:
        directory: where journals and checkpoints go; nowhere if None.
        checkpoint_every: seconds between checkpoints; there are none if None.
        resume: a checkpoint from which the run goes on.

    Raises:
        ValueError: in one line, for whatever cannot work.
    """

    def __init__(
        self,
        experiment: Experiment,
        directory: Path | None = None,
        progress: Progress | None = None,
        gathering: Gathering | None = None,
        checkpoint_every: float | None = None,
        resume: Checkpoint | None = None,
    ) -> None:
        _require_possible(experiment, alone=gathering is None)
        require_sendable(experiment)
        if checkpoint_every is not None and directory is None:
            raise ValueError("checkpoints need a directory to be written to")
        if checkpoint_every is not None and experiment.method.shares_parameters:
            raise ValueError(
                f"{type(experiment.method).__name__} cannot be checkpointed: its workers change "
                "parameters that they share at any time; leave --checkpoint out"
            )
        if resume is not None:
            resume.require_same(experiment)
        self.experiment = experiment
        self.world = World(experiment)
        self.gathering = gathering
        self.directory = directory
        self.resume = resume
        self.keeps = checkpoint_every is not None
        self.notes: list[str] = []
        self.stop_reason: str | None = None
        self.journals = None
        if directory is not None and not experiment.method.shares_parameters:
            self.journals = directory / "journals"
        hosts = self.world.hosts
        self.seats = [
            Seat(host=host, ranks=[rank for rank, at in enumerate(hosts) if at == host])
            for host in range(self.world.host_count())
        ]
        for seat in self.seats:
            if any(experiment.cluster.begins_absent(rank) for rank in seat.ranks):
                seat.gone = TO_COME
        self.evaluations = Evaluations(self.world, progress, self._tell)
        self.keeper = Keeper(
            every=checkpoint_every,
            synchronous=experiment.method.synchronous,
            tell=self._tell,
            write=self._write_checkpoint,
            note=self.notes.append,
        )
        self._began = 0
        self._faults = sorted(experiment.cluster.faults, key=lambda fault: fault.at)
        self._recoveries: list[tuple[float, int]] = []
        self._hear: dict[type, Callable[[Seat, Any], None]] = {
            control.Ready: self._ready,
            control.Connected: self._connected,
            control.Report: self._reported,
            control.Snapshots: lambda seat, word: self.evaluations.answered(seat.host, word),
            control.Captured: lambda seat, word: self.keeper.captured(seat.host, word),
            control.Restored: self._restored,
            control.Want: self._wanted,
            control.Failed: self._failed,
            control.Traced: self._traced,
            control.Done: self._done,
        }
        if resume is not None:
            self._go_on_from(resume)

    def run(self) -> Run:
        """Carry the run out; leaves no process and no file but the run directory's behind.

        Raises:
            OSError: the gathering's address is not this machine's, or is taken.
        """
        error: str | None = None
        self.placement = Placement(
            self.world,
            self.seats,
            self.journals,
            self.gathering,
            replaces=self.keeps,
            note=self.notes.append,
        )
        if self.journals is not None:
            shutil.rmtree(self.journals, ignore_errors=True)
            self.journals.mkdir(parents=True)
        self.arrivals = Arrivals(
            self,
            self.experiment.method,
            self.world.servers,
            self.seats,
            self.placement,
            self.keeper,
            self.evaluations,
            directory=self.directory if self.keeps else None,
            present=self._present,
            note=self.notes.append,
        )
        try:
            with self.placement.line:
                error = self._carry_out()
        finally:
            self.placement.close()
        return self._result(error)

    def _carry_out(self) -> str | None:
        error: str | None = None
        try:
            try:
                self._assemble()
                self._watch()
            except KeyboardInterrupt:
                self.stop_reason = "interrupted"
                self._tell(control.Stop())
            if self._began:
                self._collect()
        except RunError as failure:
            error, self.stop_reason = str(failure), "error"
        except KeyboardInterrupt:
            # A second one: whoever has not reported yet is not waited for.
            self.stop_reason = "interrupted"
        finally:
            with uninterrupted():
                self._end(error)
        return error

    # Who takes part

    def live(self) -> list[Seat]:
        """The members that take part."""
        return [seat for seat in self.seats if seat.gone is None and not seat.arriving]

    def is_quiet(self) -> bool:
        """Nobody computes, and every message sent has been received."""
        absent = {rank for seat in self.seats if seat.gone for rank in seat.ranks}
        return quiet(self.live(), absent)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return (time.monotonic_ns() - self._began) / 1e9

    # Beginning

    def _assemble(self) -> None:
        # Of a synchronous method everyone counts its own share.
        allowed = math.inf if self.experiment.quota is not None else self.experiment.gradients
        self.placement.begin(Tickets(allowed, 0 if self.resume is None else self.resume.tickets))
        patience = START_TIMEOUT if self.gathering is None else self.gathering.patience
        deadline = time.monotonic() + patience
        while self.placement.hosting.unplaced:
            self._listen(0.1)
            self._require_start()
            if time.monotonic() > deadline:
                raise RunError(self.placement.hosting.missing(patience))
        deadline = time.monotonic() + START_TIMEOUT
        self._await(lambda seat: bool(seat.addresses), deadline, "start")
        live = self.live()
        for seat in live:
            assert seat.layout is not None
            require_same_layout(self.world.layout, seat.layout, live[0].names, seat.names)
        for seat in live:
            saved = self.resume
            known = {} if saved is None else {rank: saved.node(rank) for rank in seat.ranks}
            self.placement.introduce(seat, known)
        self._await(lambda seat: seat.met, deadline, "find each other")
        elapsed = 0 if self.resume is None else round(1e9 * self.resume.seconds)
        self._began = time.monotonic_ns() - elapsed
        self.start()
        if self.resume is None:
            world = self.world
            begun = [
                Snapshot(rank, rank in world.servers, world.part(rank, world.initial), {})
                for rank in [*world.workers, *world.servers]
            ]
            self.evaluations.measure(0.0, begun, [])

    def start(self) -> None:
        """Let all live members begin."""
        elapsed = time.monotonic_ns() - self._began
        self._tell(control.Start(began=self._began, boot=control.boot(), elapsed=elapsed))

    def _go_on_from(self, checkpoint: Checkpoint) -> None:
        """What the coordinator itself remembers of the run that is resumed."""
        self.evaluations.go_back(checkpoint)
        for seat in self.seats:
            if not set(seat.ranks) & set(checkpoint.nodes) and seat.gone is None:
                seat.gone = DEPARTED
        self._faults = [fault for fault in self._faults if fault.at > checkpoint.seconds]
        self.notes.append(
            f"resumed from {checkpoint.path}, {checkpoint.seconds:.2f} s after the beginning"
        )

    def _await(self, done: Callable[[Seat], bool], deadline: float, what: str) -> None:
        while not all(done(seat) for seat in self.live()):
            self._listen(0.1)
            self._require_start()
            if time.monotonic() > deadline:
                late = ", ".join(seat.names for seat in self.live() if not done(seat))
                raise RunError(f"{late} did not {what} within {START_TIMEOUT:g} s")

    def _require_start(self) -> None:
        for seat in self.seats:
            departed_now = seat.gone not in (None, DEPARTED, TO_COME)
            if departed_now or seat.failed is not None:
                raise RunError(f"{seat.names} did not start: {seat.failed or seat.gone}")

    # Watching

    def _watch(self) -> None:
        """Until the budget is spent and all is quiet, or something fails."""
        while True:
            self._listen(0.02)
            self._stop_when_due()
            live = self.live()
            if not live:
                raise RunError("no process is left: " + "; ".join(self.notes))
            if any(seat.failed is not None and not seat.arriving for seat in self.seats):
                raise RunError(self._first_failure())
            self._bring_faults()
            self.arrivals.advance()
            if self.arrivals.busy:
                continue
            self._evaluate()
            self._require_heartbeats(live)
            self._keep()
            held = self.keeper.busy or any(seat.status and seat.status.paused for seat in live)
            if not held and self.is_quiet() and not self.evaluations.busy:
                if not self._may_end(live):
                    raise RunError(
                        f"deadlock at {self.seconds:.3g} s: every role waits and no message is on "
                        f"its way: {waits(live)}"
                    )
                if self.stop_reason is None:
                    self.stop_reason = "samples"
                return

    def _first_failure(self) -> str:
        """One line for what went wrong first; deaths, which may be heard of later, explain it."""
        first = next(seat for seat in self.seats if seat.failed is not None)
        patience = time.monotonic() + 0.5
        while not self.notes and time.monotonic() < patience:
            self._listen(0.05)
        return "; ".join([str(first.failed), *self.notes])

    def _may_end(self, live: Sequence[Seat]) -> bool:
        if self.stop_reason is not None:
            return True
        statuses = [seat.status for seat in live if seat.status is not None]
        if self.experiment.method.synchronous and any(status.stuck for status in statuses):
            # Each worker has its share, and none needs another any more.
            return False
        return any(status.parked for status in statuses)

    def _require_heartbeats(self, live: Sequence[Seat]) -> None:
        now = time.monotonic()
        for seat in live:
            if now - seat.heard > PATIENCE:
                others = waits(other for other in live if other is not seat)
                raise RunError(
                    f"{seat.names} has given no sign of life for {now - seat.heard:.0f} s; "
                    f"the others: {others or 'none'}"
                )

    def _bring_faults(self) -> None:
        while self._faults and self._faults[0].at <= self.seconds:
            fault = self._faults.pop(0)
            seat = next(s for s in self.seats if fault.rank in s.ranks)
            if fault.kind == "join":
                if self.stop_reason is None:
                    self.arrivals.join(fault.rank)
            elif seat.gone is not None:
                continue
            elif fault.kind == "crash":
                self.placement.kill(seat)
            elif fault.kind == "leave":
                self._send(seat, control.Leave())
            else:
                self._send(seat, control.Slow(factor=fault.factor))
                self._recoveries.append((fault.until, fault.rank))
        for until, rank in list(self._recoveries):
            if until <= self.seconds:
                self._recoveries.remove((until, rank))
                seat = next(s for s in self.seats if rank in s.ranks)
                self._send(seat, control.Slow(factor=1.0))

    def _stop_when_due(self) -> None:
        budget, metrics = self.experiment.budget, self.evaluations.metrics
        if budget.seconds is not None and self.seconds >= budget.seconds:
            self._stop("seconds")
        if budget.accuracy is not None and metrics and metrics[-1].accuracy >= budget.accuracy:
            self._stop("accuracy")

    def _stop(self, why: str) -> None:
        if self.stop_reason is None:
            self.stop_reason = why
            self._tell(control.Stop())

    def _evaluate(self) -> None:
        tickets = self.placement.tickets
        assert tickets is not None
        if self.stop_reason is None and not self.keeper.busy:
            self.evaluations.begin_if_due(tickets.taken, self.seconds)
        self.evaluations.measure_if_complete(self.live())

    # Checkpoints

    def _keep(self) -> None:
        """Hold the run if a checkpoint is due, or do what is next while it is held."""
        if not self.evaluations.busy and self.stop_reason is None:
            self.keeper.begin_if_due(self.seconds)
        if self.keeper.busy and self.is_quiet():
            self.keeper.all_quiet(self.live())
        self.keeper.use_if_complete(self.live())

    def _keep_last(self) -> None:
        """A checkpoint of the end, from which a run with a larger budget goes on."""
        if not self.keeps:
            return
        if not self.keeper.busy:
            self.keeper.begin()
        deadline = time.monotonic() + FAREWELL
        while self.keeper.busy and time.monotonic() < deadline:
            self._listen(0.02)
            self._keep()

    def _write_checkpoint(self, nodes: dict[int, bytes]) -> None:
        assert self.directory is not None
        save_checkpoint(self.directory, self._present(nodes), nodes)
        self.arrivals.replaced = 0

    def _present(self, nodes: Iterable[int]) -> Checkpoint:
        """Where the run stands, with the nodes of these ranks."""
        tickets = self.placement.tickets
        assert tickets is not None
        statuses = [seat.status for seat in self.live() if seat.status is not None]
        samples, steps, sent = self.evaluations.counts(statuses)
        return Checkpoint(
            experiment=to_config(self.experiment),
            samples=samples,
            seconds=self.seconds,
            tickets=tickets.taken,
            steps=steps,
            bytes=sent,
            metrics=tuple(self.evaluations.metrics),
            nodes=tuple(nodes),
        )

    # Talking

    def _tell(self, word: Any) -> None:
        for seat in self.live():
            self._send(seat, word)

    def _send(self, seat: Seat, word: Any) -> None:
        self.placement.line.send(seat.host, word)

    def _listen(self, timeout: float) -> None:
        """Hear what has come, waiting for something at most that many seconds."""
        for host, word in self.placement.line.hear(timeout):
            self._heed(host, word)
        for host, how in self.placement.spawner.ended().items():
            self.seats[host].ended = how
        now = time.monotonic()
        for seat in self.seats:
            if seat.is_over and seat.gone is None and not seat.arriving:
                since = now - (seat.unplugged or now)
                if seat.ended is not None or since > REASON:
                    self._depart(seat)

    def _heed(self, host: int, word: Any) -> None:
        if host >= FIRST_AGENT:
            for number, how in self.placement.hosting.heed(host, word):
                self.seats[number].ended = how
            return
        seat = self.seats[host]
        if word is None:
            seat.unplugged = time.monotonic()
        elif type(word) in self._hear:
            seat.heard = time.monotonic()
            self._hear[type(word)](seat, word)

    def _ready(self, seat: Seat, word: control.Ready) -> None:
        seat.addresses, seat.layout = word.addresses, word.layout

    def _connected(self, seat: Seat, word: control.Connected) -> None:
        seat.met = True

    def _restored(self, seat: Seat, word: control.Restored) -> None:
        seat.restored = True

    def _reported(self, seat: Seat, word: control.Report) -> None:
        seat.status = word.status

    def _failed(self, seat: Seat, word: control.Failed) -> None:
        seat.failed = word.text

    def _traced(self, seat: Seat, word: control.Traced) -> None:
        seat.trace = word.trace.trace()

    def _done(self, seat: Seat, word: control.Done) -> None:
        seat.snapshots = [held.snapshot() for held in word.nodes]
        seat.trace, seat.status = word.trace.trace(), word.status
        seat.punctuality = word.punctuality
        if self.stop_reason is None:
            # It leaves early; the others' connections stay open until all are done.
            self._send(seat, control.Close())

    def _wanted(self, seat: Seat, word: control.Want) -> None:
        tickets = self.placement.tickets
        assert tickets is not None
        granted = sum(tickets.take() for _ in range(word.count))
        self._send(seat, control.Grant(count=granted, last=granted < word.count))

    def _depart(self, seat: Seat) -> None:
        """Its connection has ended, and so has its process as far as can be known."""
        if seat.snapshots is not None and self.stop_reason is not None:
            return
        seat.gone = "left" if seat.snapshots is not None else seat.ended or "lost its connection"
        self.evaluations.departed(seat.status if seat.snapshots is None else None)
        if seat.failed is not None or not self._began:
            return
        kind = "server" if min(seat.ranks) in self.world.servers else "worker"
        self.notes.append(f"{seat.names} ({kind}) {seat.gone} at {self.seconds:.2f} s")
        crashed = seat.snapshots is None and self.stop_reason is None
        if crashed and self.arrivals.can_replace(seat):
            self.arrivals.replace(seat)

    # Ending

    def _collect(self) -> None:
        """Let everyone send its results home."""
        deadline = time.monotonic() + FAREWELL
        if self.stop_reason == "interrupted":
            while not self.is_quiet() and time.monotonic() < deadline:
                self._listen(0.02)
        self._keep_last()
        self._tell(control.Finish())
        deadline = time.monotonic() + FAREWELL
        while any(seat.snapshots is None for seat in self.live()):
            self._listen(0.05)
            if time.monotonic() > deadline:
                break
        self._tell(control.Close())

    def _end(self, error: str | None) -> None:
        if error is not None:
            # What was recorded is kept.
            self._tell(control.Finish())
            patience = time.monotonic() + 1.0
            while any(s.trace is None for s in self.live()) and time.monotonic() < patience:
                self._listen(0.02)
        for seat in self.seats:
            if seat.snapshots is None and seat.trace is None:
                self._send(seat, control.Abort())
        self._tell(control.Close())
        patience = FAREWELL if self._began and error is None else 1.0
        listen = functools.partial(self._listen, 0.02)
        self.placement.end(patience, listen)
        over = control.Over(stop=self.stop_reason or "finished", error=error, notes=self.notes)
        self.placement.dismiss(over, FAREWELL, listen)

    def _result(self, error: str | None) -> Run:
        present = [s for s in self.seats if s.snapshots is not None and s.gone is None]
        nodes = [snapshot for seat in present for snapshot in seat.snapshots or []]
        statuses = [seat.status for seat in present if seat.status is not None]
        trace = Trace()
        for seat in self.seats:
            if seat.trace is not None:
                trace.merge(seat.trace)
        seconds = float(trace.gradients["end_ns"].max(initial=0)) / 1e9
        vector = self.world.initial
        try:
            vector = self.experiment.method.model(nodes)
            self.evaluations.measure(seconds, nodes, statuses)
        except ModelLost as lost:
            if error is None and self._began and self.stop_reason != "interrupted":
                error = "; ".join([f"the model is lost: {lost}", *self.notes])
                self.stop_reason = "error"
        if error is None and (error := divergence(self.evaluations.metrics)) is not None:
            self.stop_reason = "error"
        return Run(
            experiment=self.experiment,
            mode="processes",
            metrics=self.evaluations.metrics,
            trace=trace,
            vector=vector.clone(),
            layout=self.world.layout,
            buffers=self.world.buffers(vector),
            seconds=seconds,
            stop=self.stop_reason or "finished",
            error=error,
            notes=[*self.world.notes, *self.notes, *latenesses(self.seats)],
        )


def _require_possible(experiment: Experiment, *, alone: bool) -> None:
    """Raise ValueError for what real runs cannot do, `alone` on this machine or not."""
    if experiment.method.shares_parameters and not alone:
        raise ValueError(
            f"the workers of {type(experiment.method).__name__} share memory, and so all run on "
            "one machine: leave --join and --nodes out, and start no ranks"
        )
    late = [fault.rank for fault in experiment.cluster.faults if fault.kind == "join"]
    if experiment.method.shares_parameters and late:
        raise ValueError(
            f"node {late[0]} joins late, which in a run of {type(experiment.method).__name__} only "
            "`simulate` can do; drop the fault"
        )
    if experiment.cluster.outages:
        raise ValueError(
            "cluster.outages part nodes of a simulated network; a real run cannot bring them "
            "about so far: drop them, or use `simulate`"
        )
