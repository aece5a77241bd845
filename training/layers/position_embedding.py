"""Position encodings for dense transformers: additive embeddings (learned or sinusoidal), RoPE, or ALiBi."""

import torch
from torch import nn

from configs.schema.models.transformer import TransformerSection
from training.layers.masks import alibi_sides, alibi_slopes
from training.layers.rope import RotaryTable, rotary_table, sinusoidal


class PositionEmbedding(nn.Module):
    """The position encoding selected by ``model.positions``. Only ``learned`` has a weight, [max_seq_len, D]."""

    def __init__(self, config: TransformerSection) -> None:
        super().__init__()
        self.kind, self.theta = config.positions, config.rope_theta
        self.hidden_size, self.head_size, self.heads = config.hidden_size, config.head_size, config.num_attention_heads
        self.max_seq_len = config.max_position_embeddings
        learned = self.kind == "learned"
        self.weight = nn.Parameter(torch.empty(self.max_seq_len, self.hidden_size)) if learned else None

    def add_position_embedding(
        self, x_BTD: torch.Tensor, positions: torch.Tensor, scale: float = 1.0, position_scale: float = 1.0
    ) -> torch.Tensor:
        """Return ``x * scale + embedding(positions) * position_scale`` for positions [T] or [B, T].

        RoPE and ALiBi add no embedding.

        Raises:
            ValueError: the sequence is longer than the learned table.
        """
        embedding = None
        if self.kind == "sinusoidal":
            embedding = sinusoidal(positions, self.hidden_size, self.theta)
        elif self.kind == "learned":
            embedding = self(positions)  # through __call__, whose hooks gather the table under ZeRO-3
        x_BTD = x_BTD if scale == 1.0 else x_BTD * scale
        if embedding is None:
            return x_BTD
        return x_BTD + (embedding if position_scale == 1.0 else embedding * position_scale).to(x_BTD.dtype)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Look up rows of the learned table: [..., T, D]."""
        assert self.weight is not None
        if positions.shape[-1] > self.max_seq_len:
            raise ValueError(
                f"a sequence of {positions.shape[-1]} tokens is longer than the {self.max_seq_len} learned positions "
                "(model.max_position_embeddings)"
            )
        return nn.functional.embedding(positions, self.weight)

    def rotary_table(self, positions: torch.Tensor) -> RotaryTable | None:
        """Return the table that rotates queries and keys, or None without RoPE."""
        return rotary_table(positions, self.head_size, self.theta) if self.kind == "rope" else None

    def slopes(self, device: torch.device, causal: bool = True) -> torch.Tensor | None:
        """Return ALiBi's slope for each head [N], or None without ALiBi."""
        return alibi_slopes(self.heads, device, causal) if self.kind == "alibi" else None

    def sides(self, device: torch.device) -> torch.Tensor | None:
        """Return each head's direction [N] in a bidirectional ALiBi stack, or None without ALiBi."""
        return alibi_sides(self.heads, device) if self.kind == "alibi" else None
