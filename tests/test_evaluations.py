"""Evaluations of a real run: what its coordinator counts of members that are lost."""

from offbeat.methods import Hogwild
from offbeat.runtime import control
from offbeat.runtime.evaluations import Evaluations
from offbeat.runtime.seats import Seat
from offbeat.runtime.status import Snapshot, Status
from offbeat.runtime.world import World
from offbeat.testing import small_experiment


def status(computed: int) -> Status:
    return Status(
        idle=False, parked=False, stuck=False, waiting=[], sent={}, received={}, rounds={},
        pausing=None, paused=set(), computed=computed, steps=computed, bytes_sent=0, departed=set(),
    )  # fmt: skip


def test_a_row_counts_no_less_of_a_lost_member_than_the_row_before():
    world = World(small_experiment(Hogwild(), workers=2))
    seats = [Seat(host=rank, ranks=[rank]) for rank in range(2)]
    evaluations = Evaluations(world, None, lambda word: None)
    held = [
        control.Held.of(Snapshot(rank, is_server=False, parameters=world.initial, states={}))
        for rank in range(2)
    ]
    for seat in seats:
        seat.learn(control.Report(status=status(5)))
    evaluations.begin_if_due(tickets=1_000, seconds=1.0)
    for seat in seats:
        # A report is due four times a second; this answer comes between two.
        word = control.Snapshots(asked=1, nodes=(held[seat.host],), status=status(9))
        seat.learn(word)
        evaluations.answered(seat.host, word)
    evaluations.measure_if_complete(seats)
    evaluations.departed(seats[0].status)
    evaluations.measure(2.0, [held[1].snapshot()], [status(9)])
    batch = world.problem.batch_size
    assert [row.samples for row in evaluations.metrics] == [18 * batch, 18 * batch]
