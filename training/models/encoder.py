"""The Transformer encoder ("Attention Is All You Need", arXiv 1706.03762) with a head that labels each position.

Shape suffixes are listed in :mod:`training.layers`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.models.encoder import EncoderSection
from configs.schema.models.encoder_decoder import EncoderDecoderSection
from training.layers.block import LayerStack
from training.layers.init import draw_normal, draw_xavier, fill_vector, matrices_in
from training.layers.lm_head import OutputHead
from training.layers.masks import Mask
from training.layers.position_embedding import PositionEmbedding
from training.layers.transformer_layer import TransformerLayer, make_norm


class Encoder(LayerStack):
    """Embedding and bidirectional layers: token ids [B, T] -> hidden states [B, T, D]."""

    def __init__(
        self, config: EncoderSection | EncoderDecoderSection, vocab_size: int, scale_positions: bool = True
    ) -> None:
        """Build the encoder.

        The first layer's input is (embedding + position) * sqrt(D), as in the Mini-Transformer, or embedding * sqrt(D)
        + position if ``scale_positions`` is False.
        """
        super().__init__()
        self.dropout, self.window = config.dropout, config.window
        self.scale = config.hidden_size**0.5
        self.position_scale = self.scale if scale_positions else 1.0
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.positions = PositionEmbedding(config)
        layers = [TransformerLayer(config, config.norm_first) for _ in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        # A post-norm stack already ends with a norm.
        self.norm = make_norm(config) if config.norm_first else nn.Identity()

    def forward(self, input_ids_BT: torch.Tensor, lengths_B: torch.Tensor | None = None) -> torch.Tensor:
        """Encode token ids. ``lengths_B`` is the number of tokens in each row, excluding padding, which is masked."""
        positions = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
        x_BTD = self.positions.add_position_embedding(
            self.embed_tokens(input_ids_BT), positions, self.scale, self.position_scale
        )
        if self.dropout and self.training:
            x_BTD = F.dropout(x_BTD, self.dropout)
        slopes, sides = self.positions.slopes(x_BTD.device, causal=False), self.positions.sides(x_BTD.device)
        mask = Mask(False, self.window, slopes, lengths_B, sides_N=sides)
        rope = self.positions.rotary_table(positions)
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask, rope)
        out: torch.Tensor = self.norm(x_BTD)
        return out


class EncoderForTokens(LayerStack):
    """An encoder whose head has ``vocab_size`` rows and predicts a token at each position.

    Weights are uninitialized until :func:`init_weights` or ``load_state_dict``. A layer's ``self_attn.attention_hook``,
    if set, is called with the attention weights.
    """

    def __init__(self, config: EncoderSection, vocab_size: int) -> None:
        super().__init__()
        self.section = config
        self.model = Encoder(config, vocab_size)
        self.lm_head = OutputHead(config.hidden_size, vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def hidden(self, input_ids_BT: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Map token ids [B, T] to the head's inputs [B, T, D]. For ``lengths`` [B], see :class:`Encoder`."""
        out: torch.Tensor = self.model(input_ids_BT, lengths)
        return out

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        targets: Sequence[torch.Tensor] | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Map token ids [B, T] to logits [B, T, V] in the model's dtype or, given ``targets``, to the summed loss.

        ``targets`` has a single element, the labels [B, T]. The loss is ``{"cross_entropy": sum in nats}``.
        """
        hidden_BTD = self.hidden(input_ids_BT, lengths)
        if targets is None:
            return self.lm_head(hidden_BTD)
        return {"cross_entropy": self.lm_head(hidden_BTD, targets[0])}


@torch.no_grad()
def init_weights(model: Any, seed: int) -> None:
    """Initialize every parameter of an encoder or encoder-decoder in place:

    | parameters                    | value                                                            |
    |-------------------------------|------------------------------------------------------------------|
    | embeddings, learned positions | N(0, D^-0.5), which sqrt(D) scales to the size of a sinusoid     |
    | projections, untied head      | Xavier uniform; queries, keys and values as three matrices       |
    | norms                         | 1                                                                |
    | biases                        | 0                                                                |

    A tied head shares the embedding's values.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            fill_vector(parameter, name)
        elif name.endswith(("embed_tokens.weight", "positions.weight")):
            draw_normal(parameter, f"{seed}/{name}", parameter.shape[1] ** -0.5)
        else:
            draw_xavier(parameter, f"{seed}/{name}", matrices_in(name))
