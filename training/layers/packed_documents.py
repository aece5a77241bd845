"""Document boundaries in packed samples: position ids, and masks that keep documents from attending to each other."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch


class Documents:
    """The documents in a micro-batch of B samples with T positions each. Built once per forward pass for all layers."""

    def __init__(self, starts: torch.Tensor, samples: int, length: int) -> None:
        """Build from ``starts``: each document's first index among the B*T flattened positions, followed by B*T.

        ``starts`` is int32 and increasing. Every sample starts a new document (see ``training.data.batch``).
        """
        self._starts, self._samples, self._length = starts, samples, length
        begins = torch.zeros(samples * length, dtype=torch.int64, device=starts.device)
        begins[starts[1:-1].long()] = 1
        self.ids_BT = begins.cumsum(0).view(samples, length)
        self._spans: list[list[tuple[int, int]]] | None = None
        self._block_mask: Any = None

    def positions(self) -> torch.Tensor:
        """Return each token's position [B, T] (int64) in its document, or in the document's part inside this sample."""
        flat = torch.arange(self._samples * self._length, device=self._starts.device)
        return (flat - self._starts.long()[self.ids_BT.flatten()]).view(self._samples, self._length)

    def spans(self) -> list[list[tuple[int, int]]]:
        """Return each sample's documents as (start, end) positions, end exclusive. Copies ``starts`` to the host."""
        if self._spans is None:
            self._spans = [[] for _ in range(self._samples)]
            cuts = self._starts.tolist()
            for start, end in pairwise(cuts):
                row = start // self._length
                self._spans[row].append((start - row * self._length, end - row * self._length))
        return self._spans

    def block_mask(self) -> Any:
        """Return FlexAttention's block mask for causal attention within documents."""
        if self._block_mask is None:
            ids_BT = self.ids_BT

            def mask_mod(b: Any, _head: Any, query: Any, key: Any) -> Any:
                return (query >= key) & (ids_BT[b, query] == ids_BT[b, key])

            self._block_mask = make_block_mask(mask_mod, self._samples, self._length, self._length, ids_BT.device)
        return self._block_mask

    def follow(self, distance: int) -> torch.Tensor:
        """Return a bool mask [B, T]: True where the token ``distance`` positions ahead belongs to the same document."""
        ahead = torch.zeros_like(self.ids_BT, dtype=torch.bool)
        ahead[:, :-distance] = self.ids_BT[:, distance:] == self.ids_BT[:, :-distance]
        return ahead


def make_block_mask(
    mask_mod: Callable[..., Any], samples: int | None, queries: int, keys: int, device: torch.device
) -> Any:
    """Build the block mask for ``mask_mod(b, head, query, key)``. With it, FlexAttention skips fully masked blocks."""
    return _create_block_mask(device.type)(mask_mod, samples, None, queries, keys, device=str(device))


@cache
def flex_attention() -> Callable[..., torch.Tensor]:
    """Return FlexAttention, compiled once per process if there are GPUs. The eager version computes every score."""
    from torch.nn.attention.flex_attention import flex_attention

    eager: Any = flex_attention
    return torch.compile(eager, dynamic=False) if torch.cuda.is_available() else eager


@cache
def _create_block_mask(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import create_block_mask

    # The compiled version never materializes a mask of all pairs of positions.
    return torch.compile(create_block_mask) if device == "cuda" else create_block_mask
