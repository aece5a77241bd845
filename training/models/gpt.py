"""GPT-2 (Radford et al., 2019) and its relatives: a dense decoder with any position encoding.

The family includes nanoGPT (no biases, padded vocabulary), small character-level GPTs as taught in introductory courses
(ReLU, untied head), and models with RMSNorm, SwiGLU and RoPE. Shape suffixes: B sequences, T positions, D hidden size.
All are listed in :mod:`training.layers`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.models.gpt import GptSection
from training.layers.init import draw_normal, fill_vector
from training.layers.lm_head import OutputHead
from training.layers.masks import Mask
from training.layers.packed_documents import Documents
from training.layers.position_embedding import PositionEmbedding
from training.layers.rope import RotaryTable
from training.layers.transformer_layer import TransformerLayer, make_norm
from training.models.causal_lm import CausalLM, Decoder


class GptDecoder(Decoder):
    """Embedding plus positions, pre-norm layers and final norm: token ids [B, T] -> hidden states [B, T, D]."""

    def __init__(self, config: GptSection, vocab_size: int) -> None:
        super().__init__()
        self.depth, self.dropout, self.window = config.num_hidden_layers, config.dropout, config.window
        self.cache_width, self.cache_heads = 2 * config.head_size, config.num_attention_heads  # keys and values
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.positions = PositionEmbedding(config)
        self.layers = nn.ModuleList(TransformerLayer(config, True, norm=config.norm) for _ in range(self.depth))
        self.norm = make_norm(config, config.norm)

    def embed(self, input_ids_BT: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x_BTD = self.positions.add_position_embedding(self.embed_tokens(input_ids_BT), positions)
        return F.dropout(x_BTD, self.dropout) if self.dropout and self.training else x_BTD

    def layer_inputs(self, positions: torch.Tensor, documents: Documents | None) -> tuple[Mask, RotaryTable | None]:
        mask = Mask(True, self.window, self.positions.slopes(positions.device), documents=documents)
        return mask, self.positions.rotary_table(positions)


class GptForCausalLM(CausalLM):
    """The decoder and its head, which may be tied to the embedding."""

    section: GptSection

    def __init__(self, config: GptSection, vocab_size: int) -> None:
        decoder = GptDecoder(config, vocab_size)
        super().__init__(config, decoder, OutputHead(config.hidden_size, vocab_size), config.tie_word_embeddings)


@torch.no_grad()
def init_weights(model: Any, seed: int) -> None:
    """Initialize every parameter in place, as GPT-2 does (the model must have a ``section``):

    | parameters                                       | value                                      |
    |--------------------------------------------------|--------------------------------------------|
    | embeddings, learned positions, head, projections | N(0, initializer_range)                    |
    | projections that add to the residual stream      | N(0, initializer_range / sqrt(2 * layers)) |
    | norms                                            | 1                                          |
    | biases                                           | 0                                          |
    """
    std = model.section.initializer_range
    residual_std = std / math.sqrt(2 * model.section.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            fill_vector(parameter, name)
        else:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            draw_normal(parameter, f"{seed}/{name}", residual_std if residual else std)
