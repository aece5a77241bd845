"""The Transformer's encoder ("Attention Is All You Need", arXiv 1706.03762) with a head over tokens at each position.

Shape suffixes are listed in :mod:`training.layers`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.models.encoder import EncoderSection
from configs.schema.models.encoder_decoder import EncoderDecoderSection
from training.layers.block import Layered
from training.layers.init import draw_normal, draw_xavier, matrices_in
from training.layers.lm_head import OutputHead
from training.layers.masks import Mask
from training.layers.position_embedding import Places
from training.layers.transformer_layer import TransformerLayer, make_norm


class Encoder(Layered):
    """Embedding and layers that look both ways: token ids [B, T] -> hidden states [B, T, D]."""

    def __init__(
        self, config: EncoderSection | EncoderDecoderSection, vocab_size: int, scale_positions: bool = True
    ) -> None:
        """``scale_positions``: (embedding + position) * sqrt(D), as the Mini-Transformer; else embedding * sqrt(D) +
        position.
        """
        super().__init__()
        self.dropout, self.window = config.dropout, config.window
        self.scale = config.hidden_size**0.5
        self.own_scale = self.scale if scale_positions else 1.0
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.positions = Places(config)
        layers = [TransformerLayer(config, config.norm_first) for _ in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList(layers)
        # A post-norm stack ends with the last layer's norm.
        self.norm = make_norm(config) if config.norm_first else nn.Identity()

    def forward(self, input_ids_BT: torch.Tensor, lengths_B: torch.Tensor | None = None) -> torch.Tensor:
        """``lengths_B``: tokens of each row that are there; what stands behind them is not looked at."""
        positions = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
        x_BTD = self.positions.put(self.embed_tokens(input_ids_BT), positions, self.scale, self.own_scale)
        if self.dropout and self.training:
            x_BTD = F.dropout(x_BTD, self.dropout)
        slopes, sides = self.positions.slopes(x_BTD.device, causal=False), self.positions.sides(x_BTD.device)
        mask = Mask(False, self.window, slopes, lengths_B, sides_N=sides)
        turn = self.positions.rotation(positions)
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask, turn)
        out: torch.Tensor = self.norm(x_BTD)
        return out


class EncoderForTokens(Layered):
    """An encoder and its head over ``vocab_size`` rows, at each position for that position.

    Weights are undefined until :func:`init_weights` or ``load_state_dict``. The weights of every layer's attention go
    to a ``listener`` of its ``self_attn``, where one is set.
    """

    def __init__(self, config: EncoderSection, vocab_size: int) -> None:
        super().__init__()
        self.section = config
        self.model = Encoder(config, vocab_size)
        self.lm_head = OutputHead(config.hidden_size, vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def hidden(self, input_ids_BT: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids [B, T] -> hidden states [B, T, D]: what the head reads; ``lengths`` [B] as in :class:`Encoder`."""
        out: torch.Tensor = self.model(input_ids_BT, lengths)
        return out

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        targets: Sequence[torch.Tensor] | None = None,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Token ids [B, T] -> logits [B, T, V] in the dtype of the model; with ``targets`` the sum of the loss.

        ``targets``: labels [B, T], the only element. Returns ``cross_entropy`` in nats over them by its name.
        """
        hidden_BTD = self.hidden(input_ids_BT, lengths)
        if targets is None:
            return self.lm_head(hidden_BTD)
        return {"cross_entropy": self.lm_head(hidden_BTD, targets[0])}


@torch.no_grad()
def init_weights(model: Any, seed: int) -> None:
    """Initialise every parameter of an encoder or encoder-decoder in place:

    | what                          | value                                                            |
    |-------------------------------|------------------------------------------------------------------|
    | embeddings, learned positions | N(0, D^-0.5), which times sqrt(D) is as large as a sinusoid      |
    | projections, untied head      | Xavier's uniform; queries, keys and values as three matrices     |
    | norms                         | 1                                                                |
    | biases                        | 0                                                                |

    A head tied to the embedding is drawn as that.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
        elif name.endswith(("embed_tokens.weight", "positions.weight")):
            draw_normal(parameter, f"{seed}/{name}", parameter.shape[1] ** -0.5)
        else:
            draw_xavier(parameter, f"{seed}/{name}", matrices_in(name))
