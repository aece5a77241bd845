"""Layers with low-rank adapters. Shape suffixes are listed in :mod:`training.layers`; r is the rank of an adapter."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.adapter import LoraSection
from training.adapter_names import A
from training.layers import cpu
from training.layers.init import draw_uniform
from training.layers.linear import Linear, linear


class LoraLinear(Linear):
    """A linear layer with an adapter: [..., in] -> [..., out].

    ``lora_magnitude`` [out] is None without DoRA. With DoRA, it replaces the norm of each row of ``W + scale * B A``.
    As in the paper (section 4.3), the norm counts as a constant in the backward pass.
    """

    lora_magnitude: nn.Parameter | None
    scale: float

    def add_adapter(self, lora: LoraSection) -> None:
        """Add an adapter with uninitialized weights."""
        self.scale = lora.scale
        self.lora_A = nn.Parameter(self.weight.new_empty(lora.rank, self.in_features))
        self.lora_B = nn.Parameter(self.weight.new_empty(self.out_features, lora.rank))
        self.lora_magnitude = nn.Parameter(self.weight.new_empty(self.out_features)) if lora.dora else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.lora_magnitude is None:
            return self._adapted(x, self.bias)
        out = self._adapted(x, None) * self._factors(self.lora_magnitude)
        return out if self.bias is None else out + self.bias

    def effective_weight(self) -> torch.Tensor:
        merged = self._sum_of_weights().to(self.weight.dtype)
        return merged if self.lora_magnitude is None else merged * self._factors(self.lora_magnitude)[:, None]

    def _adapted(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return ``(W + scale * B A) x + bias``."""
        fused = cpu.low_rank.linear(x, self.weight, bias, self.lora_A, self.lora_B, self.scale)
        if fused is not None:
            return fused
        out, low = linear(x, self.weight, bias), linear(x, self.lora_A)
        rows = torch.addmm(out.flatten(0, -2), low.flatten(0, -2), self.lora_B.t(), alpha=self.scale)
        return rows.view_as(out)

    def _sum_of_weights(self) -> torch.Tensor:
        """Return ``W + scale * B A`` in fp32."""
        return torch.addmm(self.weight.float(), self.lora_B.float(), self.lora_A.float(), alpha=self.scale)

    @torch.no_grad()
    def _row_norms(self) -> torch.Tensor:
        return torch.linalg.vector_norm(self._sum_of_weights(), dim=1).to(self.weight.dtype)

    def _factors(self, magnitude: torch.Tensor) -> torch.Tensor:
        """Return the factor of each row [out]."""
        return magnitude / self._row_norms()

    @torch.no_grad()
    def init_adapter(self, seed_name: str) -> None:
        """Initialize the adapter's weights in place. The layer's own weight must be loaded."""
        draw_uniform(self.lora_A, f"{seed_name}.{A}", _bound(self.in_features))
        self.lora_B.zero_()
        if self.lora_magnitude is not None:
            self.lora_magnitude.copy_(self._row_norms())


class StackedAdapter(nn.Module):
    """The adapters of one stacked weight [E, out, in]: ``lora_A`` [E, r, in] and ``lora_B`` [E, out, r]."""

    def __init__(self, lora: LoraSection, weight_EOI: torch.Tensor) -> None:
        super().__init__()
        experts, outputs, inputs = weight_EOI.shape
        self.scale = lora.scale
        self.lora_A = nn.Parameter(weight_EOI.new_empty(experts, lora.rank, inputs))
        self.lora_B = nn.Parameter(weight_EOI.new_empty(experts, outputs, lora.rank))

    def forward(self, rows_SI: torch.Tensor, ends_E: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Return ``scale * B A row`` for each row: [S, in] -> [S, out].

        Args:
            rows_SI: rows sorted by expert.
            ends_E: the end of each expert's rows, int32, for some or all of the experts.
            first: the first of these experts.
        """
        experts = slice(first, first + len(ends_E))
        low_Sr = F.grouped_mm(rows_SI, self.lora_A[experts].transpose(1, 2), offs=ends_E) * self.scale
        return F.grouped_mm(low_Sr, self.lora_B[experts].transpose(1, 2), offs=ends_E)

    @torch.no_grad()
    def init_adapter(self, seed_name: str) -> None:
        """Initialize the adapters' weights in place, each expert's from its own draws."""
        for expert, weight in enumerate(self.lora_A):
            draw_uniform(weight, f"{seed_name}.{A}/{expert}", _bound(weight.shape[1]))
        self.lora_B.zero_()


def _bound(inputs: int) -> float:
    """Return peft's bound for the uniform draws of A: Kaiming's, with a slope of sqrt(5)."""
    return 1 / math.sqrt(inputs)
