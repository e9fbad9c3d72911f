"""The user's own training loop: `optimizer.step()` hands over `.grad` and resumes the worker."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.optim import Optimizer

from ..messages import message
from ..method import Method
from ..node import GradientRequest, Node
from ..parameters import UNUSABLE, Layout
from .compute import EvaluationBuffer
from .gradient_log import GradientLog
from .host import Host, Snapshot
from .processes import require_same_layout
from .scheduler import RunError, Task
from .team import Team

TIMEOUT = 300.0
"""Seconds to wait for the others before giving up."""
NOTICE = 10.0
"""Seconds of waiting after which the program says what it waits for."""


@message
class Start:
    """What every rank begins with: rank 0's parameters."""

    parameters: Tensor  # (d,)


@message
class Left:
    """The sender's loop is over; it goes on to serve the others until theirs are."""

    steps: int


@message
class Counts:
    """The messages between nodes that the sender, whose loop is over, has had so far."""

    sent: Tensor  # (ranks,) int64, to each
    received: Tensor  # (ranks,) int64, from each


@message
class Finished:
    """The sender has all it needs of the others."""

    steps: int


@message
class Copy:
    """A node's parameters and the numbers of its states, for `consensus`."""

    parameters: Tensor  # (d,)
    numbers: Tensor  # (m,) float64
    rank: int


class RankGone(RunError):
    """A rank from which something was awaited has ended."""


