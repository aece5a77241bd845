"""How a dense transformer learns where tokens stand: added vectors, turned queries and keys, or lower scores."""

import torch
from torch import nn

from configs.schema.models.transformer import TransformerSection
from training.layers.masks import alibi_sides, alibi_slopes
from training.layers.rope import Rotation, rotation, sinusoidal


class Places(nn.Module):
    """The kinds of ``model.positions``; only ``learned`` has a weight [longest, D]."""

    def __init__(self, config: TransformerSection) -> None:
        super().__init__()
        self.kind, self.theta = config.positions, config.rope_theta
        self.hidden_size, self.head_size, self.heads = config.hidden_size, config.head_size, config.num_attention_heads
        self.longest = config.max_position_embeddings
        learned = self.kind == "learned"
        self.weight = nn.Parameter(torch.empty(self.longest, self.hidden_size)) if learned else None

    def put(
        self, x_BTD: torch.Tensor, positions: torch.Tensor, scale: float = 1.0, own_scale: float = 1.0
    ) -> torch.Tensor:
        """Embeddings, times ``scale``, at positions [T] or [B, T]; what is added to them is taken ``own_scale`` times.

        Raises:
            ValueError: a learned table does not reach so far.
        """
        added = None
        if self.kind == "sinusoidal":
            added = sinusoidal(positions, self.hidden_size, self.theta)
        elif self.kind == "learned":
            added = self(positions)  # through __call__, by which ZeRO-3 gathers the table
        x_BTD = x_BTD if scale == 1.0 else x_BTD * scale
        if added is None:
            return x_BTD
        return x_BTD + (added if own_scale == 1.0 else added * own_scale).to(x_BTD.dtype)

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Rows of the learned table: [..., T, D]."""
        assert self.weight is not None
        if positions.shape[-1] > self.longest:
            raise ValueError(
                f"a sequence of {positions.shape[-1]} tokens is longer than the {self.longest} learned positions "
                "(model.max_position_embeddings)"
            )
        return nn.functional.embedding(positions, self.weight)

    def rotation(self, positions: torch.Tensor) -> Rotation | None:
        """How far queries and keys are turned; None: not at all."""
        return rotation(positions, self.head_size, self.theta) if self.kind == "rope" else None

    def slopes(self, device: torch.device, causal: bool = True) -> torch.Tensor | None:
        """By how much each head's scores fall with distance [N]; None: not at all."""
        return alibi_slopes(self.heads, device, causal) if self.kind == "alibi" else None

    def sides(self, device: torch.device) -> torch.Tensor | None:
        """To which side each head of a stack that is not causal looks [N]; None: to both."""
        return alibi_sides(self.heads, device) if self.kind == "alibi" else None
