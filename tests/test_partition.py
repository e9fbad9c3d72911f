import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from offbeat.cluster import Cluster
from offbeat.config import build, experiment_parser, load_experiment, parse
from offbeat.experiment import to_config
from offbeat.methods import LocalSGD
from offbeat.problems import IID, Batches, ByLabel, Digits, Dirichlet, shard, top_up
from offbeat.runtime.world import World
from offbeat.testing import simulated, small_experiment

SEEDS = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(samples=st.integers(1, 200), workers=st.integers(1, 200), seed=SEEDS)
def test_iid_shards_are_disjoint_cover_all_and_differ_by_at_most_one(samples, workers, seed):
    workers = min(workers, samples)
    shards = shard(IID(), torch.zeros(samples), workers, seed)
    assert len(shards) == workers
    assert sorted(torch.cat(shards).tolist()) == list(range(samples))
    sizes = [len(part) for part in shards]
    assert max(sizes) - min(sizes) <= 1


def test_iid_shards_are_random_but_repeat_with_the_seed():
    targets = torch.zeros(100)
    first = torch.cat(shard(IID(), targets, 4, seed=3))
    assert torch.equal(first, torch.cat(shard(IID(), targets, 4, seed=3)))
    assert not torch.equal(first, torch.cat(shard(IID(), targets, 4, seed=4)))
    assert first.tolist() != list(range(100))


def test_streams_are_the_same_in_every_process():
    assert [part.tolist() for part in shard(IID(), torch.zeros(8), 3)] == [
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


def classes_held(part, targets):
    return set(targets[part].tolist())


@st.composite
def dealt_by_class(draw):
    """A partition by class that fits the targets, the targets, and how many workers."""
    workers = draw(st.integers(1, 12))
    classes = draw(st.integers(1, 8))
    counts = draw(st.lists(st.integers(24, 40), min_size=classes, max_size=classes))
    targets = torch.cat([torch.full((n,), 3 * c) for c, n in enumerate(counts)])
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]
    if draw(st.booleans()):
        return Dirichlet(alpha=draw(st.sampled_from([1e-3, 0.1, 1.0, 100.0]))), targets, workers
    least = -(-classes // workers)
    return ByLabel(classes_per_worker=draw(st.integers(least, classes))), targets, workers


@settings(deadline=None)
@given(case=dealt_by_class(), seed=SEEDS)
def test_shards_by_class_are_disjoint_cover_all_and_repeat_with_the_seed(case, seed):
    partition, targets, workers = case
    shards = shard(partition, targets, workers, seed)
    assert len(shards) == workers
    assert {part.dtype for part in shards} == {torch.int64}
    assert sorted(torch.cat(shards).tolist()) == list(range(len(targets)))
    again = shard(partition, targets, workers, seed)
    assert all(torch.equal(one, other) for one, other in zip(shards, again, strict=True))


@settings(deadline=None)
@given(case=dealt_by_class(), seed=SEEDS)
def test_by_label_gives_each_worker_exactly_that_many_classes(case, seed):
    partition, targets, workers = case
    if isinstance(partition, Dirichlet):
        return
    shards = shard(partition, targets, workers, seed)
    held = [len(classes_held(part, targets)) for part in shards]
    assert held == [partition.classes_per_worker] * workers


@settings(deadline=None)
@given(seed=SEEDS)
def test_a_large_alpha_is_nearly_iid_and_a_small_one_gives_a_class_to_one_worker(seed):
    targets = torch.arange(4000) % 4

    def largest_share(alpha):
        """Of the classes, the largest share that a worker holds: the greatest and the least."""
        shards = shard(Dirichlet(alpha=alpha), targets, 5, seed)
        counts = torch.stack([targets[part].bincount(minlength=4) for part in shards])
        largest = counts.max(dim=0).values / 1000
        return largest.max().item(), largest.min().item()

    assert largest_share(1e5)[0] < 0.22
    assert largest_share(1e-9)[1] > 0.99


def test_partitions_are_random_within_a_class():
    targets = torch.arange(40) % 2
    for partition in (Dirichlet(alpha=1.0), ByLabel(classes_per_worker=1)):
        one, other = (shard(partition, targets, 2, seed)[0].tolist() for seed in (0, 1))
        assert one != other
        assert one != sorted(one)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=8), least=st.integers(1, 10))
def test_topped_up_shards_are_long_enough_and_lose_no_sample(sizes, least):
    shards = list(torch.arange(sum(sizes)).split(sizes))
    filled, short = top_up(shards, least)
    assert sorted(torch.cat(filled).tolist()) == list(range(sum(sizes)))
    if sum(sizes) < least * len(sizes):
        assert short == []
        assert all(a is b for a, b in zip(filled, shards, strict=True))
    else:
        assert short == [worker for worker, size in enumerate(sizes) if size < least]
        assert all(len(part) >= least for part in filled)
        for worker, (before, after) in enumerate(zip(shards, filled, strict=True)):
            if worker in short:
                assert after[: len(before)].equal(before)
                assert len(after) == least
            else:
                assert before[: len(after)].equal(after)