class DistributedOptimizer(Optimizer):
    """An optimizer whose `step` is one step of a method among the ranks of the job.

    It shares its parameter groups with the user's optimizer, so learning-rate schedulers work on
    either. Use it as a context manager: leaving the block tells the others, serves them until
    they have left too, and loads the common model into the module.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        method: Method,
        *,
        clip_norm: float | None,
        seed: int,
        record: Path | None,
        timeout: float,
    ) -> None:
        name = type(optimizer).__name__
        if name in UNUSABLE:
            raise ValueError(f"optimizer {name} cannot be used: {UNUSABLE[name]}")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm is {clip_norm:g}; it must be positive")
        self._module = module
        self._user = optimizer
        self._clip_norm = clip_norm
        self._timeout = timeout
        self._named = list(module.named_parameters())
        self._require_all_held(optimizer)
        self.buffer = EvaluationBuffer(module)
        store, self.rank, self.world_size = _rendezvous(timeout)
        method.validate(self.world_size)
        if method.chooses_samples:
            raise ValueError(
                f"{type(method).__name__} chooses the samples of each gradient, which the user's "
                "own loop does itself; use a method that leaves them to the loop"
            )
        self._places = [*range(self.world_size), *range(method.server_count)]
        if method.server_count > self.world_size:
            raise ValueError(
                f"{method.server_count} servers need as many ranks to live on; there are "
                f"{self.world_size}"
            )
        if record is not None:
            record.mkdir(parents=True, exist_ok=True)
        self._log = None if record is None else GradientLog(record, self.rank)
        self._current: tuple[Task, GradientRequest] | None = None
        self._over = False
        self._settings = _settings(optimizer)
        self._changes = 0
        secret = _share(store, "secret", secrets.token_bytes(32) if self.rank == 0 else None)
        folder = Path(tempfile.mkdtemp(prefix=f"offbeat-{os.getpid()}-", dir="/tmp"))
        try:
            self.host = Host(
                method,
                self._places,
                self.rank,
                listen=f"unix:{folder / 'socket'}",
                secret=secret,
                may_compute=lambda node, request: not self._over,
                on_failure=lambda error: None,
                on_tick=self._end_with_program,
                journals=record,
                on_word=self._on_word,
            )
            try:
                self._meet(store)
            except BaseException:
                self._abort()
                raise
        finally:
            # All are connected: no rank that is killed from here on leaves a file.
            shutil.rmtree(folder, ignore_errors=True)
        try:
            self._join(method, seed)
        except BaseException:
            self._abort()
            raise
        # The base class's constructor would wrap the groups anew; they stay the user's own.
        self.defaults = optimizer.defaults
        self.state = optimizer.state
        self.param_groups = optimizer.param_groups
        self._optimizer_step_pre_hooks: dict[int, Any] = {}
        self._optimizer_step_post_hooks: dict[int, Any] = {}

    # Beginning

    def _require_all_held(self, optimizer: Optimizer) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self._named:
            if id(parameter) not in held:
                raise ValueError(
                    f"parameter {name} is not in the optimizer; distribute() needs an optimizer "
                    "of all of the module's parameters"
                )

    def _meet(self, store: Store | None) -> None:
        """Connect to the other ranks, if all hold the same model."""
        layout = self.buffer.layout
        description = "\n".join(
            f"{name} {' '.join(map(str, shape))}"
            for name, shape in zip(layout.names, layout.shapes, strict=True)
        )
        first = _share(store, "layout", description.encode() if self.rank == 0 else None)
        if store is None:
            return
        try:
            require_same_layout(_layout(first.decode()), layout, "rank 0", f"rank {self.rank}")
        except RunError as error:
            # The others wait for an address; they are told why none comes.
            store.set(f"address/{self.rank}", f"{_REFUSAL}{error}")
            raise
        store.set(f"address/{self.rank}", self.host.transport.address)
        addresses = {rank: store.get(f"address/{rank}").decode() for rank in range(self.world_size)}
        for address in addresses.values():
            if address.startswith(_REFUSAL):
                raise RunError(address.removeprefix(_REFUSAL))
        self.host.connect(addresses, self._timeout)

    def _join(self, method: Method, seed: int) -> None:
        """Begin where rank 0 is."""
        self._agree_on_start()
        team = Team(self._named, self._user, self.buffer, method, self.world_size, seed)
        if self._log is not None:
            self._log.begin(self.buffer.flat)
        self.node = team.node(self.rank, self.host)
        for rank, place in enumerate(self._places):
            if place == self.rank:
                self.host.add(self.node if rank == self.rank else team.node(rank, self.host))
        self.host.begin(time.monotonic_ns())
        self._next()

    def _agree_on_start(self) -> None:
        """Everyone begins at rank 0's parameters."""
        if self.rank == 0:
            self._tell_others(Start(self.buffer.flat))
        else:
            start = self._await(Start, 0, "rank 0's parameters")
            self.buffer.flat.copy_(start.parameters)

    def _on_word(self, rank: int, word: Any) -> None:
        if isinstance(word, Left) and not self._over:
            self.host.retire(rank)

    def _end_with_program(self) -> None:
        """A program that leaves no `with` block must not wait for the transport's thread."""
        if not threading.main_thread().is_alive():
            self.host.transport.abort()

    def _tell_others(self, word: Any) -> None:
        for rank in range(self.world_size):
            if rank != self.rank and rank not in self.host.departed:
                self.host.tell(rank, word)

    def _await(self, kind: type, source: int, what: str) -> Any:
        """The next word of that kind from another rank."""
        host = self.host
        deadline = time.monotonic() + self._timeout
        with host.lock:
            while True:
                heard = host.heard.get(source, ())
                for word in heard:
                    if isinstance(word, kind):
                        host.heard[source].remove(word)
                        return word
                if host.failure is not None:
                    raise RunError(str(host.failure)) from host.failure
                if not self._over and any(isinstance(word, Left) for word in heard):
                    raise RunError(f"rank {source} left its loop; rank {self.rank} awaited {what}")
                if source in host.departed:
                    raise RankGone(f"rank {source} is gone; rank {self.rank} awaited {what}")
                if not host.changed.wait(max(0.0, deadline - time.monotonic())):
                    raise RunError(
                        f"rank {self.rank} awaited {what} for {self._timeout:g} s in vain"
                    )

    # Stepping

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Hand over the gradients in `.grad`; returns when the worker asks for the next.

        Raises:
            RunError: the method cannot go on, here or because of another rank.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._over or self._current is None:
            raise RunError("step() after the with block has ended, or after an error")
        self._retune_if_changed()
        task, request = self._current
        self._current = None
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in self._named]
        vector = self.buffer.layout.flatten(gradients)
        if self._clip_norm is not None:
            norm = torch.linalg.vector_norm(vector)
            vector.mul_((self._clip_norm / (norm + 1e-6)).clamp(max=1.0))
        if self._log is not None:
            self._log.append(vector)
        value = float("nan") if loss is None else float(loss)
        self.host.fulfil(task, request, vector, value, self.host.elapsed)
        self._next()
        return loss

    def _retune_if_changed(self) -> None:
        """What a scheduler did to the user's groups holds for every optimizer of this rank."""
        settings = _settings(self._user)
        if settings != self._settings:
            self._settings = settings
            self._changes += 1
            if self._log is not None:
                self._log.retuned(settings)
            self.host.retune(settings, self._changes - 1)

    def _next(self) -> None:
        """Wait for the worker's next request and load its snapshot into the module."""
        waited = 0.0
        notice = min(NOTICE, self._timeout)
        while (asked := self.host.next_request(notice)) is None:
            self._raise_failure()
            waited += notice
            waits = "; ".join(self.host.status().waiting)
            if waited >= self._timeout:
                raise RunError(f"rank {self.rank} has waited for {waited:.0f} s: {waits}")
            print(f"offbeat: rank {self.rank} has waited for {waited:.0f} s: {waits}", flush=True)
        self._current = asked
        self.buffer.flat.copy_(asked[1].snapshot)

    def _raise_failure(self) -> None:
        if self.host.failure is not None:
            error = self.host.failure
            self._abort()
            raise RunError(str(error)) from error

    def zero_grad(self, set_to_none: bool = True) -> None:
        for _, parameter in self._named:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    # The common model

    @contextlib.contextmanager
    def consensus(self) -> Generator[nn.Module]:
        """The module with the model that all ranks stand for; its own comes back after.

        A collective: every rank calls it after the same number of steps. Buffers do not travel:
        batch norm's statistics are this rank's, of its own parameters, until
        `offbeat.reestimate_statistics(model, batches)` estimates those of the common model.
        """
        kept = self.buffer.flat.clone()
        buffers = [buffer.clone() for buffer in self._module.buffers()]
        self.buffer.flat.copy_(self._common_model())
        try:
            yield self._module
        finally:
            self.buffer.flat.copy_(kept)
            for buffer, before in zip(self._module.buffers(), buffers, strict=True):
                buffer.copy_(before)

    def _common_model(self) -> Tensor:
        host = self.host
        with host.lock:
            own = [Snapshot.of(node) for node in host.scheduler.nodes.values()]
        copies = {snapshot.rank: snapshot for snapshot in own}
        for snapshot in own:
            self._tell_others(Copy(snapshot.parameters, _numbers(snapshot), snapshot.rank))
        for rank in range(self.world_size):
            if rank == self.rank or rank in host.departed:
                continue
            with self._bearing_loss():
                for _ in range(self._places.count(rank)):
                    received = self._await(Copy, rank, f"rank {rank}'s copy for consensus()")
                    copies[received.rank] = _snapshot(received, self.node)
        return host.scheduler.method.model([copies[rank] for rank in sorted(copies)])

    # The end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None or self.host.failure is not None:
            self._abort()
            return
        try:
            self._leave()
        finally:
            self._abort()

    def _leave(self) -> None:
        """Tell the others, serve them until all have left, and take the common model."""
        host = self.host
        self._over = True
        self._tell_others(Left(self.node.requests))
        host.stop()
        others = [rank for rank in range(self.world_size) if rank != self.rank]
        for rank in others:
            if rank not in host.departed:
                with self._bearing_loss():
                    self._await(Left, rank, f"rank {rank} to leave its loop")
                self._raise_failure()
        self._settle()
        self.buffer.flat.copy_(self._common_model())
        self._tell_others(Finished(self.node.requests))
        for rank in others:
            # Nobody hangs up before all have what they need; who is gone needs nothing.
            with contextlib.suppress(RunError):
                self._await(Finished, rank, f"rank {rank} to finish")
        host.finish()
        host.close()

    def _bearing_loss(self) -> contextlib.AbstractContextManager[None]:
        """A rank may be gone, if the method goes on without it."""
        survives = self.host.scheduler.method.survives_loss
        return contextlib.suppress(RankGone) if survives else contextlib.nullcontext()

    def _settle(self) -> None:
        """Wait until no message of a node is on its way: averagings may still be answered.

        Nobody's loop goes on, so a node acts on messages only. Once the counts at both ends of
        every connection are equal, none is under way, and none will be.
        """
        host, told = self.host, None
        known: dict[int, Counts] = {}
        deadline = time.monotonic() + self._timeout
        while True:
            with host.lock:
                own = self._counts()
                known[self.rank] = own
                for rank, heard in host.heard.items():
                    for word in [word for word in heard if isinstance(word, Counts)]:
                        heard.remove(word)
                        known[rank] = word
                live = [r for r in range(self.world_size) if r not in host.departed]
            if told is None or not (
                own.sent.equal(told.sent) and own.received.equal(told.received)
            ):
                self._tell_others(own)
                told = own
            if all(r in known for r in live) and all(
                known[a].sent[b] == known[b].received[a] for a in live for b in live
            ):
                return
            self._raise_failure()
            if time.monotonic() > deadline:
                raise RunError(f"rank {self.rank} awaited the last messages in vain")
            with host.lock:
                host.changed.wait(0.01)

    def _counts(self) -> Counts:
        """Of this rank's nodes, with those of each rank."""
        counts = torch.zeros(2, self.world_size, dtype=torch.int64)
        for (_, to), count in self.host.sent.items():
            counts[0, self._places[to]] += count
        for (source, _), count in self.host.received.items():
            counts[1, self._places[source]] += count
        return Counts(counts[0], counts[1])

    def _abort(self) -> None:
        self._over = True
        self.host.finish()
        self.host.abort()
        if self._log is not None:
            self._log.close()


