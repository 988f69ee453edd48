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
