"""A keyed permutation of 0..n-1, computed place by place: no list of n numbers, no state.

A balanced Feistel network over the smallest even number of bits that holds n, walked until it lands below n (Black and
Rogaway, "Ciphers with arbitrary finite domains", 2002). The round function is the finaliser of SplitMix64.
"""

from hashlib import blake2b

import numpy as np

N_ROUNDS = 6


def permute(places: np.ndarray, n: int, *key: int) -> np.ndarray:
    """What stands at `places` (each in 0..n-1) of the permutation named by `key`."""
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    seed = blake2b(repr(key).encode(), digest_size=8 * N_ROUNDS).digest()
    keys = np.frombuffer(seed, dtype="<u8")
    values = _feistel(places.astype(np.uint64), half, keys)
    while (outside := values >= n).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
