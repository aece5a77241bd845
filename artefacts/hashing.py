"""Seeded sampling and splitting by hash.

The result depends on the seed and the set of documents, not on their order or the number of workers.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


def keyed_hashes(seed: int, purpose: str, names: Iterable[str]) -> Hashes:
    """Return a uniform 64-bit hash of each name. Different seeds and purposes give independent hashes."""
    key = hashlib.blake2b(f"{purpose}:{seed}".encode(), digest_size=32)
    digests = bytearray()
    for name in names:
        digest = key.copy()
        digest.update(b"\0" + name.encode("utf-8", "surrogatepass"))
        digests += digest.digest()[:8]
    return np.frombuffer(bytes(digests), dtype="<u8").astype(np.uint64)


def smallest(hashes: Hashes, sizes: Ints, budget: int) -> Mask:
    """Return a mask of the items with the smallest hashes: as many as fit into ``budget``, but at least one."""
    order = np.lexsort((np.arange(len(hashes)), hashes))
    total = np.cumsum(sizes[order])
    chosen = np.zeros(len(hashes), dtype=bool)
    chosen[order[: int(np.searchsorted(total, budget, side="right")) or 1]] = True
    return chosen


def lowest(hashes: Hashes, fraction: float) -> tuple[Mask, bool]:
    """Return a mask of the items whose hash is in the lowest ``fraction`` of the hash range.

    If there are none, the items with the smallest hash are chosen. Also returns whether that was the case.
    """
    chosen = hashes < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    forced = not chosen.any()
    return (hashes == hashes.min() if forced else chosen), forced


#: Hashes and sizes (in bytes) of documents, in any number of pieces.
Pieces = Iterator[tuple[Hashes, Ints]]

#: Hashes are binned by their top 16 bits.
_BINS = 1 << 16
_SHIFT = np.uint64(48)


def threshold(pieces: Callable[[], Pieces], budget: int) -> int | None:
    """Return a hash threshold such that the documents with hashes up to the threshold nearly fill ``budget`` bytes.

    At least one document is included, even if it exceeds the budget. ``pieces`` is called twice, unless all documents
    fit. Only about 1/65,536 of the documents' hashes and sizes are held in memory.

    Returns:
        The threshold, or None if all documents fit.
    """
    totals, documents = np.zeros(_BINS, np.int64), np.zeros(_BINS, np.int64)
    for hashes, sizes in pieces():
        totals += np.bincount(hashes >> _SHIFT, sizes, _BINS).astype(np.int64)
        documents += np.bincount(hashes >> _SHIFT, minlength=_BINS)
    ends = np.cumsum(totals)
    if ends[-1] <= budget:
        return None
    chosen = int(np.searchsorted(ends, budget, side="right"))
    before = int(ends[chosen] - totals[chosen])
    inside = [(h[(h >> _SHIFT) == chosen], s[(h >> _SHIFT) == chosen]) for h, s in pieces()]
    hashes, sizes = (np.concatenate(column) for column in zip(*inside, strict=True))
    order = np.argsort(hashes, kind="stable")
    count = int(np.searchsorted(before + np.cumsum(sizes[order]), budget, side="right"))
    if count:
        return int(hashes[order[count - 1]])
    # Nothing in this bin fits, so the sample ends with the bins before it.
    return (chosen << 48) - 1 if documents[:chosen].any() else int(hashes[order[0]])


def mix(values: Hashes) -> Hashes:
    """Mix the bits of 64-bit numbers with splitmix64's finalizer, a bijection."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


#: The increment of splitmix64, 2^64 divided by the golden ratio.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(seed: Hashes | np.uint64, numbers: Hashes) -> Hashes:
    """Return outputs of the splitmix64 generator with this seed. ``numbers`` are their positions, counted from 1."""
    with np.errstate(over="ignore"):
        return mix(np.asarray(seed + GOLDEN * numbers))


def powers(base: int, count: int) -> Hashes:
    """Return base^0, base^1, ..., base^(count - 1) modulo 2^64."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


def inverse(base: int) -> int:
    """Return the inverse of an odd number modulo 2^64."""
    return pow(base, -1, 1 << 64)
