"""The KV cache for decoding. For each token, a layer stores every head's key and value, or one shared latent."""

import copy
from collections.abc import Sequence

import torch


class Cache:
    """The cache entries of all layers, in one allocation, for B sequences whose lengths may differ.

    An entry has ``width`` elements, so a layer's entries are [B, L, width]. With ``heads``, an entry has ``width``
    elements per head, and a layer's entries are [B, N, L, width]. Row b holds ``lengths[b]`` left-aligned entries. Any
    data after them is ignored.
    """

    def __init__(
        self,
        layers: int,
        sequences: int,
        capacity: int,
        width: int,
        like: torch.Tensor,
        heads: int | None = None,
    ) -> None:
        """Allocate room for ``capacity`` tokens per sequence, with the dtype and device of the tensor ``like``."""
        per_head = () if heads is None else (heads,)
        self._storage = like.new_zeros(layers, sequences, *per_head, capacity, width)
        self._lengths = [0] * sequences
        self._incoming = 0
        self._positions: torch.Tensor | None = None
        self._visible_lengths: torch.Tensor | None = None
        self._attention_mask: torch.Tensor | None = None

    @property
    def lengths(self) -> list[int]:
        """Number of cached tokens of each sequence."""
        return list(self._lengths)

    @property
    def nbytes(self) -> int:
        return self._storage.nbytes

    def begin(self, incoming: int) -> torch.Tensor:
        """Prepare for ``incoming`` more tokens per sequence. Returns their positions [B, T].

        Raises:
            ValueError: the cache has no room for these tokens.
        """
        capacity = self._storage.shape[-2]
        if max(self._lengths) + incoming > capacity:
            raise ValueError(
                f"the cache has room for {capacity} tokens per sequence: it holds {max(self._lengths)}, and {incoming} "
                "more do not fit"
            )
        device = self._storage.device
        self._incoming = incoming
        lengths = torch.tensor(self._lengths, device=device)
        positions_BT = lengths[:, None] + torch.arange(incoming, device=device)
        same_length = len(set(self._lengths)) == 1
        self._positions = None if same_length else positions_BT
        # The first tokens attend only to each other, so attention over complete sequences handles them.
        self._visible_lengths = positions_BT + 1 if max(self._lengths) else None
        self._attention_mask = None
        if max(self._lengths) and (not same_length or incoming > 1):
            keys_L = torch.arange(max(self._lengths) + incoming, device=device)
            self._attention_mask = (keys_L <= positions_BT[..., None])[:, None]
        return positions_BT

    def commit(self, lengths: Sequence[int]) -> None:
        """Set each sequence's length, to keep the incoming tokens or drop some of them."""
        self._lengths = list(lengths)

    def reorder(self, rows: torch.Tensor) -> None:
        """Replace each sequence b with a copy of sequence ``rows[b]``."""
        self._lengths = [self._lengths[row] for row in rows.tolist()]
        used = self._storage[..., : max(self._lengths), :]
        used.copy_(used.index_select(1, rows.to(used.device)))

    def select(self, rows: Sequence[int], capacity: int) -> "Cache":
        """Return a new cache with room for ``capacity`` tokens per sequence. It starts with copies of these sequences.

        A sequence may occur several times or not at all.
        """
        selected = copy.copy(self)
        selected._lengths = [self._lengths[row] for row in rows]
        used, storage = max(selected._lengths), self._storage
        selected._storage = storage.new_zeros(
            len(storage), len(rows), *storage.shape[2:-2], capacity, storage.shape[-1]
        )
        index = torch.tensor(rows, device=storage.device)
        selected._storage[..., :used, :] = storage[..., :used, :].index_select(1, index)
        return selected

    def layer(self, index: int) -> "LayerCache":
        return LayerCache(self, index)


class LayerCache:
    """One layer's view of a cache, for use by its attention."""

    def __init__(self, cache: Cache, index: int) -> None:
        self._cache, self._index = cache, index

    @property
    def has_past(self) -> bool:
        """Whether the cache holds tokens before the incoming ones."""
        return max(self._cache._lengths) > 0

    def append(self, entries: torch.Tensor) -> None:
        """Store the incoming tokens' entries, [B, T, width] or [B, N, T, width], after the existing entries."""
        cache = self._cache
        stored = cache._storage[self._index]
        if cache._positions is None:
            start = cache._lengths[0]
            stored[..., start : start + cache._incoming, :] = entries
        else:
            rows = torch.arange(len(stored), device=stored.device)[:, None]
            # Advanced indexing moves the head dimension, which lies between the two index tensors, to the end.
            if stored.dim() == 4:
                stored[rows, :, cache._positions] = entries.transpose(1, 2)
            else:
                stored[rows, cache._positions] = entries

    def entries(self) -> torch.Tensor:
        """Return the entries up to the last incoming token of the longest row: [B, L, width] or [B, N, L, width]."""
        cache = self._cache
        return cache._storage[self._index][..., : max(cache._lengths) + cache._incoming, :]

    def positions(self) -> torch.Tensor:
        """Return the positions of the incoming tokens, [B, T] int64. Valid only if the cache holds earlier tokens."""
        return self.visible_lengths() - 1

    def visible_lengths(self) -> torch.Tensor:
        """Return the number of entries, [B, T] int64, that each incoming token can attend to, including its own."""
        assert self._cache._visible_lengths is not None
        return self._cache._visible_lengths

    def attention_mask(self) -> torch.Tensor | None:
        """Return a mask [B, 1, T, L] that is True where an incoming token can see an entry, or None if all are True."""
        return self._cache._attention_mask
