"""Base classes for decoder-only language models, covering the layer stack, positions, KV cache and loss.

Shape suffixes: B sequences, T positions, D hidden size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from configs.schema.models import ModelSection
from training.layers.block import LayerStack
from training.layers.kv_cache import Cache
from training.layers.packed_documents import Documents


class Decoder(LayerStack):
    """Embedding, layers and final norm: token ids [B, T] -> hidden states [B, T, D].

    A family creates ``embed_tokens``, ``layers`` and ``norm``, in this order, and defines :meth:`layer_inputs`.

    Attributes:
        depth: number of layers in the stack. ``layers`` may hold further layers that are not part of the stack.
        cache_width: number of elements per cache entry (see :class:`Cache`).
        cache_heads: number of heads that each have their own cache entries. None if all heads share one entry.
    """

    depth: int
    cache_width: int
    cache_heads: int | None = None
    embed_tokens: nn.Embedding
    layers: nn.ModuleList
    norm: nn.Module

    def embed(self, input_ids_BT: torch.Tensor, _positions: torch.Tensor) -> torch.Tensor:
        """Map token ids [B, T] at positions [T] or [B, T] to the first layer's input [B, T, D]."""
        out: torch.Tensor = self.embed_tokens(input_ids_BT)
        return out

    def layer_inputs(self, positions: torch.Tensor, documents: Documents | None) -> tuple[Any, ...]:
        """Return the arguments to pass to every layer after the hidden states and before the cache."""
        raise NotImplementedError

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        positions: torch.Tensor,
        layer_inputs: tuple[Any, ...],
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Run the stack. ``layer_inputs`` is the result of :meth:`layer_inputs` for the same positions."""
        x_BTD = self.embed(input_ids_BT, positions)
        for index, layer in enumerate(list(self.layers)[: self.depth]):
            x_BTD = layer(x_BTD, *layer_inputs, cache and cache.layer(index))
        out: torch.Tensor = self.norm(x_BTD)
        return out


class CausalLM(LayerStack):
    """A decoder ``model`` and its head ``lm_head`` with V rows, which may include padding beyond the vocabulary.

    Weights are uninitialized until ``init_weights`` or ``load_state_dict``.
    """

    model: Any
    lm_head: Any

    def __init__(self, section: ModelSection, model: nn.Module, lm_head: nn.Module, tied: bool = False) -> None:
        """Combine a decoder and a head. If ``tied``, the head shares the embedding's matrix."""
        super().__init__()
        self.section = section
        self.model = model
        self.lm_head = lm_head
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def new_cache(self, sequences: int, capacity: int, layers: int | None = None) -> Cache:
        """Create a cache for ``capacity`` tokens per sequence and ``layers`` layers (default: the decoder's depth)."""
        like = self.lm_head.weight.detach()
        depth = layers or self.model.depth
        return Cache(depth, sequences, capacity, self.model.cache_width, like, self.model.cache_heads)

    def hidden(
        self, input_ids_BT: torch.Tensor, starts: torch.Tensor | None = None, cache: Cache | None = None
    ) -> torch.Tensor:
        """Map token ids [B, T] to the normalized hidden states [B, T, D] that the head reads.

        For ``starts``, see :class:`Documents`. With a ``cache``, the ids follow the cached tokens, and the caller must
        commit the ids to the cache.
        """
        positions, documents = locate(input_ids_BT, starts, cache)
        out: torch.Tensor = self.model(input_ids_BT, positions, self.model.layer_inputs(positions, documents), cache)
        return out

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        targets: Sequence[torch.Tensor] | None = None,
        starts: torch.Tensor | None = None,
        *,
        per_token: bool = False,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Map token ids [B, T] to logits [B, T, V] in the model's dtype or, given ``targets``, to the loss.

        Args:
            input_ids_BT: token ids.
            targets: a single element, the labels [B, T].
            starts: where documents begin (see :class:`Documents`). If None, a token attends to all tokens before it.
            per_token: whether to return each target's loss rather than their sum.

        Returns:
            Logits, or ``{"cross_entropy": sum over the targets in nats, or [B, T] with 0 for ignored labels}``.
        """
        hidden_BTD = self.hidden(input_ids_BT, starts)
        if targets is None:
            logits_BTV: torch.Tensor = self.lm_head(hidden_BTD)
            return logits_BTV
        return {"cross_entropy": self.lm_head(hidden_BTD, targets[0], per_token)}


def locate(
    input_ids_BT: torch.Tensor, starts: torch.Tensor | None, cache: Cache | None
) -> tuple[torch.Tensor, Documents | None]:
    """Return the positions of token ids, [T] or [B, T], and their documents, if any.

    Positions are counted from each document's start if there are ``starts``, from the end of the cache if there is one,
    or else from 0.
    """
    samples, length = input_ids_BT.shape
    if starts is not None:
        documents = Documents(starts, samples, length)
        return documents.positions(), documents
    if cache is not None:
        return cache.begin(length), None
    return torch.arange(length, device=input_ids_BT.device), None