def distribute(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    method: Method,
    clip_norm: float | None = None,
    seed: int = 0,
    record: str | Path | None = None,
    timeout: float = TIMEOUT,
) -> DistributedOptimizer:
    """Train `model` by a method among the ranks of this job, inside the user's own loop.

    with offbeat.distribute(model, optimizer, method=ADPSGD()) as optimizer:
        for x, y in loader:
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    Ranks find each other as torchrun tells them to (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT);
    without these the process is the only one. They must be on one machine so far. All begin at
    rank 0's parameters. Servers live on the workers' ranks. After the block the model holds the
    common parameters; with batch norm call `offbeat.reestimate_statistics(model, batches)` before
    it is evaluated, for its statistics are still the rank's own.

    Args:
        model: its parameters become views of a buffer into which each step's snapshot is loaded.
        optimizer: of all of the model's parameters; it becomes the inner optimizer.
        method: what happens at each step.
        clip_norm: largest norm of a rank's gradient.
        seed: of the method's own random choices.
        record: a folder for journals and gradients, for `replay`.
        timeout: seconds to wait for others before giving up.

    Raises:
        ValueError: what was passed cannot work.
        RunError: the ranks' models differ, or the others did not come.
    """
    folder = None if record is None else Path(record)
    return DistributedOptimizer(
        model,
        optimizer,
        method,
        clip_norm=clip_norm,
        seed=seed,
        record=folder,
        timeout=timeout,
    )


