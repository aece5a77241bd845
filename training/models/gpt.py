"""GPT-2 (Radford and others, 2019) and its kin: a decoder of dense layers over learned or any other positions.

With nanoGPT's choices (no biases, a padded vocabulary), the course's (ReLU, untied head), or RMSNorm, SwiGLU and RoPE.
Shape suffixes are listed in :mod:`training.layers`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.models.gpt import GptSection
from training.layers.block import Layered
from training.layers.init import draw_normal
from training.layers.kv_cache import Cache
from training.layers.lm_head import OutputHead
from training.layers.masks import Mask
from training.layers.packed_documents import Documents
from training.layers.position_embedding import Places
from training.layers.transformer_layer import TransformerLayer, make_norm


class GptDecoder(Layered):
    """Embedding, layers and final norm: token ids [B, T] -> hidden states [B, T, D]."""

    def __init__(self, config: GptSection, vocab_size: int) -> None:
        super().__init__()
        self.dropout, self.window = config.dropout, config.window
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.positions = Places(config)
        layers = [TransformerLayer(config, True, norm=config.norm) for _ in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        self.norm = make_norm(config, config.norm)

    def forward(
        self, input_ids_BT: torch.Tensor, positions: torch.Tensor, documents: Documents | None, cache: Cache | None
    ) -> torch.Tensor:
        x_BTD = self.positions.put(self.embed_tokens(input_ids_BT), positions)
        if self.dropout and self.training:
            x_BTD = F.dropout(x_BTD, self.dropout)
        mask = Mask(True, self.window, self.positions.slopes(x_BTD.device), documents=documents)
        turn = self.positions.rotation(positions)
        for index, layer in enumerate(self.layers):
            x_BTD = layer(x_BTD, mask, turn, cache and cache.layer(index))
        out: torch.Tensor = self.norm(x_BTD)
        return out


class GptForCausalLM(Layered):
    """A decoder and its head over ``vocab_size`` rows, which may exceed the tokenizer's (padding).

    Weights are undefined until :func:`init_weights` or ``load_state_dict``.
    """

    def __init__(self, config: GptSection, vocab_size: int) -> None:
        super().__init__()
        self.section = config
        self.model = GptDecoder(config, vocab_size)
        self.lm_head = OutputHead(config.hidden_size, vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def new_cache(self, sequences: int, capacity: int) -> Cache:
        """Room for ``capacity`` tokens of each of ``sequences``: keys and values of every layer and head."""
        config = self.section
        heads, width = config.num_attention_heads, 2 * config.head_size
        return Cache(config.num_hidden_layers, sequences, capacity, width, self.lm_head.weight.detach(), heads)

    def hidden(
        self, input_ids_BT: torch.Tensor, starts: torch.Tensor | None = None, cache: Cache | None = None
    ) -> torch.Tensor:
        """Token ids [B, T] -> normalised hidden states [B, T, D]: what the head reads.

        ``starts`` as in :class:`Documents`; with a ``cache`` the ids follow those that are in it, and the caller
        commits them.
        """
        samples, length = input_ids_BT.shape
        documents = None if starts is None else Documents(starts, samples, length)
        if documents is not None:
            positions = documents.positions()
        elif cache is not None:
            positions = cache.begin(length)
        else:
            positions = torch.arange(length, device=input_ids_BT.device)
        out: torch.Tensor = self.model(input_ids_BT, positions, documents, cache)
        return out

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        targets: Sequence[torch.Tensor] | None = None,
        starts: torch.Tensor | None = None,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Token ids [B, T] -> logits [B, T, V] in the dtype of the model; with ``targets`` the sum of the loss.

        ``targets``: labels [B, T], the only element. Returns ``cross_entropy`` in nats over them by its name.
        """
        hidden_BTD = self.hidden(input_ids_BT, starts)
        if targets is None:
            return self.lm_head(hidden_BTD)
        return {"cross_entropy": self.lm_head(hidden_BTD, targets[0])}


@torch.no_grad()
def init_weights(model: Any, seed: int) -> None:
    """Initialise every parameter of a model with a ``section`` in place, as GPT-2 does:

    | what                                             | value                                      |
    |--------------------------------------------------|--------------------------------------------|
    | embeddings, learned positions, head, projections | N(0, initializer_range)                    |
    | those whose result is added to the stream        | N(0, initializer_range / sqrt(2 * layers)) |
    | norms                                            | 1                                          |
    | biases                                           | 0                                          |
    """
    range_ = model.section.initializer_range
    narrow = range_ / math.sqrt(2 * model.section.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
        else:
            adds = name.endswith(("o_proj.weight", "down_proj.weight"))
            draw_normal(parameter, f"{seed}/{name}", narrow if adds else range_)
