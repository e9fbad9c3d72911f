"""Coordinator: assembles, watches and ends one real run."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..experiment import Experiment, to_config
from ..runs import Run
from . import control
from .arrivals import Arrivals
from .assembly import START_TIMEOUT, assemble
from .checkpoint import Checkpoint, save_checkpoint
from .errors import NotResumed, RunError
from .evaluations import Evaluations
from .faults import Faults, still_to_come
from .journals import Journals
from .keeping import Keeper
from .outcome import outcome
from .placement import Gathering, Placement
from .reassembly import with_everyone
from .refusals import require_possible
from .replicas import with_whole_states
from .roster import Roster
from .seats import Seat, require_heartbeats, seats_of, waits
from .spawning import uninterrupted
from .status import Snapshot
from .tickets import Tickets
from .world import Progress, World

LOOK_SECONDS = 0.1
"""Between two looks at whether something is due, at most."""
PATIENCE = 30.0
"""Seconds without a word from a process after which it counts as hung, at the end too."""
FAREWELL = 8.0
"""Seconds that processes have to end by themselves."""


class Coordinator:
    """One run: its processes here and, with a `gathering`, on other machines.

    Args:
        directory: where journals and checkpoints go; nowhere if None.
        checkpoint_every: seconds between checkpoints; there are none if None.
        resume: a checkpoint from which the run goes on.

    Raises:
        ValueError: in one line, for whatever cannot work.
        OSError: the gathering's address is not this machine's, or is taken.
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
        require_possible(
            experiment,
            directory,
            checkpoint_every,
            resume,
            alone=gathering is None,
        )
        self.experiment = experiment
        self.world = World(experiment)
        departed: list[int] = []
        if resume is not None and gathering is not None and gathering.complete:
            there = resume.nodes
            resume = with_everyone(resume, self.world)
            departed = [rank for rank in resume.nodes if rank not in there]
        self.gathering = gathering
        self.directory = directory
        self.resume = resume
        self.keeps = checkpoint_every is not None
        self.notes: list[str] = []
        self.stop_reason: str | None = None
        self.journals = None
        if directory is not None and not experiment.method.shares_parameters:
            self.journals = Journals(directory / "journals")
        seats = seats_of(self.world, resume)
        self.placement = Placement(
            self.world,
            seats,
            self.journals and self.journals.folder,
            gathering,
            replaces=self.keeps,
            note=self.notes.append,
        )
        self.roster = Roster(
            seats,
            self.placement,
            {
                control.Snapshots: lambda seat, word: self.evaluations.answered(seat.host, word),
                control.Captured: lambda seat, word: self.keeper.captured(seat.host, word),
                control.Want: self._wanted,
                control.Done: self._done,
            },
            self._departed,
        )
        self.evaluations = Evaluations(self.world, progress, self.roster.tell)
        self.keeper = Keeper(
            every=checkpoint_every,
            method=experiment.method,
            tell=self.roster.tell,
            complete=self._completed,
            write=self._write_checkpoint,
            note=self.notes.append,
        )
        self.arrivals = Arrivals(
            self.roster,
            self.placement,
            self.keeper,
            self.evaluations,
            experiment.method,
            self.world.servers,
            directory=directory if self.keeps else None,
            present=self._present,
            start=self._start,
            note=self.notes.append,
        )
        plan = still_to_come(experiment.cluster, resume)
        self.faults = Faults(plan, self.roster, self.placement, self.arrivals.join)
        self._began = 0
        if resume is not None:
            self.evaluations.go_back(resume)
            self.notes.append(
                f"resumed from {resume.path}, {resume.seconds:.2f} s after the beginning"
            )
            self.notes += [f"node {rank} (worker) came back there" for rank in departed]

    def run(self) -> Run:
        """Carry the run out; leaves no process and no file but the run directory's behind.

        Raises:
            ValueError: in one line, why there cannot be journals.
            NotResumed, KeyboardInterrupt: it was to go on, and has not begun to.
        """
        try:
            with self.placement.line:
                if self.journals is not None:
                    self.journals.make()
                error = self._carry_out()
        finally:
            self.placement.close()
            if self.journals is not None and not self._began:
                self.journals.put_back()
        if self.resume is not None and not self._began:
            if error is None:
                raise KeyboardInterrupt
            raise NotResumed(error)
        return outcome(
            self.world,
            self.roster.seats,
            self.evaluations,
            stop=self.stop_reason or "finished",
            error=error,
            notes=self.notes,
            needs_model=bool(self._began) and self.stop_reason != "interrupted",
        )

    def _carry_out(self) -> str | None:
        error: str | None = None
        try:
            try:
                self._begin()
                self._watch()
            except KeyboardInterrupt:
                self.stop_reason = "interrupted"
                self.roster.tell(control.Stop())
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

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return (time.monotonic_ns() - self._began) / 1e9

    # Beginning

    def _begin(self) -> None:
        # Of a synchronous method everyone counts its own share.
        allowed = math.inf if self.experiment.quota is not None else self.experiment.gradients
        resume, gathering = self.resume, self.gathering
        tickets = Tickets(allowed, 0 if resume is None else resume.tickets)
        patience = START_TIMEOUT if gathering is None else gathering.patience
        assemble(self.world, self.roster, self.placement, tickets, resume, patience)
        elapsed = 0 if resume is None else round(1e9 * resume.seconds)
        self._began = time.monotonic_ns() - elapsed
        self._start()
        if self.journals is not None:
            self.journals.forget_earlier()
        if resume is None:
            world = self.world
            begun = [
                Snapshot(rank, rank in world.servers, world.part(rank, world.initial), {})
                for rank in [*world.workers, *world.servers]
            ]
            self.evaluations.measure(0.0, begun, [])

    def _start(self) -> None:
        """Let all live members begin."""
        elapsed = time.monotonic_ns() - self._began
        self.roster.tell(control.Start(began=self._began, boot=control.boot(), elapsed=elapsed))

    # Watching

    def _watch(self) -> None:
        """Until the budget is spent and all is quiet, or something fails."""
        while True:
            self.roster.listen(self._until_next_look)
            self._stop_when_due()
            live = self.roster.live()
            if not live:
                raise RunError("no process is left: " + "; ".join(self.notes))
            if any(seat.failed is not None and not seat.arriving for seat in self.roster.seats):
                raise RunError(self._first_failure())
            self.faults.bring(self.seconds, ending=self.stop_reason is not None)
            self.arrivals.advance()
            if self.arrivals.busy:
                continue
            self._evaluate()
            require_heartbeats(live, PATIENCE)
            held = self.keeper.busy or any(seat.status and seat.status.paused for seat in live)
            judging = self.evaluations.busy and not self._gives_no_copies(live)
            if not held and self.roster.is_quiet() and not judging:
                if not self._may_end(live):
                    raise RunError(
                        f"deadlock at {self.seconds:.3g} s: every role waits and no message is on "
                        f"its way: {waits(live)}"
                    )
                if self.stop_reason is None:
                    self.stop_reason = "samples"
                return
            # After that: one pause may be due as soon as another is over.
            self._keep()

    @property
    def _until_next_look(self) -> float:
        """Seconds, of what may be due; what is said is heard at once.

        On a machine whose cores all compute every look takes time from somebody, so it may be late
        by a hundredth of the run's age, though not for the end of the budget.
        """
        seconds, budget = self.seconds, self.experiment.budget.seconds
        left = math.inf if budget is None or seconds > budget else budget - seconds
        return min(LOOK_SECONDS, 0.02 + seconds / 100, left)

    def _gives_no_copies(self, live: Sequence[Seat]) -> bool:
        """Whether someone waits in the midst of a step on parameters that are kept once."""
        stuck = any(seat.status is not None and seat.status.stuck for seat in live)
        return stuck and self.placement.replica is not None

    def _first_failure(self) -> str:
        """One line for what went wrong first; deaths, which may be heard of later, explain it."""
        first = next(seat for seat in self.roster.seats if seat.failed is not None)
        patience = time.monotonic() + 0.5
        while not self.notes and time.monotonic() < patience:
            self.roster.listen(0.05)
        return "; ".join([str(first.failed), *self.notes])

    def _may_end(self, live: Sequence[Seat]) -> bool:
        if self.stop_reason is not None:
            return True
        statuses = [seat.status for seat in live if seat.status is not None]
        if self.experiment.method.synchronous and any(status.stuck for status in statuses):
            # Each worker has its share, and none needs another any more.
            return False
        return any(status.parked for status in statuses)

    def _stop_when_due(self) -> None:
        budget, metrics = self.experiment.budget, self.evaluations.metrics
        if budget.seconds is not None and self.seconds >= budget.seconds:
            self._stop("seconds")
        if budget.accuracy is not None and metrics and metrics[-1].accuracy >= budget.accuracy:
            self._stop("accuracy")

    def _stop(self, why: str) -> None:
        if self.stop_reason is None:
            self.stop_reason = why
            self.roster.tell(control.Stop())

    def _evaluate(self) -> None:
        tickets = self.placement.tickets
        assert tickets is not None
        if self.stop_reason is None and not self.keeper.busy:
            self.evaluations.begin_if_due(tickets.taken, self.seconds)
        self.evaluations.measure_if_complete(self.roster.live())

    # Checkpoints

    def _keep(self) -> None:
        """Hold the run if a checkpoint is due, or do what is next while it is held."""
        if not self.evaluations.busy and self.stop_reason is None:
            self.keeper.begin_if_due(self.seconds)
        if self.keeper.busy and self.roster.is_quiet():
            self.keeper.all_quiet(self.roster.live())
        self.keeper.use_if_complete(self.roster.live())

    def _keep_last(self) -> None:
        """A checkpoint of the end, from which a run with a larger budget goes on."""
        if not self.keeps:
            return
        if not self.keeper.busy:
            self.keeper.begin()
        deadline = time.monotonic() + FAREWELL
        while self.keeper.busy and time.monotonic() < deadline:
            self.roster.listen(0.02)
            self._keep()

    def _completed(self, nodes: dict[int, bytes]) -> dict[int, bytes]:
        return nodes if self.placement.replica is None else with_whole_states(nodes, self.world)

    def _write_checkpoint(self, nodes: dict[int, bytes]) -> None:
        assert self.directory is not None
        save_checkpoint(self.directory, self._present(nodes), nodes)
        self.arrivals.replaced = 0

    def _present(self, nodes: Iterable[int]) -> Checkpoint:
        """Where the run stands, with the nodes of these ranks."""
        statuses = [seat.status for seat in self.roster.live() if seat.status is not None]
        samples, steps, sent = self.evaluations.counts(statuses)
        return Checkpoint(
            experiment=to_config(self.experiment),
            samples=samples,
            seconds=self.seconds,
            # Not those that were taken: some lie in store, or were for what nobody computed.
            tickets=samples // self.world.problem.batch_size,
            steps=steps,
            bytes=sent,
            metrics=tuple(self.evaluations.metrics),
            nodes=tuple(nodes),
        )

    # What members say

    def _done(self, seat: Seat, word: control.Done) -> None:
        if self.stop_reason is None:
            # It leaves early; the others' connections stay open until all are done.
            self.roster.send(seat, control.Close())

    def _wanted(self, seat: Seat, word: control.Want) -> None:
        tickets = self.placement.tickets
        assert tickets is not None
        granted = sum(tickets.take() for _ in range(word.count))
        self.roster.send(seat, control.Grant(count=granted, last=granted < word.count))

    def _departed(self, seat: Seat) -> None:
        """Its connection has ended, and so has its process as far as can be known."""
        if seat.snapshots is not None and self.stop_reason is not None:
            return
        seat.gone = "left" if seat.snapshots is not None else seat.ended or "lost its connection"
        self.evaluations.departed(seat.status)
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
            while not self._is_quiet_or_failed() and time.monotonic() < deadline:
                self.roster.listen(0.02)
        self._keep_last()
        self.roster.tell(control.Finish())
        deadline = time.monotonic() + PATIENCE
        while any(s.snapshots is None and s.failed is None for s in self.roster.live()):
            self.roster.listen(0.05)
            if time.monotonic() > deadline:
                break
        self.roster.tell(control.Close())

    def _is_quiet_or_failed(self) -> bool:
        failed = any(seat.failed is not None for seat in self.roster.live())
        return failed or self.roster.is_quiet()

    def _end(self, error: str | None) -> None:
        if error is not None:
            # What was recorded is kept.
            self.roster.tell(control.Finish())
            patience = time.monotonic() + 1.0
            while any(s.trace is None for s in self.roster.live()) and time.monotonic() < patience:
                self.roster.listen(0.02)
        for seat in self.roster.seats:
            if seat.snapshots is None and seat.trace is None:
                self.roster.send(seat, control.Abort())
        self.roster.tell(control.Close())
        patience = FAREWELL if self._began and error is None else 1.0
        listen = functools.partial(self.roster.listen, 0.02)
        self.placement.end(patience, listen)
        over = control.Over(stop=self.stop_reason or "finished", error=error, notes=self.notes)
        self.placement.dismiss(over, FAREWELL, listen)
