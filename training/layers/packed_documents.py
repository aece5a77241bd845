"""Where documents are in packed samples: positions, and the masks that keep them apart."""

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import torch


class Documents:
    """The documents in a micro-batch of B samples of T positions. Built once per forward pass, used by every layer."""

    def __init__(self, starts: torch.Tensor, samples: int, length: int) -> None:
        """``starts``: int32, increasing: the first position of each document in the B*T flattened positions, then B*T.

        Every sample begins a document (see ``training.data.batch``).
        """
        self._starts, self._samples, self._length = starts, samples, length
        begins = torch.zeros(samples * length, dtype=torch.int64, device=starts.device)
        begins[starts[1:-1].long()] = 1
        self.ids_BT = begins.cumsum(0).view(samples, length)
        self._spans: list[list[tuple[int, int]]] | None = None
        self._block_mask: Any = None

    def positions(self) -> torch.Tensor:
        """[B, T] int64: positions counted from the beginning of the document, or of the part that the sample holds."""
        flat = torch.arange(self._samples * self._length, device=self._starts.device)
        return (flat - self._starts.long()[self.ids_BT.flatten()]).view(self._samples, self._length)

    def spans(self) -> list[list[tuple[int, int]]]:
        """(first position, one past the last) of the documents of each sample; copies ``starts`` to the host."""
        if self._spans is None:
            self._spans = [[] for _ in range(self._samples)]
            cuts = self._starts.tolist()
            for start, end in pairwise(cuts):
                row = start // self._length
                self._spans[row].append((start - row * self._length, end - row * self._length))
        return self._spans

    def block_mask(self) -> Any:
        """FlexAttention's block mask of causal attention within documents."""
        if self._block_mask is None:
            ids_BT = self.ids_BT

            def mask_mod(b: Any, _head: Any, query: Any, key: Any) -> Any:
                return (query >= key) & (ids_BT[b, query] == ids_BT[b, key])

            self._block_mask = make_block_mask(mask_mod, self._samples, self._length, self._length, ids_BT.device)
        return self._block_mask

    def follow(self, distance: int) -> torch.Tensor:
        """[B, T] bool: whether the position ``distance`` ahead is in the same sample and document."""
        ahead = torch.zeros_like(self.ids_BT, dtype=torch.bool)
        ahead[:, :-distance] = self.ids_BT[:, distance:] == self.ids_BT[:, :-distance]
        return ahead


def make_block_mask(
    mask_mod: Callable[..., Any], samples: int | None, queries: int, keys: int, device: torch.device
) -> Any:
    """FlexAttention's block mask of ``mask_mod(b, head, query, key)``; blocks that are masked are not computed."""
    return _create_block_mask(device.type)(mask_mod, samples, None, queries, keys, device=str(device))


@cache
def flex_attention() -> Callable[..., torch.Tensor]:
    """FlexAttention, compiled once per process where there are GPUs: uncompiled it computes every score."""
    from torch.nn.attention.flex_attention import flex_attention

    eager: Any = flex_attention
    return torch.compile(eager, dynamic=False) if torch.cuda.is_available() else eager


@cache
def _create_block_mask(device: str) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import create_block_mask

    # Compiled, it never holds a mask of all pairs of positions.
    return create_block_mask if device == "cpu" else torch.compile(create_block_mask)
