"""A dense transformer layer: self-attention, optional cross-attention to an encoded sequence, and a feed-forward layer.

Shape suffixes are listed in :mod:`training.layers`.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.models.transformer import TransformerSection
from training.layers.activation_checkpointing import checkpointed
from training.layers.block import Layer
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
        mode = self.activation_checkpointing if self.training else "none"
        if mode == "full":
            return checkpointed(self._all_blocks, mode, x_BTD, mask, rope, cache, source)
        x_BTD = checkpointed(self._attention_block, mode, x_BTD, mask, rope, cache)
        if source is not None:
            x_BTD = checkpointed(self._cross_attention_block, mode, x_BTD, source)
        return checkpointed(self._feed_forward_block, mode, x_BTD)

    def compile_regions(self) -> None:
        """Compile the feed-forward layer. Attention already runs fused or compiled kernels."""
        self.mlp.compile()

    def _all_blocks(
        self,
        x_BTD: torch.Tensor,
        mask: Mask,
        rope: RotaryTable | None,
        cache: LayerCache | None,
        source: Source | CrossAttentionKV | None,
    ) -> torch.Tensor:
        x_BTD = self._attention_block(x_BTD, mask, rope, cache)
        return self._feed_forward_block(x_BTD if source is None else self._cross_attention_block(x_BTD, source))

    def _attention_block(
        self, x_BTD: torch.Tensor, mask: Mask, rope: RotaryTable | None, cache: LayerCache | None
    ) -> torch.Tensor:
        norm = self.input_layernorm
        return self._add(x_BTD, norm, self.self_attn(self._pre_norm(x_BTD, norm), mask, rope, cache))

    def _cross_attention_block(self, x_BTD: torch.Tensor, source: Source | CrossAttentionKV) -> torch.Tensor:
        norm = self.cross_attention_layernorm
        return self._add(x_BTD, norm, self.cross_attn(self._pre_norm(x_BTD, norm), source))

    def _feed_forward_block(self, x_BTD: torch.Tensor) -> torch.Tensor:
        norm = self.post_attention_layernorm
        return self._add(x_BTD, norm, self.mlp(self._pre_norm(x_BTD, norm)))

    def _pre_norm(self, x_BTD: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        return norm(x_BTD) if self.norm_first else x_BTD

    def _add(self, x_BTD: torch.Tensor, norm: nn.Module, part_BTD: torch.Tensor) -> torch.Tensor:
        if self.dropout and self.training:
            part_BTD = F.dropout(part_BTD, self.dropout)
        return x_BTD + part_BTD if self.norm_first else norm(x_BTD + part_BTD)


def make_norm(config: TransformerSection, norm: Literal["layer", "rms"] = "layer") -> nn.Module:
    """Build a norm over the hidden dimension."""
    if norm == "rms":
        return RMSNorm(config.hidden_size, config.layer_norm_eps)
    return LayerNorm(config.hidden_size, config.layer_norm_eps, config.bias)
