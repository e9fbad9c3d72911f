"""Outcome: the run that its processes have brought home."""

from __future__ import annotations

from collections.abc import Sequence

from ..method import ModelLost
from ..runs import Run
from ..trace import Trace
from .evaluations import Evaluations
from .seats import Seat, latenesses
from .world import World, divergence


def outcome(
    world: World,
    seats: Sequence[Seat],
    evaluations: Evaluations,
    *,
    stop: str,
    error: str | None,
    notes: Sequence[str],
    needs_model: bool,
) -> Run:
    """What those who are still there hold, and what all have recorded.

    Args:
        needs_model: whether it is an error that the model is lost.
    """
    present = [seat for seat in seats if seat.snapshots is not None and seat.gone is None]
    nodes = [snapshot for seat in present for snapshot in seat.snapshots or []]
    statuses = [seat.status for seat in present if seat.status is not None]
    trace = Trace()
    for seat in seats:
        if seat.trace is not None:
            trace.merge(seat.trace)
    seconds = float(trace.gradients["end_ns"].max(initial=0)) / 1e9
    vector = world.initial
    try:
        vector = world.experiment.method.model(nodes)
        evaluations.measure(seconds, nodes, statuses)
    except ModelLost as lost:
        if error is None and needs_model:
            error, stop = "; ".join([f"the model is lost: {lost}", *notes]), "error"
    if error is None and (error := divergence(evaluations.metrics)) is not None:
        stop = "error"
    return Run(
        experiment=world.experiment,
        mode="processes",
        metrics=evaluations.metrics,
        trace=trace,
        vector=vector.clone(),
        layout=world.layout,
        buffers=world.buffers(vector),
        seconds=seconds,
        stop=stop,
        error=error,
        notes=[*world.notes, *notes, *latenesses(seats)],
    )
