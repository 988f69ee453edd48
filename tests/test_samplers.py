"""Samplers: every image once an epoch, the same batches wherever training starts and however many processes share it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskrcnn_bench.data.samplers import (
    GroupedBatchSampler,
    IterationBasedBatchSampler,
    Sample,
    ShardedBatchSampler,
    group_by_ratio,
    repeat_factors,
    repeat_report,
    shuffled,
)

timeless = settings(deadline=None)
groups = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def test_shuffle_is_frozen():
    # A change would give every seed another training run.
    assert shuffled(10, 0, 0).tolist() == [1, 2, 3, 9, 8, 7, 0, 6, 4, 5]
    assert shuffled(10, 0, 1).tolist() == [8, 9, 2, 5, 6, 3, 0, 7, 1, 4]


@given(st.integers(0, 500), st.integers(0, 2**62), st.integers(0, 1000))
def test_shuffle_is_a_permutation(n, seed, epoch):
    assert sorted(shuffled(n, seed, epoch)) == list(range(n))


def test_shuffles_differ_and_are_even():
    orders = np.stack([shuffled(8, seed, epoch) for seed in range(40) for epoch in range(40)])
    counts = np.stack([np.bincount(orders[:, place], minlength=8) for place in range(8)])
    assert counts.min() > 140 and counts.max() < 260, "each image comes to each place about 200 times"
    assert len({tuple(order) for order in orders}) > 1500


def test_ratio_groups_are_closed_at_the_bin():
    assert group_by_ratio([0.5, 0.999, 1.0, 1.5]).tolist() == [0, 0, 1, 1]
    assert group_by_ratio([0.4, 0.6, 3.0], bins=(0.5, 2.0)).tolist() == [0, 1, 2]


@timeless
@given(groups, st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_an_epoch_has_every_image_once_in_batches_of_one_group(group_ids, batch_size, epoch, shuffle):
    sampler = GroupedBatchSampler(group_ids, batch_size, seed=7, shuffle=shuffle)
    batches = sampler.batches(epoch)
    assert sorted(sum(batches, [])) == list(range(len(group_ids)))
    assert len(batches) == len(sampler)
    for batch in batches:
        assert 1 <= len(batch) <= batch_size and len({group_ids[i] for i in batch}) == 1
    small = sum(len(batch) < batch_size for batch in batches)
    assert small <= len(set(group_ids))
    if not shuffle:
        assert [batch[0] for batch in batches] == sorted(batch[0] for batch in batches)


def slow_batches(group_ids, batch_size, order):
    """Fill a batch a group while walking through the epoch; batches stand where their first image stands."""
    open_batches, found = {}, []
    for index in order:
        group = group_ids[index]
        if group not in open_batches or len(open_batches[group]) == batch_size:
            open_batches[group] = []
            found.append(open_batches[group])
        open_batches[group].append(int(index))
    return found


@timeless
@given(groups, st.integers(1, 5), st.integers(0, 9))
def test_grouping_equals_a_slow_reference(group_ids, batch_size, epoch):
    sampler = GroupedBatchSampler(group_ids, batch_size, seed=3)
    assert sampler.batches(epoch) == slow_batches(group_ids, batch_size, shuffled(len(group_ids), 3, epoch))


@timeless
@given(groups, st.integers(1, 4), st.integers(0, 30), st.integers(1, 3), st.integers(1, 3))
def test_starting_late_gives_the_same_batches(group_ids, batch_size, start, num_ranks, parts):
    grouped = GroupedBatchSampler(group_ids, batch_size, seed=1)
    for rank in range(num_ranks):
        straight = list(IterationBasedBatchSampler(grouped, 30, 0, rank, num_ranks, parts))
        late = IterationBasedBatchSampler(grouped, 30, start, rank, num_ranks, parts)
        assert list(late) == straight[start * parts :]
        assert len(late) == len(straight) - start * parts


@timeless
@given(groups, st.integers(1, 4), st.integers(1, 4))
def test_processes_share_what_one_process_does_in_parts(group_ids, batch_size, num_ranks):
    grouped = GroupedBatchSampler(group_ids, batch_size, seed=1)
    alone = list(IterationBasedBatchSampler(grouped, 9, parts=num_ranks))
    shared = [list(IterationBasedBatchSampler(grouped, 9, 0, rank, num_ranks)) for rank in range(num_ranks)]
    assert [batch for step in zip(*shared) for batch in step] == alone


def test_processes_see_different_images_within_an_epoch():
    grouped = GroupedBatchSampler([0] * 24, 3, seed=5)
    seen = [s.index for rank in range(2) for batch in IterationBasedBatchSampler(grouped, 4, 0, rank, 2) for s in batch]
    assert sorted(seen) == list(range(24))


def test_samples_carry_their_iteration():
    grouped = GroupedBatchSampler([0, 0], 2, seed=0)
    batches = list(IterationBasedBatchSampler(grouped, 5, 3))
    assert [[s.iteration for s in batch] for batch in batches] == [[3, 3], [4, 4]]
    assert isinstance(batches[0][0], Sample)


def test_a_late_start_is_quick():
    grouped = GroupedBatchSampler(np.arange(120_000) % 2, 16, seed=0)
    calls = []
    original = grouped.batches
    grouped.batches = lambda epoch: calls.append(epoch) or original(epoch)
    next(iter(IterationBasedBatchSampler(grouped, 10**9, 10**8)))
    assert calls == [10**8 // len(grouped)]


@timeless
@given(groups, st.integers(1, 4), st.integers(1, 6))
def test_testing_sees_every_image_once_over_all_processes(group_ids, batch_size, num_ranks):
    grouped = GroupedBatchSampler(group_ids, batch_size, shuffle=False)
    shards = [ShardedBatchSampler(grouped, rank, num_ranks) for rank in range(num_ranks)]
    seen = [sample.index for shard in shards for batch in shard for sample in batch]
    assert sorted(seen) == list(range(len(group_ids)))
    assert all(len(list(shard)) == len(shard) for shard in shards)


def test_nothing_to_batch_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        IterationBasedBatchSampler(GroupedBatchSampler([], 2), 5)
    with pytest.raises(ValueError, match="batch_size"):
        GroupedBatchSampler([0], 0)


# ------------------------------------------------------------------------------------------------- repeated images


def test_repeat_factors_by_hand():
    """Of 8 images class 1 is in all, class 2 in two, class 3 in one; threshold one half."""
    images = [0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 1, 7]
    labels = [1] * 8 + [2, 2, 2, 3]
    factors = repeat_factors(images, labels, 9, 0.5)
    shares = np.array([8, 2, 1]) / 9
    two, three = np.sqrt(0.5 / shares[1:])
    np.testing.assert_allclose(factors, [two, two, 1, 1, 1, 1, 1, three, 1])
    assert (repeat_factors(images, labels, 9, 1e-6) == 1).all()
    np.testing.assert_allclose(repeat_factors(images, labels, 9, 0.5, 1.0), factors**2)
    report = repeat_report(images, labels, factors, ("__background__", "cat", "dog", "emu"))
    assert "9 images" in report[0] and [line.split()[0] for line in report[1:]] == ["emu", "dog", "cat"], "the rarest first"
    assert report[1].split()[1:] == [f"{1 / 9:.2%}", "->", f"{three / factors.sum():.2%}"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0.2, 4)), min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(0, 30),
)
def test_repeated_epochs_are_equally_long_and_fair(images, batch_size, epoch):
    groups, factors = (np.array(column) for column in zip(*images))
    sampler = GroupedBatchSampler(groups, batch_size, seed=3, repeats=factors)
    batches = sampler.batches(epoch)
    assert len(batches) == len(sampler) and all(len(set(groups[batch])) == 1 for batch in batches)
    counts = np.bincount(np.concatenate(batches).astype(int), minlength=len(groups))
    for group in np.unique(groups):
        members = groups == group
        total = int(np.ceil(factors[members].sum() - 1e-9))
        scaled = factors[members] * total / factors[members].sum()
        assert counts[members].sum() == total
        assert (counts[members] >= np.floor(scaled - 1e-6)).all() and (counts[members] <= np.ceil(scaled + 1e-6)).all()


def test_repeats_come_out_on_average_and_once_stays_once():
    factors = np.array([1.0, 1.3, 2.5, 1.0, 3.7])
    sampler = GroupedBatchSampler([0] * 5, 2, repeats=factors)
    counts = sum(np.bincount(np.concatenate(sampler.batches(epoch)), minlength=5) for epoch in range(400)) / 400
    np.testing.assert_allclose(counts, factors * 10 / factors.sum(), atol=0.08)
    once = GroupedBatchSampler([0, 1, 0, 1, 1], 2, seed=5, repeats=np.ones(5))
    assert sorted(sum(once.batches(3), [])) == list(range(5)) and len(once) == 3


def test_processes_share_repeated_images():
    factors = np.linspace(1, 3, 13)
    sampler = GroupedBatchSampler([0] * 13, 2, repeats=factors)
    shards = [list(IterationBasedBatchSampler(sampler, 7, rank=rank, num_ranks=2)) for rank in (0, 1)]
    assert [len(shard) for shard in shards] == [7, 7]
    together = [[s.index for s in batch] for pair in zip(*shards) for batch in pair]
    epochs = sampler.batches(0) + sampler.batches(1)
    assert together == epochs[:14]
    assert [[s.index for s in b] for b in IterationBasedBatchSampler(sampler, 7, 4, 1, 2)] == [[s.index for s in b] for b in shards[1][4:]]
