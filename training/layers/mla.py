"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

import torch
from torch import nn

from configs.schema.model import ModelSection
from training.layers.attention import causal_attention
from training.layers.norms import RMSNorm
from training.layers.positions import Rotation, rotate_pairs, softmax_scale


class MultiHeadLatentAttention(nn.Module):
    """Causal attention whose keys and values are expanded from one narrow latent per token.

    Every head's query and key are a part without position and a rotated part; the rotated key is shared by all heads.
    Queries go through a latent of their own when ``q_lora_rank`` is set.
    """

    def __init__(self, config: ModelSection) -> None:
        super().__init__()
        hidden, heads = config.hidden_size, config.num_attention_heads
        self.heads = heads
        self.nope_dim, self.rope_dim, self.value_dim = (
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
        )
        self.latent_dim = config.kv_lora_rank
        query_dim = self.nope_dim + self.rope_dim
        self.scale = softmax_scale(query_dim, config.rope_scaling)
        # The two latent norms keep RMSNorm's default epsilon whatever rms_norm_eps says: so do the released weights.
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, heads * query_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * query_dim, bias=False)
        self.queries_have_latent = config.q_lora_rank is not None
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.latent_dim + self.rope_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(self.latent_dim)
        self.kv_b_proj = nn.Linear(self.latent_dim, heads * (self.nope_dim + self.value_dim), bias=False)
        self.o_proj = nn.Linear(heads * self.value_dim, hidden, bias=False)

    def forward(self, x_BTD: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]; ``rotation`` holds the T positions' cosines and sines."""
        q_BTNQ = self._queries(x_BTD, rotation)
        k_BTNQ, v_BTNZ = self._keys_values(x_BTD, rotation)
        out_BTNZ = causal_attention(q_BTNQ, k_BTNQ, v_BTNZ, self.scale)
        return self.o_proj(out_BTNZ.flatten(2))

    def _queries(self, x_BTD: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        project = self._through_latent if self.queries_have_latent else self.q_proj
        q = project(x_BTD)
        nope_BTNP, rope_BTNR = q.unflatten(-1, (self.heads, -1)).split((self.nope_dim, self.rope_dim), dim=-1)
        return torch.cat((nope_BTNP, rotate_pairs(rope_BTNR, rotation)), dim=-1)

    def _through_latent(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))

    def _keys_values(self, x_BTD: torch.Tensor, rotation: Rotation) -> tuple[torch.Tensor, torch.Tensor]:
        latent_BTC, rope_BTR = self.kv_a_proj_with_mqa(x_BTD).split((self.latent_dim, self.rope_dim), dim=-1)
        expanded = self.kv_b_proj(self.kv_a_layernorm(latent_BTC)).unflatten(-1, (self.heads, -1))
        nope_BTNP, v_BTNZ = expanded.split((self.nope_dim, self.value_dim), dim=-1)
        rope_BT1R = rotate_pairs(rope_BTR[:, :, None], rotation)
        return torch.cat((nope_BTNP, rope_BT1R.expand(-1, -1, self.heads, -1)), dim=-1), v_BTNZ
