"""What decoding remembers of each token and layer: keys and values of every head, or one latent for all of them."""

from collections.abc import Sequence

import torch


class Cache:
    """The entries of every layer for B sequences of their own lengths, in one allocation.

    An entry is ``width`` numbers, or so many for each of ``heads``: a layer's are [B, L, width] or [B, N, L, width].
    Sequences stand at the left: row b holds ``lengths[b]`` entries, and what lies beyond is never looked at.
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
        """``capacity``: tokens a sequence; ``like``: of the dtype and on the device that entries have."""
        each = () if heads is None else (heads,)
        self._storage = like.new_zeros(layers, sequences, *each, capacity, width)
        self._lengths = [0] * sequences
        self._incoming = 0
        self._places: torch.Tensor | None = None
        self._seen: torch.Tensor | None = None
        self._hidden: torch.Tensor | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence that have been read."""
        return list(self._lengths)

    @property
    def nbytes(self) -> int:
        return self._storage.nbytes

    def begin(self, incoming: int) -> torch.Tensor:
        """Make ready for ``incoming`` further tokens of each sequence; returns their positions [B, T].

        Raises:
            ValueError: the cache has no room for them.
        """
        capacity = self._storage.shape[-2]
        if max(self._lengths) + incoming > capacity:
            raise ValueError(
                f"the cache holds {capacity} tokens a sequence: {max(self._lengths)} are there and {incoming} more do "
                "not fit"
            )
        device = self._storage.device
        self._incoming = incoming
        lengths = torch.tensor(self._lengths, device=device)
        positions_BT = lengths[:, None] + torch.arange(incoming, device=device)
        alike = len(set(self._lengths)) == 1
        self._places = None if alike else positions_BT
        # The first tokens of all see each other alone, which attention to whole sequences takes care of.
        self._seen = positions_BT + 1 if max(self._lengths) else None
        self._hidden = None
        if max(self._lengths) and (not alike or incoming > 1):
            keys_L = torch.arange(max(self._lengths) + incoming, device=device)
            self._hidden = (keys_L > positions_BT[..., None])[:, None]
        return positions_BT

    def commit(self, lengths: Sequence[int]) -> None:
        """What each sequence's length is from now on: tokens that were read are kept, or dropped again."""
        self._lengths = list(lengths)

    def reorder(self, rows: torch.Tensor) -> None:
        """Sequence b becomes what sequence ``rows[b]`` was, and goes on from there."""
        self._lengths = [self._lengths[row] for row in rows.tolist()]
        used = self._storage[..., : max(self._lengths), :]
        used.copy_(used.index_select(1, rows.to(used.device)))

    def layer(self, index: int) -> "LayerCache":
        return LayerCache(self, index)


class LayerCache:
    """One layer's part of a cache, as its attention uses it."""

    def __init__(self, cache: Cache, index: int) -> None:
        self._cache, self._index = cache, index

    @property
    def continues(self) -> bool:
        """Whether the incoming tokens follow others."""
        return max(self._cache._lengths) > 0

    def enter(self, entries: torch.Tensor) -> None:
        """Store the incoming tokens' entries, [B, T, width] or [B, N, T, width], behind those that are there."""
        cache = self._cache
        stored = cache._storage[self._index]
        if cache._places is None:
            start = cache._lengths[0]
            stored[..., start : start + cache._incoming, :] = entries
        else:
            rows = torch.arange(len(stored), device=stored.device)[:, None]
            # Heads stand between the two indices: they come last in what these select.
            if stored.dim() == 4:
                stored[rows, :, cache._places] = entries.transpose(1, 2)
            else:
                stored[rows, cache._places] = entries

    def entries(self) -> torch.Tensor:
        """[B, L, width] or [B, N, L, width]: what is stored, up to the longest sequence's last incoming token."""
        cache = self._cache
        return cache._storage[self._index][..., : max(cache._lengths) + cache._incoming, :]

    def positions(self) -> torch.Tensor:
        """[B, T] int64: of the incoming tokens."""
        return self.seen() - 1

    def seen(self) -> torch.Tensor:
        """[B, T] int64: how many entries a token that follows others sees, its own the last of them."""
        assert self._cache._seen is not None
        return self._cache._seen

    def hidden(self) -> torch.Tensor | None:
        """[B, 1, T, L] bool: which entries an incoming token must not see; None: it sees all."""
        return self._cache._hidden
