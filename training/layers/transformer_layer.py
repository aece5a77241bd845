"""A dense transformer layer: self-attention, optional cross-attention to an encoded sequence, and a feed-forward layer.

Shape suffixes are listed in :mod:`training.layers`.
"""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.models.transformer import TransformerSection
from training.layers.block import Layer, Sublayer
from training.layers.feed_forward import feed_forward
from training.layers.kv_cache import LayerCache
from training.layers.masks import Mask
from training.layers.multi_head import CrossAttention, CrossAttentionKV, SelfAttention, Source
from training.layers.norms import LayerNorm, RMSNorm
from training.layers.rope import RotaryTable


class TransformerLayer(Layer):
    """A transformer layer. Each sublayer reads the residual stream and adds its output to it, after dropout.

    ``norm_first`` puts a norm before each sublayer (pre-norm). Otherwise a norm follows each residual addition
    (post-norm, arXiv 1706.03762).
    """

    def __init__(
        self,
        config: TransformerSection,
        norm_first: bool,
        cross: bool = False,
        norm: Literal["layer", "rms"] = "layer",
    ) -> None:
        super().__init__()
        self.norm_first, self.dropout = norm_first, config.dropout
        self.input_layernorm = make_norm(config, norm)
        self.self_attn = SelfAttention(config)
        if cross:
            self.cross_attention_layernorm = make_norm(config, norm)
            self.cross_attn = CrossAttention(config)
        self.post_attention_layernorm = make_norm(config, norm)
        self.mlp = feed_forward(config)

    def forward(
        self,
        x_BTD: torch.Tensor,
        mask: Mask,
        rope: RotaryTable | None = None,
        cache: LayerCache | None = None,
        source: Source | CrossAttentionKV | None = None,
    ) -> torch.Tensor:
        """Map [B, T, D] -> [B, T, D]. A layer with cross-attention attends to the encoded sequence ``source``."""
        sublayers = [partial(self._residual, self.input_layernorm, lambda x: self.self_attn(x, mask, rope, cache))]
        if source is not None:
            norm = self.cross_attention_layernorm
            sublayers.append(partial(self._residual, norm, lambda x: self.cross_attn(x, source)))
        sublayers.append(partial(self._residual, self.post_attention_layernorm, self.mlp))
        return self.apply_sublayers(x_BTD, *sublayers)

    def compile_regions(self) -> None:
        """Compile the feed-forward layer. Attention already runs fused or compiled kernels."""
        self.mlp.compile()

    def _residual(self, norm: nn.Module, sublayer: Sublayer, x_BTD: torch.Tensor) -> torch.Tensor:
        out_BTD = sublayer(norm(x_BTD) if self.norm_first else x_BTD)
        if self.dropout and self.training:
            out_BTD = F.dropout(out_BTD, self.dropout)
        return x_BTD + out_BTD if self.norm_first else norm(x_BTD + out_BTD)


def make_norm(config: TransformerSection, norm: Literal["layer", "rms"] = "layer") -> nn.Module:
    """Build a norm over the hidden dimension."""
    if norm == "rms":
        return RMSNorm(config.hidden_size, config.layer_norm_eps)
    return LayerNorm(config.hidden_size, config.layer_norm_eps, config.bias)
