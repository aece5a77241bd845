"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

Shape suffixes are listed in :mod:`training.layers`.
"""

import torch
from torch import nn

from configs.schema.models.deepseek import DeepseekSection
from training.layers import cpu
from training.layers.attention import AttentionHook, attention_weights, causal_attention
from training.layers.kv_cache import LayerCache
from training.layers.linear import Linear
from training.layers.masks import Mask
from training.layers.norms import RMSNorm
from training.layers.packed_documents import Documents
from training.layers.rope import RotaryTable, rotate_tail, softmax_scale


class MultiHeadLatentAttention(nn.Module):
    """Causal attention whose keys and values are expanded from one narrow latent per token.

    Each head's query and key have a non-rotary part and a rotary part. All heads share the rotary key. If
    ``q_lora_rank`` is set, queries are expanded from a separate latent.
    """

    def __init__(self, config: DeepseekSection) -> None:
        super().__init__()
        hidden, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        self.heads = heads
        self.nope_dim, self.rope_dim, self.value_dim = (
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
        )
        self.latent_dim = config.kv_lora_rank
        query_dim = self.nope_dim + self.rope_dim
        self.scale = softmax_scale(query_dim, config.rope_scaling)
        # The two latent norms ignore rms_norm_eps and use RMSNorm's default epsilon, as the released models do.
        if config.q_lora_rank is None:
            self.q_proj = Linear(hidden, heads * query_dim, bias=False)
        else:
            self.q_a_proj = Linear(hidden, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank)
            self.q_b_proj = Linear(config.q_lora_rank, heads * query_dim, bias=False)
        self.queries_have_latent = config.q_lora_rank is not None
        self.kv_a_proj_with_mqa = Linear(hidden, self.latent_dim + self.rope_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(self.latent_dim)
        self.kv_b_proj = Linear(self.latent_dim, heads * (self.nope_dim + self.value_dim), bias=False)
        self.o_proj = Linear(heads * self.value_dim, hidden, bias=bias)
        self.attention_hook: AttentionHook | None = None

    def forward(
        self,
        x_BTD: torch.Tensor,
        rope: RotaryTable,
        documents: Documents | None = None,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """Map [B, T, D] -> [B, T, D].

        ``rope`` is the table for the T positions. The T tokens follow the tokens that ``cache`` already holds, and
        their entries are appended to the cache.
        """
        if cache is not None and cache.has_past:
            return self.o_proj(self._absorbed(x_BTD, rope, cache).flatten(2))
        q_BNTQ, k_BNTQ, v_BNTZ, *entry = self.expand(x_BTD, rope)
        if cache is not None:
            cache.append(torch.cat(entry, dim=-1))
        if self.attention_hook is not None:
            self.attention_hook(attention_weights(q_BNTQ, k_BNTQ, self.scale, Mask(True)))
        out_BNTZ = causal_attention(q_BNTQ, k_BNTQ, v_BNTZ, self.scale, documents)
        return self.o_proj(out_BNTZ.transpose(1, 2).flatten(2))

    def expand(
        self, x_BTD: torch.Tensor, rope: RotaryTable
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries and keys [B, N, T, Q] and values [B, N, T, Z].

        The last two results are for the cache: the latents [B, T, C] and the rotary keys [B, T, R].
        """
        q_BNTQ = rotate_tail(self._queries(x_BTD), rope)
        latent_BTC, rope_BTR = self._latents(x_BTD, rope)
        expanded = self.kv_b_proj(latent_BTC).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        nope_BNTP, v_BNTZ = expanded.split((self.nope_dim, self.value_dim), dim=-1)
        rope_BNTR = rope_BTR[:, None].expand(-1, self.heads, -1, -1)
        return q_BNTQ, torch.cat((nope_BNTP, rope_BNTR), dim=-1), v_BNTZ, latent_BTC, rope_BTR

    def _queries(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return the queries before rotation: [B, N, T, Q]."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD))) if self.queries_have_latent else self.q_proj(x_BTD)
        return q.view(*q.shape[:2], self.heads, -1).transpose(1, 2)

    def _latents(self, x_BTD: torch.Tensor, rope: RotaryTable) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each token's normalized latent [B, T, C] and rotated key [B, T, R]."""
        latent_BTC, rope_BTR = self.kv_a_proj_with_mqa(x_BTD).split((self.latent_dim, self.rope_dim), dim=-1)
        return self.kv_a_layernorm(latent_BTC), rotate_tail(rope_BTR[:, None], rope)[:, 0]

    def _absorbed(self, x_BTD: torch.Tensor, rope: RotaryTable, cache: LayerCache) -> torch.Tensor:
        """Attend to the cached latents, whose expansion is absorbed into queries and outputs. Returns [B, T, N, Z]."""
        cache.append(torch.cat(self._latents(x_BTD, rope), dim=-1))
        q_BNTQ = rotate_tail(self._queries(x_BTD), rope)
        expand_NeC = self.kv_b_proj.effective_weight().view(self.heads, -1, self.latent_dim)
        out = cpu.decode.latent_attention(q_BNTQ, cache.entries(), expand_NeC, cache.visible_lengths(), self.scale)
        if out is not None:
            return out
        nope_BNTP, rope_BNTR = q_BNTQ.split((self.nope_dim, self.rope_dim), dim=-1)
        to_key_NPC, to_value_NZC = expand_NeC.split((self.nope_dim, self.value_dim), dim=1)
        q_BNTc = torch.cat((nope_BNTP @ to_key_NPC, rope_BNTR), dim=-1)
        entries_BLc, mask, (samples, _, length, _) = cache.entries(), cache.attention_mask(), q_BNTc.shape
        # All heads attend to the same entries, so one product can treat heads as additional rows.
        scores_BJL = q_BNTc.view(samples, -1, q_BNTc.shape[-1]) @ entries_BLc.transpose(1, 2)
        scores_BNTL = scores_BJL.view(samples, self.heads, length, -1).mul_(self.scale)
        if mask is not None:
            scores_BNTL = scores_BNTL.where(mask, float("-inf"))
        weights_BNTL = scores_BNTL.softmax(-1, dtype=torch.float32).to(x_BTD.dtype)
        latent_BJC = weights_BNTL.view(scores_BJL.shape) @ entries_BLc[..., : self.latent_dim]
        latent_BNTC = latent_BJC.view(samples, self.heads, length, -1)
        return (latent_BNTC @ to_value_NZC.transpose(1, 2)).transpose(1, 2)