_STORES: list[tuple[Store, int, int]] = []
"""The job's rendezvous, once met: there is one for each process, as torchrun's is."""
_USES = itertools.count()
_REFUSAL = "refused: "
"""Begins what a rank that cannot take part says in place of its address."""


def _settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The plain hyper-parameters of each parameter group."""
    return [
        {
            key: value
            for key, value in group.items()
            if isinstance(value, bool | int | float | tuple) or value is None
        }
        for group in optimizer.param_groups
    ]


def _rendezvous(timeout: float) -> tuple[Store | None, int, int]:
    from datetime import timedelta

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None, 0, 1
    if not _STORES:
        _STORES.append(next(rendezvous("env://", timeout=timedelta(seconds=timeout))))
    store, rank, size = _STORES[0]
    # Every use of `distribute` in a job has keys of its own.
    return PrefixStore(f"offbeat/{next(_USES)}", store), rank, size


def _share(store: Store | None, key: str, value: bytes | None) -> bytes:
    """Rank 0's value, on every rank."""
    if store is None:
        assert value is not None
        return value
    if value is not None:
        store.set(key, value)  # pyright: ignore[reportArgumentType]
    return store.get(key)


def _layout(description: str) -> Layout:
    names: list[str] = []
    shapes: list[tuple[int, ...]] = []
    for line in description.splitlines():
        name, *shape = line.split(" ")
        names.append(name)
        shapes.append(tuple(int(extent) for extent in shape if extent))
    return Layout(tuple(names), tuple(shapes))


def _numbers(snapshot: Snapshot) -> Tensor:
    """The number fields of all states, by state name and field, (m,) float64."""
    values = [
        float(getattr(state, f.name))
        for _, state in _sorted_states(snapshot.states)
        for f in fields(state)
        if isinstance(getattr(state, f.name), int | float)
    ]
    return torch.tensor(values, dtype=torch.float64)


def _snapshot(received: Copy, like: Node) -> Snapshot:
    """The copy of another node, whose states are of the types of this rank's."""
    is_server = received.rank in like.servers
    states: dict[type, Any] = {}
    values = iter(received.numbers.tolist())
    for state_type, state in _sorted_states(like.states):
        if is_server:
            break
        states[state_type] = made = state_type()
        for f in fields(state):
            if isinstance(getattr(state, f.name), int | float):
                setattr(made, f.name, type(getattr(state, f.name))(next(values)))
    return Snapshot(received.rank, is_server, received.parameters, states)


def _sorted_states(states: dict[type, Any]) -> list[tuple[type, Any]]:
    return sorted(states.items(), key=lambda item: item[0].__qualname__)
