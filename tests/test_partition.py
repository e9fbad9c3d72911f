import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offbeat.problems import IID, Batches, shard

SEEDS = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(samples=st.integers(1, 200), workers=st.integers(1, 200), seed=SEEDS)
def test_iid_shards_are_disjoint_cover_all_and_differ_by_at_most_one(samples, workers, seed):
    workers = min(workers, samples)
    shards = shard(IID(seed=seed), torch.zeros(samples), workers)
    assert len(shards) == workers
    assert sorted(torch.cat(shards).tolist()) == list(range(samples))
    sizes = [len(part) for part in shards]
    assert max(sizes) - min(sizes) <= 1


def test_iid_shards_are_random_but_repeat_with_the_seed():
    targets = torch.zeros(100)
    first = torch.cat(shard(IID(seed=3), targets, 4))
    assert torch.equal(first, torch.cat(shard(IID(seed=3), targets, 4)))
    assert not torch.equal(first, torch.cat(shard(IID(seed=4), targets, 4)))
    assert first.tolist() != list(range(100))


def test_streams_are_the_same_in_every_process():
    assert [part.tolist() for part in shard(IID(seed=0), torch.zeros(8), 3)] == [
        [2, 4, 3],
        [6, 5, 0],
        [1, 7],
    ]
    batches = Batches(torch.arange(10, 18), batch_size=3, seed=1, rank=2)
    assert [batches.indices(step).tolist() for step in range(4)] == [
        [17, 10, 15],
        [14, 16, 12],
        [14, 13, 11],
        [10, 15, 16],
    ]


@pytest.mark.parametrize("workers", [0, 6, -1])
def test_every_worker_needs_a_sample(workers):
    with pytest.raises(ValueError, match=f"^5 samples cannot be dealt out to {workers} workers: "):
        shard(IID(), torch.zeros(5), workers)


@settings(deadline=None)
@given(
    samples=st.integers(1, 60),
    batch_size=st.integers(1, 60),
    seed=SEEDS,
    rank=st.integers(0, 10_000),
    epoch=st.integers(0, 10**9),
)
def test_an_epoch_gives_each_sample_at_most_once(samples, batch_size, seed, rank, epoch):
    batch_size = min(batch_size, samples)
    indices = torch.arange(samples) * 7 + 5
    batches = Batches(indices, batch_size, seed, rank)
    steps = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
    minibatches = [batches.indices(step) for step in steps]
    assert {len(minibatch) for minibatch in minibatches} == {batch_size}
    seen = torch.cat(minibatches).tolist()
    assert len(set(seen)) == len(seen) == samples - samples % batch_size
    assert set(seen) <= set(indices.tolist())


@settings(deadline=None)
@given(steps=st.lists(st.integers(0, 40), max_size=20))
def test_a_minibatch_depends_on_the_step_alone_not_on_what_was_asked_before(steps):
    indices = torch.arange(11)
    batches = Batches(indices, batch_size=3, seed=5, rank=1)
    for step in steps:
        fresh = Batches(indices, batch_size=3, seed=5, rank=1)
        assert torch.equal(batches.indices(step), fresh.indices(step))


def test_epochs_ranks_and_seeds_have_orders_of_their_own():
    def first_epoch(seed, rank, epoch=0):
        return tuple(Batches(torch.arange(50), 50, seed, rank).indices(epoch).tolist())

    orders = {
        first_epoch(seed, rank, epoch)
        for seed in range(3)
        for rank in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 27


def test_what_is_left_over_changes_with_the_epoch():
    batches = Batches(torch.arange(5), batch_size=4, seed=0, rank=0)
    seen = {i for epoch in range(20) for i in batches.indices(epoch).tolist()}
    assert seen == set(range(5))


def test_indices_are_int64_even_from_a_smaller_type():
    batches = Batches(torch.arange(6, dtype=torch.int32), batch_size=2, seed=0, rank=0)
    assert batches.indices(0).dtype == torch.int64


def test_a_minibatch_larger_than_the_shard_is_an_error_that_names_the_worker():
    with pytest.raises(
        ValueError, match=r"^worker 3 holds 7 samples, fewer than batch_size 8: use"
    ):
        Batches(torch.arange(7), batch_size=8, seed=0, rank=3)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: IID(seed=-1), "seed must be from 0 to 2"),
        (lambda: IID(seed=2**64), "seed must be from 0 to 2"),
        (lambda: Batches(torch.arange(7), 0, 0, 0), "batch_size must be at least 1, not 0"),
        (lambda: Batches(torch.arange(7), 1, -2, 0), "seed must be from 0 .* not -2"),
        (lambda: Batches(torch.arange(7), 1, 0, -1), "rank must not be negative, not -1"),
        (lambda: Batches(torch.arange(7), 1, 0, 0).indices(-1), "steps are numbered from 0"),
    ],
)
def test_arguments_out_of_range(build, text):
    with pytest.raises(ValueError, match=text):
        build()
