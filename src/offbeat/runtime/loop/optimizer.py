"""DistributedOptimizer: `step()` hands over `.grad` and resumes the worker."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ...bare import is_observed
from ...method import Method
from ...node import Node
from ...parameters import PiecewiseVector
from ...suspensions import GradientRequest
from ..compute import COPIED, EvaluationBuffer
from ..errors import RunError
from ..gradient_log import GradientLog
from ..memory import keep_freed_memory
from ..tasks import Task
from ..team import Team
from ..trained import Trained, changed_settings, overwrite, settings_of
from .consensus import common_model
from .joining import begin_alike, connected, require_possible
from .memories import memories, take_over
from .ranks import NOTICE
from .rendezvous import Rendezvous
from .saved import packed, unpacked
from .terms import Terms


class DistributedOptimizer(Optimizer):
    """An optimizer whose `step` is one step of a method among the ranks of the job.

    It shares its parameter groups with the user's optimizer, so learning-rate schedulers work on
    either. Use it as a context manager: leaving the block tells the others, serves them until
    they have left too, and loads the common model into the module.

    From then on this process keeps the memory that it frees, for its next tensors (`memory.py`).
    """

    _step_supports_amp_scaling = True
    """A GradScaler calls `step` also when gradients have overflowed here: others have to know."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        method: Method,
        *,
        scaler: GradScaler | None,
        clip_norm: float | None,
        seed: int,
        record: Path | None,
        timeout: float,
    ) -> None:
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm is {clip_norm:g}; it must be positive")
        if timeout <= 0:
            raise ValueError(f"timeout is {timeout:g}; it must be positive, in seconds")
        self._trained = Trained(module, optimizer)
        self._user = optimizer
        self._scaler = scaler
        self._clip_norm = clip_norm
        self.buffer = EvaluationBuffer(self._trained)
        keep_freed_memory()
        job = Rendezvous.of_job(timeout)
        self.rank, self.world_size = job.rank, job.size
        require_possible(method, self.world_size)
        self._current: tuple[Task, GradientRequest] | None = None
        self._ended = False
        self._settings = settings_of(optimizer)
        self._changes = 0
        self._scaled_steps = 0
        # The base class's constructor would wrap the groups anew; they stay the user's own.
        self.defaults = optimizer.defaults
        self.state = optimizer.state
        self.param_groups = optimizer.param_groups
        for hooks in ("step", "state_dict", "load_state_dict"):
            for when in ("pre", "post"):
                setattr(self, f"_optimizer_{hooks}_{when}_hooks", OrderedDict[int, Any]())
        self._patch_step_function()
        self._log: GradientLog | None = None
        terms = Terms.of(self._trained, optimizer, method, seed)
        self.host = connected(job, method, terms, record, timeout)
        try:
            self._begin(method, seed, record)
        except BaseException:
            self._abort()
            raise
        self._guard = optimizer.register_step_pre_hook(_refuse_own_step)

    # Beginning

    def _begin(self, method: Method, seed: int, record: Path | None) -> None:
        if record is not None:
            self._log = GradientLog(record, self.rank)
        begin_alike(self.host, self.buffer.flat, self._trained.constants())
        self._team = Team(
            self._trained.named, self._user, self.buffer, method, self.world_size, seed
        )
        if self._log is not None:
            self._log.begin(self.buffer.flat)
        for node in self._new_nodes():
            self.host.add(node)
        self._go()

    def _new_nodes(self) -> list[Node]:
        """The worker of this rank, and the servers that live on it."""
        placement = self.host.placement
        ranks = [rank for rank, place in enumerate(placement) if place == self.rank]
        return [self._team.node(rank, self.host) for rank in ranks]

    @property
    def node(self) -> Node:
        """This rank's worker."""
        return self.host.scheduler.nodes[self.rank]

    def _go(self) -> None:
        self.host.begin(time.monotonic_ns())
        self._next()

    # Stepping

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Hand over the gradients in `.grad`; returns when the worker asks for the next.

        Raises:
            RunError: the method cannot go on, here or because of another rank.
            ValueError: parameters were frozen, or parameter groups added.
        """
        if not is_observed(self):
            return self._step(closure)
        return self._observed_step() if closure is None else self._observed_step(closure)

    step.hooked = True  # pyright: ignore[reportFunctionMemberAccess]  # torch shall not do it again.

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._require_going_on("step()")
        assert self._current is not None
        self._user._opt_called = True  # pyright: ignore[reportAttributeAccessIssue]  # For schedulers on it.
        if self._skipped():
            return loss
        self._retune_if_changed()
        task, request = self._current
        gradient = self._gradient()
        self._current = None
        pieces = weakref.ref(gradient) if isinstance(gradient, PiecewiseVector) else None
        value = float("nan") if loss is None else float(torch.as_tensor(loss).detach())
        self.host.fulfil(task, request, gradient, value, self.host.elapsed)
        del gradient
        self._next()
        # The pieces are `.grad`, which the user's loop will write to again. Under the lock, for the
        # transport's thread may just be stepping who reads them.
        if pieces is not None:
            with self.host.lock:
                if (still_wanted := pieces()) is not None:
                    still_wanted.keep()
        return loss

    _observed_step = Optimizer.profile_hook_step(_step)

    def _require_going_on(self, what: str) -> None:
        if self._ended or self._current is None:
            raise RunError(f"{what} after the with block has ended, or after an error")

    def _skipped(self) -> bool:
        """Whether a GradScaler found gradients to have overflowed, here or where it matters.

        Ranks of a synchronous method skip together: each has to make the same number of steps.
        """
        found: Tensor | float | None = getattr(self, "found_inf", None)
        if found is None:
            return False
        overflow = bool(found)
        if not self.host.scheduler.method.synchronous:
            return overflow
        self._scaled_steps += 1
        with self._ending_on_error():
            anywhere = self.host.overflow_anywhere(self._scaled_steps, overflow)
        if anywhere and not overflow and self._scaler is not None:
            # From this its update() learns that the step was skipped.
            for own in self._scaler._found_inf_per_device(self).values():
                own.fill_(1.0)
        return anywhere

    def _gradient(self) -> PiecewiseVector | Tensor:
        """What is handed over: of scaled gradients unscaled, and clipped if so asked, (d,).

        If nothing is to be done to them, the pieces of large ones are the user's own `.grad`.
        """
        tensors, layout = self._trained.gradients(), self.buffer.layout
        scale: Tensor | None = getattr(self, "grad_scale", None)
        untouched = scale is None and self._clip_norm is None and self._log is None
        if untouched and self.buffer.flat.nbytes <= COPIED:
            return layout.flatten(tensors)
        gradient = PiecewiseVector(
            layout=layout, tensors=tensors, new=lambda: self.host.buffer(self.buffer.flat)
        )
        if untouched and gradient.can_stand:
            return gradient
        vector = gradient.dense()
        if scale is not None:
            # As GradScaler itself does it, to the bit.
            vector.mul_(scale.double().reciprocal().float())
        if self._clip_norm is not None:
            norm = torch.linalg.vector_norm(vector)
            vector.mul_((self._clip_norm / (norm + 1e-6)).clamp(max=1.0))
        if self._log is not None:
            self._log.append(vector)
        return vector

    def _retune_if_changed(self) -> None:
        """What a scheduler did to the user's groups holds for every optimizer of this rank."""
        settings = settings_of(self._user)
        if settings == self._settings:
            return
        if len(settings) != len(self._settings):
            raise ValueError(_NO_NEW_GROUPS)
        changed = changed_settings(self._settings, settings)
        self._settings = settings
        self._changes += 1
        if self._log is not None:
            self._log.retuned(changed)
        self.host.retune(changed, self._changes - 1)

    def _next(self) -> None:
        """Wait for the worker's next request and load its snapshot into the module."""
        host, began = self.host, time.monotonic()
        notice = min(NOTICE, host.timeout)
        due = notice
        while (asked := host.await_request(began + due - time.monotonic())) is None:
            with self._ending_on_error():
                host.require_alive()
                waited = time.monotonic() - began
                if waited < due:
                    continue  # A signal came.
                due += notice
                waits = "; ".join(host.status().waiting)
                if waited >= host.timeout:
                    raise RunError(f"rank {self.rank} has waited for {waited:.0f} s: {waits}")
            print(f"offbeat: rank {self.rank} has waited for {waited:.0f} s: {waits}", flush=True)
        self._current = asked
        snapshot = asked[1].snapshot
        self.buffer.hold(snapshot, again=snapshot is self.node.parameters)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for _, parameter in self._trained.named:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise ValueError(_NO_NEW_GROUPS)

    # Saving

    def state_dict(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """This rank's part of the job, for `torch.save`: parameters, optimizers, states, counts.

        A collective: every rank calls it after the same number of steps, and keeps its own part.
        The module's buffers and frozen parameters are in the module's own state_dict.

        Raises:
            RunError: a rank has left its loop, or does not come.
        """
        self._require_going_on("state_dict()")
        with self._ending_on_error(), self.host.standstill("state_dict()"):
            return packed(self.host, self._settings, settings_of(self._user), self._scaled_steps)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Go on where `state_dict` was called; the module gets the parameters of that moment.

        A collective: every rank calls it, with its own part.

        Raises:
            ValueError: the part is of another rank, method, model or number of ranks, or damaged;
                this rank is as it was.
            RunError: a rank has left its loop, or does not come.
        """
        self._require_going_on("load_state_dict()")
        if self._log is not None:
            raise ValueError("a recorded job cannot be resumed; leave record out")
        saved = unpacked(state_dict, self.host, len(self.param_groups))
        restored = self.host.restored(self._new_nodes(), saved)
        with self._ending_on_error(), self.host.standstill("load_state_dict()"):
            for group, settings in zip(self.param_groups, state_dict["param_groups"], strict=True):
                group.update(settings)
            self.host.replace(restored)
            # A scheduler may have changed them since the last step before they were saved.
            self.host.retune(state_dict["changed"], self._changes)
        self._settings = settings_of(self._user)
        self._scaled_steps = state_dict["scaled_steps"]
        self._go()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a distributed optimizer is connected to other ranks and cannot be copied or pickled; "
            "save what its state_dict() gives"
        )

    # The common model

    @contextlib.contextmanager
    def consensus(self) -> Generator[nn.Module]:
        """The module with the model that all ranks stand for; its own comes back after.

        A collective: every rank calls it after the same number of steps. Buffers do not travel:
        batch norm's statistics are this rank's, of its own parameters, until
        `offbeat.reestimate_statistics(model, batches)` estimates those of the common model.
        """
        self._require_going_on("consensus()")
        module = self._trained.whole
        buffers = [buffer.clone() for buffer in module.buffers()]
        with self._ending_on_error():
            common = common_model(self.host, "consensus()")
        try:
            with self.buffer.showing(common):
                yield module
        finally:
            for buffer, before in zip(module.buffers(), buffers, strict=True):
                overwrite(buffer, before)

    # The end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None or self._ended:
            self._abort()
            return
        with self._ending_on_error():
            self._ended = True
            self.host.require_alive()
            self.host.leave_loop()
            self.host.settle("the end")
            self.buffer.load(common_model(self.host, "the end"))
            found = memories(self.host)
            self.host.hang_up()
            take_over(self._user, self._trained.named, found)
        self._abort()

    @contextlib.contextmanager
    def _ending_on_error(self) -> Generator[None]:
        """What the ranks cannot settle ends this one's part, and shows as one line."""
        try:
            yield
        except RunError:
            self._abort()
            raise

    def _abort(self) -> None:
        self._ended = self.host.over = True
        self.host.finish()
        self.host.abort()
        if self._log is not None:
            self._log.close()
        if hasattr(self, "_guard"):
            self._guard.remove()


_NO_NEW_GROUPS = (
    "parameter groups cannot be added inside the block; add them before distribute(), or leave "
    "the block and call it again"
)


def _refuse_own_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    raise RunError(
        "this optimizer's step() would change this rank's copy only; call step() of the one that "
        "distribute() returned"
    )
