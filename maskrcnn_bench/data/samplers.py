"""Which images form which batch, as a function of seed, epoch and number of the batch, so that training can start anywhere.

All processes work on one sequence of batches and take turns, so shards are disjoint and the sequence does not depend on how
many processes there are or on how a step is split into parts.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from maskrcnn_bench.utils.counter import CounterRandom, counter_key


class Sample(NamedTuple):
    """An image to load: the iteration it is for, and its index in the data set."""

    iteration: int
    index: int


def shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    """The numbers 0 to n - 1 in an order that depends on seed and epoch alone. [n] int64"""
    with np.errstate(over="ignore"):
        word = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(counter_key(seed, epoch, 0))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
        word ^= word >> np.uint64(31)
    return np.argsort(word, kind="stable")


def group_by_ratio(ratios: Sequence[float], bins: Sequence[float] = (1.0,)) -> np.ndarray:
    """The group of each image: how many of the ascending `bins` its height over width reaches. [n] int64"""
    return np.array([bisect.bisect_right(list(bins), ratio) for ratio in ratios], dtype=np.int64)


def group_by_size(sizes: Sequence[tuple[int, int]], divisible: int = 0) -> np.ndarray:
    """The group of each image: those whose sides are equal after padding to multiples share one. sizes: pixels. [n, 2] -> [n] int64"""
    step = max(divisible, 1)
    padded = -(-np.array(sizes, dtype=np.int64).reshape(-1, 2) // step)
    return np.unique(padded, axis=0, return_inverse=True)[1].reshape(-1)


def repeat_factors(images: Sequence[int], labels: Sequence[int], num_images: int, threshold: float, exponent: float = 0.5) -> np.ndarray:
    """How often each image occurs in an epoch, so that rare classes are seen more often.

    The factor of a class that a share f of the images has is max(1, (threshold / f) ** exponent); that of an image is the largest of its
    classes. (Gupta et al. 2019, LVIS.)

    Args:
        images: the image that each object is in. [n]
        labels: the class of each object. [n]
        num_images: how many images there are; one without objects occurs once.
        threshold: share of the images below which a class is rare.
        exponent: 0.5 as in LVIS; 1 shows every class as often as one of that share, 0 changes nothing.
    Returns:
        [num_images] float64
    """
    pairs = np.unique(np.stack([np.asarray(labels, np.int64), np.asarray(images, np.int64)], axis=1), axis=0)
    share = np.bincount(pairs[:, 0]) / num_images
    of_class = np.maximum(1.0, (threshold / np.maximum(share, 1e-12)) ** exponent)
    factors = np.ones(num_images)
    np.maximum.at(factors, pairs[:, 1], of_class[pairs[:, 0]])
    return factors


def repeat_report(images: Sequence[int], labels: Sequence[int], factors: np.ndarray, names: Sequence[str]) -> list[str]:
    """The share of images that have each class, before and after repeating, as lines of text; `names` by label."""
    pairs = np.unique(np.stack([np.asarray(labels, np.int64), np.asarray(images, np.int64)], axis=1), axis=0)
    before = np.bincount(pairs[:, 0], minlength=len(names)) / len(factors)
    after = np.bincount(pairs[:, 0], weights=factors[pairs[:, 1]], minlength=len(names)) / factors.sum()
    widest = max((len(name) for name in names[1:]), default=0)
    lines = [f"{len(factors)} images, some of which occur more or less than once, make {factors.sum():.0f} an epoch; images with a class:"]
    return lines + [f"  {names[k]:{widest}}  {before[k]:7.2%} -> {after[k]:7.2%}" for k in np.argsort(before[1:], kind="stable") + 1]


class GroupedBatchSampler(Sampler):
    """Batches of images of one group (upright or wide), so that little is padded.

    Within an epoch every image occurs once, or as often as `repeats` says, rounded up or down anew in every epoch; all epochs are
    equally long. Each group's last batch may be smaller. Batches stand in the order of their first image in the shuffled epoch.

    Args:
        group_ids: group of each image. [n]
        batch_size: images a batch.
        seed: what the order depends on, beside the epoch.
        shuffle: False keeps the order of the data set.
        repeats: how often each image occurs on average; None for once. [n]
    """

    def __init__(
        self, group_ids: Sequence[int], batch_size: int, seed: int = 0, shuffle: bool = True, repeats: Sequence[float] | None = None
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.group_ids = np.asarray(group_ids, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.repeats = None if repeats is None else np.asarray(repeats, dtype=np.float64)

    def _entries(self, epoch: int) -> np.ndarray:
        """The images of an epoch in the order of the data set, repeated ones more than once."""
        if self.repeats is None:
            return np.arange(len(self.group_ids))
        counts = np.zeros(len(self.group_ids), dtype=np.int64)
        for group in np.unique(self.group_ids):
            # Points one apart, beginning at a random one, on a line that each image has a piece of: no piece gets too few or many.
            members = np.flatnonzero(self.group_ids == group)
            members = members[shuffled(len(members), self.seed + 1, epoch)]
            ends = np.cumsum(self.repeats[members])
            ends = ends / ends[-1] * self._length(group)
            points = np.ceil(np.concatenate([[0.0], ends[:-1], [self._length(group)]]) - self._start(epoch)).astype(np.int64)
            counts[members] = np.diff(points)
        return np.repeat(np.arange(len(counts)), counts)

    def _start(self, epoch: int) -> float:
        return CounterRandom(counter_key(self.seed, epoch, 0)).uniform("repeat")

    def _length(self, group: int) -> int:
        """How many images of a group an epoch has."""
        members = self.group_ids == group
        return int(members.sum()) if self.repeats is None else math.ceil(self.repeats[members].sum() - 1e-9)

    @property
    def epoch_length(self) -> int:
        """How many images an epoch has, repeated ones counted as often as they occur."""
        return sum(self._length(group) for group in np.unique(self.group_ids))

    def batches(self, epoch: int = 0) -> list[list[int]]:
        """All batches of an epoch, as indices of the data set."""
        entries = self._entries(epoch)
        order = entries[shuffled(len(entries), self.seed, epoch)] if self.shuffle else entries
        groups = self.group_ids[order]
        found: list[tuple[int, list[int]]] = []
        for group in np.unique(groups):
            places = np.flatnonzero(groups == group)
            for first in range(0, len(places), self.batch_size):
                chunk = places[first : first + self.batch_size]
                found.append((int(chunk[0]), order[chunk].tolist()))
        return [batch for _, batch in sorted(found)]

    def __len__(self) -> int:
        return sum(math.ceil(self._length(group) / self.batch_size) for group in np.unique(self.group_ids))

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches())


class IterationBasedBatchSampler(Sampler):
    """Batches for iterations `start_iter` to `num_iterations` - 1, epoch after epoch.

    Starting late costs one epoch's shuffle and gives the batches an uninterrupted run has.

    Args:
        batch_sampler: makes the batches of an epoch.
        num_iterations: optimizer steps of the whole training.
        start_iter: first step to do.
        rank, num_ranks: this process, and how many there are.
        parts: batches of one process for one step (gradient accumulation).
    """

    def __init__(
        self,
        batch_sampler: GroupedBatchSampler,
        num_iterations: int,
        start_iter: int = 0,
        rank: int = 0,
        num_ranks: int = 1,
        parts: int = 1,
    ):
        if len(batch_sampler) == 0:
            raise ValueError("no images to make batches of")
        self.batch_sampler = batch_sampler
        self.num_iterations = num_iterations
        self.start_iter = start_iter
        self.rank, self.num_ranks, self.parts = rank, num_ranks, parts

    def __iter__(self) -> Iterator[list[Sample]]:
        per_epoch = len(self.batch_sampler)
        current, batches = -1, []
        for iteration in range(self.start_iter, self.num_iterations):
            for part in range(self.parts):
                epoch, place = divmod((iteration * self.parts + part) * self.num_ranks + self.rank, per_epoch)
                if epoch != current:
                    current, batches = epoch, self.batch_sampler.batches(epoch)
                yield [Sample(iteration, index) for index in batches[place]]

    def __len__(self) -> int:
        return max(self.num_iterations - self.start_iter, 0) * self.parts


class ShardedBatchSampler(Sampler):
    """One pass over a data set for testing: every image once over all processes, none twice.

    Args:
        batch_sampler: makes the batches.
        rank, num_ranks: this process, and how many there are; it may get no batch at all.
    """

    def __init__(self, batch_sampler: GroupedBatchSampler, rank: int = 0, num_ranks: int = 1):
        self.batch_sampler = batch_sampler
        self.rank, self.num_ranks = rank, num_ranks

    def __iter__(self) -> Iterator[list[Sample]]:
        for batch in self.batch_sampler.batches()[self.rank :: self.num_ranks]:
            yield [Sample(0, index) for index in batch]

    def __len__(self) -> int:
        return len(range(self.rank, len(self.batch_sampler), self.num_ranks))
