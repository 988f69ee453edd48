"""Random numbers as a function of a key and a counter, never of a generator's state.

A key belongs to one image in one iteration. Whoever needs chance (an augmentation, a sampler) names its stage and its
slot; the same names give the same number on every rank, in every worker and after every resume.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
_MASK32 = 0xFFFFFFFF
_TWO24 = float(1 << 24)


def _mix64(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): one word in, one well-mixed word out."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def counter_key(seed: int, iteration: int, image_id: int) -> int:
    """The key of one image in one iteration of one run, 63 bits."""
    word = 0
    for part in (seed, iteration, image_id):
        word = _mix64(word ^ (int(part) & _MASK64))
    return word >> 1


def stage_number(stage: str) -> int:
    """A stage's name as a 32-bit number that is the same in every process."""
    return zlib.crc32(stage.encode())


class CounterRandom:
    """Random numbers of one image in one iteration, for code that runs outside the graph (transforms).

    Args:
        key: what `counter_key` returns.
    """

    def __init__(self, key: int):
        self.key = int(key)

    def uniform(self, stage: str, slot: int = 0) -> float:
        """A number in [0, 1) that depends on the key, the stage and the slot alone."""
        word = _mix64(_mix64(self.key ^ (stage_number(stage) << 16)) ^ slot)
        return (word >> 11) / float(1 << 53)

    def randint(self, stage: str, n: int, slot: int = 0) -> int:
        """An integer in [0, n)."""
        return min(int(self.uniform(stage, slot) * n), n - 1)


def _mix32(x: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 on the low 32 bits of int64 tensors."""
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & _MASK32
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _MASK32
    return x ^ (x >> 16)


def uniform(keys: Tensor, stage: int, slots: int) -> Tensor:
    """Random numbers in [0, 1) on the keys' device, without a generator and without waiting for the host.

    Args:
        keys: one key an image, int64. [N]
        stage: `stage_number` of the choice, so that two choices of one image differ.
        slots: how many numbers an image.
    Returns:
        float32 with 24 random bits. [N, slots]
    """
    low = _mix32((keys & _MASK32) ^ stage)
    high = _mix32(((keys >> 32) & _MASK32) ^ low)
    counter = torch.arange(slots, device=keys.device, dtype=torch.int64)
    words = _mix32(_mix32(counter[None] * 0x9E3779B1 & _MASK32 ^ high[:, None]) + low[:, None] & _MASK32)
    return (words >> 8).to(torch.float32) / _TWO24
