"""A text classifier: a decoder or encoder backbone, pooling over a text's tokens, and a linear layer.

The backbone has no head, and its modules have the same names as in a model of its family. That family's checkpoints
therefore load into the backbone (:func:`training.export.weights.load_backbone`), and DeepSpeed's AutoEP recognizes
DeepSeek's layers. Shape suffixes are listed in :mod:`training.layers`; here C is the number of classes.
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F

from configs.schema.models.classifier import ClassifierSection
from configs.schema.models.deepseek import DeepseekSection
from configs.schema.models.gpt import GptSection
from training.layers.block import LayerStack
from training.layers.cross_entropy import cross_entropy_sum
from training.layers.linear import Linear
from training.layers.router import Router, balance_losses, record_routing
from training.models import deepseek, encoder, gpt


class Classifier(LayerStack):
    """Maps token ids [B, T] to logits [B, C].

    Weights are uninitialized until :func:`init_weights` or ``load_state_dict``. With ``backbone_rate`` 0, the backbone
    is frozen: it saves nothing for the backward pass, and its router biases do not change.
    """

    def __init__(self, config: ClassifierSection, vocab_size: int) -> None:
        super().__init__()
        self.section, self.pooling, self.dropout = config.backbone, config.pooling, config.dropout
        self.frozen = config.backbone_rate == 0
        self.model: gpt.GptDecoder | deepseek.DeepseekDecoder | encoder.Encoder
        match config.backbone:
            case GptSection():
                self.model = gpt.GptDecoder(config.backbone, vocab_size)
            case DeepseekSection():
                self.model = deepseek.DeepseekDecoder(config.backbone, vocab_size)
                self.config = deepseek.released_config(config.backbone, vocab_size)
            case _:
                self.model = encoder.Encoder(config.backbone, vocab_size)
        self.model.requires_grad_(not self.frozen)
        self.score = Linear(config.backbone.hidden_size, config.classes)

    def hidden(self, input_ids_BT: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Map token ids [B, T] to hidden states [B, T, D], which are undefined at positions past ``lengths`` [B]."""
        if isinstance(self.model, encoder.Encoder):
            out = self.model(input_ids_BT, lengths)
        else:
            positions = torch.arange(input_ids_BT.shape[1], device=input_ids_BT.device)
            out = self.model(input_ids_BT, positions, self.model.layer_inputs(positions, None))
        return cast(torch.Tensor, out)

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        targets: Sequence[torch.Tensor] | None = None,
        lengths: torch.Tensor | None = None,
        balance: Sequence[str] = (),
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """Map token ids [B, T] to logits [B, C] in the model's dtype or, given ``targets``, to the summed losses.

        Args:
            input_ids_BT: token ids.
            targets: a single element, the labels [B].
            lengths: [B], number of tokens in each row, excluding padding. None if there is no padding.
            balance: names of the balancing losses to compute if the backbone has experts (see ``BALANCE_LOSSES``).

        Returns:
            Logits, or losses by name: ``cross_entropy`` summed over the labels in nats, and the balancing losses.
        """
        if targets is None:
            return self._score(input_ids_BT, lengths)
        layers = self.model.modules() if self.training and not self.frozen else ()
        routers = [layer for layer in layers if isinstance(layer, Router)]
        padding_mask_M = None
        if lengths is not None:
            padding_mask_M = (torch.arange(input_ids_BT.shape[1], device=lengths.device) < lengths[:, None]).flatten()
        with record_routing(routers, padding_mask_M):
            logits = self._score(input_ids_BT, lengths)
        losses = balance_losses(routers, balance, len(input_ids_BT))
        return {"cross_entropy": cross_entropy_sum(logits, targets[0]), **losses}

    def _score(self, input_ids_BT: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        pooled_BD = pooled(self.hidden(input_ids_BT, lengths), self.pooling, lengths)
        if self.dropout and self.training:
            pooled_BD = F.dropout(pooled_BD, self.dropout)
        out: torch.Tensor = self.score(pooled_BD)
        return out


def pooled(x_BTD: torch.Tensor, pooling: str, lengths_B: torch.Tensor | None = None) -> torch.Tensor:
    """Pool [B, T, D] to [B, D]: take each text's ``first`` or ``last`` hidden state, or the ``mean`` of all."""
    samples, length, _ = x_BTD.shape
    if lengths_B is None:
        lengths_B = torch.full((samples,), length, device=x_BTD.device)
    if pooling == "first":
        return x_BTD[:, 0]
    if pooling == "last":
        return x_BTD[torch.arange(samples, device=x_BTD.device), lengths_B - 1]
    padding_BT = torch.arange(length, device=x_BTD.device) >= lengths_B[:, None]
    total_BD = x_BTD.masked_fill(padding_BT[..., None], 0.0).sum(1, dtype=torch.float32)
    return (total_BD / lengths_B[:, None]).to(x_BTD.dtype)


def init_weights(model: Classifier, seed: int, experts: range | None = None) -> None:
    """Initialize every parameter and buffer in place: the backbone as in its family, and the head like a projection.

    ``experts`` is the range of experts whose weights are needed if the backbone has experts, or None for all experts.
    """
    match model.model:
        case gpt.GptDecoder():
            gpt.init_weights(model, seed)
        case deepseek.DeepseekDecoder():
            deepseek.init_weights(model, seed, experts)
        case _:
            encoder.init_weights(model, seed)