def test_what_is_missing_comes_from_the_end_of_the_largest_shard_of_the_moment():
    shards = list(torch.arange(11).split([6, 0, 5]))
    filled, short = top_up(shards, 3)
    assert [part.tolist() for part in filled] == [[0, 1, 2, 3], [5, 4, 10], [6, 7, 8, 9]]
    assert short == [1]


@pytest.mark.parametrize(
    ("partition", "targets", "text"),
    [
        (
            Dirichlet(),
            torch.zeros(8),
            r"^partition Dirichlet deals samples out by class, and these targets are float32 of "
            r"shape \(8,\), not one class number a sample: use partition IID$",
        ),
        (
            ByLabel(),
            torch.zeros(8, 5, dtype=torch.int64),
            r"^partition ByLabel .* are int64 of shape \(8, 5\), not",
        ),
        (
            ByLabel(classes_per_worker=3),
            torch.arange(8) % 2,
            r"^classes_per_worker is 3, and there are 2 classes only$",
        ),
        (
            ByLabel(classes_per_worker=1),
            torch.arange(8) % 5,
            r"^2 workers with 1 classes each leave some of the 5 classes to nobody: "
            r"classes_per_worker must be at least 3$",
        ),
        (
            ByLabel(classes_per_worker=2),
            torch.tensor([0, 0, 1]),
            r"^a class has 1 samples, too few for the 2 workers that are to hold it: use fewer",
        ),
    ],
)
def test_targets_that_a_partition_cannot_deal_out(partition, targets, text):
    with pytest.raises(ValueError, match=text):
        shard(partition, targets, 2)


def few_samples(partition, workers=6, **settings):
    return small_experiment(
        LocalSGD(), workers=workers, problem=Digits(), partition=partition, lr=0.1, **settings
    )


def test_workers_that_got_nothing_are_topped_up_and_the_run_says_so():
    experiment = few_samples(Dirichlet(alpha=0.01), workers=16, steps=3)
    world = World(experiment)
    short = [batches.per_epoch for batches in world.batches].count(1)
    run = simulated(experiment)
    (note,) = run.notes
    assert short > 1
    assert note.startswith("partition: workers ")
    assert note.endswith(
        "held fewer than batch_size 16 samples and were topped up from the largest shards"
    )
    shards = shard(experiment.partition, world.data.train.targets, 16)
    empty = [str(worker) for worker, part in enumerate(shards) if len(part) < 16]
    assert f" workers {', '.join(empty[:-1])} and {empty[-1]} held" in note


def test_an_experiment_deals_out_by_its_partition_and_seed():
    experiment = few_samples(ByLabel(classes_per_worker=2), workers=5, seed=7)
    world = World(experiment)
    targets = world.data.train.targets
    for rank in range(5):
        held = {int(t) for k in range(20) for t in targets[world.batches[rank].indices(k)]}
        assert len(held) == 2
    assert simulated(experiment).notes == []
    assert to_config(experiment)["partition"] == {
        "class_path": "offbeat.problems.partition.ByLabel",
        "init_args": {"classes_per_worker": 2},
    }


def test_the_command_line_and_the_saved_file_name_the_partition(tmp_path):
    parser = experiment_parser("offbeat")
    options = ["--method", "LocalSGD", "--partition", "Dirichlet", "--partition.alpha", "0.1"]
    experiment = build(parser, parse(parser, options))
    assert experiment.partition == Dirichlet(alpha=0.1)
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(to_config(experiment)))
    assert load_experiment(path).partition == Dirichlet(alpha=0.1)
    # Another partition starts from its own defaults.
    other = parse(parser, ["--config", str(path), "--partition", "ByLabel"])
    assert build(parser, other).partition == ByLabel()


def test_too_few_samples_altogether_are_an_error_of_one_line():
    problem = Digits(batch_size=100)
    experiment = small_experiment(
        LocalSGD(), cluster=Cluster(workers=16), problem=problem, partition=Dirichlet(alpha=0.1)
    )
    with pytest.raises(ValueError, match=r"^worker \d+ holds \d+ samples, fewer than batch_size"):
        World(experiment)


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
        (lambda: shard(IID(), torch.zeros(5), 2, seed=-1), "seed must be from 0 to 2"),
        (lambda: shard(IID(), torch.zeros(5), 2, seed=2**64), "seed must be from 0 to 2"),
        (lambda: Dirichlet(alpha=0), "alpha is 0; it must be positive and finite"),
        (lambda: Dirichlet(alpha=float("inf")), "alpha is inf; it must be"),
        (lambda: ByLabel(classes_per_worker=0), "classes_per_worker is 0; it must be at least 1"),
        (lambda: Batches(torch.arange(7), 0, 0, 0), "batch_size must be at least 1, not 0"),
        (lambda: Batches(torch.arange(7), 1, -2, 0), "seed must be from 0 .* not -2"),
        (lambda: Batches(torch.arange(7), 1, 0, -1), "rank must not be negative, not -1"),
        (lambda: Batches(torch.arange(7), 1, 0, 0).indices(-1), "steps are numbered from 0"),
    ],
)
def test_arguments_out_of_range(build, text):
    with pytest.raises(ValueError, match=text):
        build()
