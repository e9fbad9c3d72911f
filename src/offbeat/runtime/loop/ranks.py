"""One rank's host, and what it settles with the other ranks beside their nodes' messages."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...encoding import EncodingError
from ...method import Method
from ...node import Node
from ...suspensions import GradientRequest
from ..capture import CaptureError, capture, read_state, restore
from ..errors import RunError
from ..host import Host
from ..scheduler import Scheduler
from ..signals import DeferredSignals
from ..tasks import Task
from .rounds import Moment, Round, renumber, rewound
from .words import Answered, Counts, Farewell, Finished, Left, Overflow, Paused, Sent

T = TypeVar("T")
W = TypeVar("W")

NOTICE = 10.0
"""Seconds of waiting after which the program says what it waits for."""
PATIENCE = 10.0
"""Seconds for which a rank that has left its loop stays bound by averagings of its own."""
_MOMENT = 0.02
"""Seconds between two looks at what nobody announces."""


class RankGone(RunError):
    """A rank from which something was awaited has ended."""


class RankLeft(RunError):
    """A rank from which something was awaited has left its loop, and serves only."""


class RankHost(Host):
    """The host of a rank of a user's loop: its worker, and the servers that live on it."""

    def __init__(
        self,
        method: Method,
        rank: int,
        size: int,
        *,
        listen: Sequence[str],
        machines: Sequence[int],
        secret: bytes,
        journals: Path | None,
        timeout: float,
    ) -> None:
        self.rank = rank
        self.size = size
        self.timeout = timeout
        self.over = False
        """This rank's loop is over: no gradient comes from it."""
        self._pauses = 0
        self._parting: set[tuple[int, int]] = set()
        """Servers here, and ranks whose workers have left, which these are still to be told."""
        self._early_words: list[tuple[int, Any]] = []
        """Heard before the roles here began, who cannot have been told."""
        self._round: Round | None = None
        self._user = threading.current_thread()
        """In which the loop runs; the main one may end before."""
        super().__init__(
            method,
            [*range(size), *range(method.server_count)],
            rank,
            listen=listen,
            machines=machines,
            secret=secret,
            may_compute=lambda node, request: not self.over,
            on_failure=lambda error: None,
            on_tick=self._end_with_program,
            journals=journals,
            traces=False,
            on_word=self._on_word_of,
        )

    def _end_with_program(self) -> None:
        """A program that leaves no `with` block must not wait for the transport's thread."""
        if not (threading.main_thread().is_alive() or self._user.is_alive()):
            self.transport.abort()

    def await_request(self, timeout: float) -> tuple[Task, GradientRequest] | None:
        """As `next_request`, in the user's thread, which is the transport's meanwhile."""
        if (asked := self.request_at_once()) is not None:
            return asked
        with DeferredSignals(self.transport.wake) as arrived:
            return self.serve_request(timeout, until=lambda: arrived)

    def require_alive(self) -> None:
        """Raise RunError if this host has failed."""
        if self.failure is not None:
            raise RunError(str(self.failure)) from self.failure

    def absence(self, rank: int) -> str:
        return "has left its loop" if self.has_left(rank) else super().absence(rank)

    def begin(self, began: int) -> None:
        with self.lock:
            super().begin(began)
            early, self._early_words = self._early_words, []
            for rank, word in early:
                self._on_word_of(rank, word)

    # Words

    @property
    def others(self) -> list[int]:
        """The other ranks that are not gone."""
        return [r for r in range(self.size) if r != self.rank and r not in self.departed]

    def tell_others(self, word: Any) -> None:
        for rank in self.others:
            self.tell(rank, word)

    def wait(self, find: Callable[[], T | None], what: str, moment: float | None = None) -> T:
        """Wait until `find`, called under the lock, gives anything but None.

        It is asked again whenever this host changes, and every `moment` seconds if given. After
        a while the program says what it awaits.

        Raises:
            RunError: this host has failed, or `timeout` seconds have passed.
        """
        began = time.monotonic()
        notice = NOTICE
        self.transport.hand_over()
        with self.lock:
            while True:
                if (found := find()) is not None:
                    return found
                self.require_alive()
                waited = time.monotonic() - began
                if waited >= self.timeout:
                    raise RunError(
                        f"rank {self.rank} awaited {what} for {self.timeout:g} s in vain"
                    )
                if waited >= notice:
                    print(f"offbeat: rank {self.rank} awaits {what}, {waited:.0f} s", flush=True)
                    notice += NOTICE
                left = min(self.timeout, notice) - waited
                self.changed.wait(left if moment is None else moment)

    def hear(self, kind: type[W], rank: int) -> W | None:
        """Take out the oldest word of that kind from another rank, if one is here."""
        heard = self.heard.get(rank, ())
        for word in heard:
            if isinstance(word, kind):
                self.heard[rank].remove(word)
                return word
        return None

    def has_left(self, rank: int) -> bool:
        return any(isinstance(word, Left) for word in self.heard.get(rank, ()))

    def await_word(self, kind: type[W], rank: int, what: str) -> W:
        """The next word of that kind from a rank.

        Raises:
            RankGone: it has ended.
            RankLeft: it has left its loop, and this one's goes on.
            RunError: it did not come in time.
        """

        def found() -> W | None:
            word = self.hear(kind, rank)
            if word is None and not self.over and self.has_left(rank):
                raise RankLeft(f"rank {rank} left its loop; rank {self.rank} awaited {what}")
            if word is None and rank in self.departed:
                raise RankGone(f"rank {rank} is gone; rank {self.rank} awaited {what}")
            return word

        return self.wait(found, what)

    def bearing_loss(self) -> contextlib.AbstractContextManager[None]:
        """A rank may be gone, if the method goes on without it."""
        survives = self.scheduler.method.survives_loss
        return contextlib.suppress(RankGone) if survives else contextlib.nullcontext()

    def _on_word_of(self, rank: int, word: Any) -> None:
        """Under the lock, in the transport's thread."""
        if not self._running:
            self._early_words.append((rank, word))
        elif isinstance(word, Left) and not self.over:
            # Nobody here asks anything of it from now on; what it was asked before is still
            # answered, so whoever awaits that goes on awaiting it.
            for node in self.scheduler.nodes.values():
                if self.scheduler.method.synchronous:
                    node.rounds_of[rank] = word.rounds
                node.departed.add(rank)
                self.noticed(node, rank)
            self.tell(rank, Farewell(0))
        elif isinstance(word, Left):
            self._part(rank)
            self._drain()
        elif isinstance(word, Answered) and not self.over:
            for node in self.scheduler.nodes.values():
                if not node.is_server:
                    self.scheduler.lose(node.rank, rank)
            self._part(rank)
            self._drain()

    def _part(self, rank: int) -> None:
        """A rank's worker has left, and asks nothing more of the servers here."""
        nodes = self.scheduler.nodes.values()
        self._parting |= {(node.rank, rank) for node in nodes if node.is_server}

    def _drain(self) -> None:
        super()._drain()
        if self._parting and self._tell_servers():
            super()._drain()

    def _tell_servers(self) -> bool:
        """Tell the servers here who has left; whether any was told. Under the lock.

        One that cannot spare a worker is told when another one has begun a round with it: if all
        make equally many rounds, there is none.
        """
        scheduler, told = self.scheduler, set[tuple[int, int]]()
        for server, rank in self._parting:
            role = next((task for task in scheduler.tasks[server] if task.id == 0), None)
            fresh = role is not None and role.fresh
            at_rest = fresh and not scheduler.mailboxes[server].unread()
            if scheduler.method.survives_loss or not at_rest:
                told.add((server, rank))
        self._parting -= told
        for server, rank in sorted(told):
            scheduler.lose(server, rank)
        return bool(told)

    # A step that is skipped

    def overflow_anywhere(self, step: int, found: bool) -> bool:
        """Whether the scaled gradients of any rank have overflowed at this step.

        A collective of the ranks whose loops go on.
        """
        self.tell_others(Overflow(step, found))
        anywhere = found
        for rank in self.others:
            what = f"rank {rank}'s word on whether its scaled gradients overflowed"
            with contextlib.suppress(RankGone, RankLeft):  # Its absence is the method's affair.
                said = self.await_word(Overflow, rank, what)
                if said.step != step:
                    raise RunError(
                        f"rank {rank} is at its scaled step {said.step} and rank {self.rank} at "
                        f"{step}: use the GradScaler on all ranks alike"
                    )
                anywhere = anywhere or said.found
        return anywhere

    # Pausing

    @contextlib.contextmanager
    def standstill(self, what: str) -> Generator[None]:
        """A moment in which no rank steps and no message is under way.

        A collective: nobody goes on before all have come to the end of the block.

        Raises:
            RunError: a rank is gone or has left its loop.
        """
        for rank in range(self.size):
            if rank in self.departed or self.has_left(rank):
                raise RunError(f"{what} needs all ranks, and rank {rank} has left its loop")
        self.settle(what)
        yield
        self.tell_others(Paused(self._pauses))
        for rank in self.others:
            self.await_word(Paused, rank, f"rank {rank} in {what}")

    def settle(self, what: str) -> None:
        """Wait until no message of a node is on its way: averagings may still be answered.

        Nobody steps, so a node acts on messages only. Once the counts at both ends of every
        connection are equal, none is under way, and none will be.
        """
        self._pauses += 1
        known: dict[int, Counts] = {}

        def quiet() -> bool | None:
            own, told = self._counts(), known.get(self.rank)
            if told is None or not (
                own.sent.equal(told.sent) and own.received.equal(told.received)
            ):
                known[self.rank] = own
                self.tell_others(own)
            for rank in self.others:
                while (word := self.hear(Counts, rank)) is not None:
                    known[rank] = word
                if rank not in known or known[rank].pause != self._pauses:
                    return None
            live = [self.rank, *self.others]
            equal = all(known[a].sent[b] == known[b].received[a] for a in live for b in live)
            return True if equal else None

        self.wait(quiet, f"the last messages of the other ranks in {what}", moment=_MOMENT)

    def _counts(self) -> Counts:
        """Of this rank's nodes, with those of each rank."""
        counts = torch.zeros(2, self.size, dtype=torch.int64)
        for (_, to), count in self.records.sent.items():
            counts[0, self.placement[to]] += count
        for (source, _), count in self.records.received.items():
            counts[1, self.placement[source]] += count
        return Counts(self._pauses, counts[0], counts[1])

    def next_round(self, task: Task) -> bool:
        self._round = Round(self.scheduler, task, self.records.sent)
        return super().next_round(task)

    def request_gradient(self, task: Task, request: GradientRequest) -> None:
        if self._round is not None:
            self._round.asked = Moment.of(self.scheduler, task, self.records.sent)
        super().request_gradient(task, request)

    def capture(self) -> dict[int, bytes]:
        """Each node here, at the start of its present round; at a standstill, on every rank.

        Raises:
            RunError: the method does before its gradient what cannot be left out.
        """
        if not self.scheduler.method.synchronous:
            # Nobody counts another's rounds: what one has sent in a round that it gives up stays.
            return super().capture()
        assert self._round is not None
        own = self._round.sent_before_asking()
        bounds = torch.zeros(2, len(self.placement), dtype=torch.int64)
        for to, numbers in own.items():
            bounds[0, to], bounds[1, to] = numbers.start, numbers.stop
        self.tell_others(Sent(bounds[0], bounds[1]))
        sent = {self.rank: own}
        for rank in self.others:
            word = self.await_word(Sent, rank, f"rank {rank} in state_dict()")
            both = zip(word.first.tolist(), word.after.tolist(), strict=True)
            sent[rank] = {to: range(first, after) for to, (first, after) in enumerate(both)}
        captured: dict[int, bytes] = {}
        with self.lock:
            for rank in self.scheduler.nodes:
                of_worker = self._round if rank == self.rank else None
                with rewound(self.scheduler, rank, of_worker, sent):
                    captured[rank] = capture(self.scheduler, rank)
        return captured

    def restored(self, nodes: Sequence[Node], saved: Mapping[int, bytes]) -> Scheduler:
        """Other nodes in the saved states, for `replace`.

        Raises:
            CaptureError: a state cannot be read, or is of another model.
        """
        method = self.scheduler.method
        with self.lock:
            kinds = {kind for node in self.scheduler.nodes.values() for kind in node.states}
        scheduler = Scheduler(self, method)
        for node in nodes:
            scheduler.add(node)
            try:
                state = read_state(saved[node.rank], (*kinds, *method.messages))
            except EncodingError as error:
                raise CaptureError(f"the state is damaged: {error}") from error
            restore(scheduler, state)
        return scheduler

    def replace(self, scheduler: Scheduler) -> None:
        """Go on as other nodes, at a standstill; what others send waits until `begin`."""
        for rank, mailbox in scheduler.mailboxes.items():
            renumber(mailbox, rank, self.records.received)
        with self.lock:
            self._running = False
            self.scheduler.close()
            self.scheduler = scheduler
            self.requests.clear()
            self.computing = None

    # The end

    def leave_loop(self) -> None:
        """Tell the others, and serve them until all have left their loops too."""
        self.over = True
        self.tell_others(Left(self.scheduler.nodes[self.rank].round))
        self.stop()
        with self.lock:
            for rank in (self.rank, *filter(self.has_left, self.others)):
                self._part(rank)
            self._drain()
        began = time.monotonic()
        farewells: set[int] = set()

        def all_left() -> bool | None:
            farewells.update(r for r in self.others if self.hear(Farewell, r) is not None)
            bound = any(not task.is_role for task in self.scheduler.waiting())
            if not bound or time.monotonic() - began > PATIENCE:
                for rank in sorted(farewells):
                    self.tell(rank, Answered(0))
                farewells.clear()
            absent = [r for r in range(self.size) if r != self.rank and not self.has_left(r)]
            with self.bearing_loss():
                for rank in absent:
                    if rank in self.departed:
                        raise RankGone(
                            f"rank {rank} is gone; rank {self.rank} awaited that it leave its loop"
                        )
            return True if all(rank in self.departed for rank in absent) else None

        names = f"the {self.size - 1} other ranks" if self.size > 2 else f"rank {1 - self.rank}"
        self.wait(all_left, f"{names} to leave their loops", moment=_MOMENT)

    def hang_up(self) -> None:
        """End when nobody needs this rank any more."""
        self.tell_others(Finished(0))
        for rank in self.others:
            # Nobody hangs up before all have what they need; who is gone needs nothing.
            with contextlib.suppress(RunError):
                self.await_word(Finished, rank, f"rank {rank} to finish")
        self.finish()
        self.close()
