"""Low-rank adapters: LoRA (arXiv 2106.09685) and DoRA (arXiv 2402.09353), with the same results as the peft library.

An adapted layer computes ``W x + scale * B A x``. ``A`` is random and ``B`` is zero at first, so training starts from
the model as it was. Adapters keep the names of the weights that they adapt: see :mod:`training.adapter_names`.

The adapters of routed experts belong to the decoder layer and not to its ``mlp``, which DeepSpeed's AutoEP replaces.
Every rank therefore holds the adapters of all experts, as ordinary parameters. A rank's gradient is zero for experts
that other ranks compute, so the sum over ranks is correct.

Shape suffixes are listed in :mod:`training.layers`; r is the rank of an adapter.
"""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from artefacts.errors import RequestError
from configs.schema.adapter import LoraSection
from training.adapter_names import EXPERT_ADAPTERS, EXPERT_WEIGHTS, LINEAR_TARGETS, A, is_adapter
from training.layers.init import draw_uniform
from training.layers.linear import Linear, linear
from training.layers.moe import Experts, MixtureOfExperts


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
            return self._add_low_rank(linear(x, self.weight, self.bias), x)
        out = self._add_low_rank(linear(x, self.weight), x) * self._factors(self.lora_magnitude)
        return out if self.bias is None else out + self.bias

    def effective_weight(self) -> torch.Tensor:
        merged = self._sum_of_weights().to(self.weight.dtype)
        return merged if self.lora_magnitude is None else merged * self._factors(self.lora_magnitude)[:, None]

    def _add_low_rank(self, out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        low = linear(x, self.lora_A)
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


def attach_adapters(model: nn.Module, lora: LoraSection) -> None:
    """Freeze all weights of a model, and add adapters with uninitialized weights to the targeted layers."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    patterns = [LINEAR_TARGETS[target] for target in lora.targets or LINEAR_TARGETS if target != "routed_experts"]
    for name, module in model.named_modules():
        if type(module) is Linear and any(pattern.fullmatch(name) for pattern in patterns):
            # Only the class changes, so that the weight keeps its name.
            module.__class__ = LoraLinear
            assert isinstance(module, LoraLinear)
            module.add_adapter(lora)
        elif lora.routed and isinstance(getattr(module, "mlp", None), MixtureOfExperts):
            _attach_to_experts(module, module.mlp.experts, lora)


def _attach_to_experts(layer: nn.Module, experts: Experts, lora: LoraSection) -> None:
    adapters = nn.ModuleDict({name: StackedAdapter(lora, getattr(experts, name)) for name in EXPERT_WEIGHTS})
    setattr(layer, EXPERT_ADAPTERS, adapters)
    experts.adapters = (adapters,)  # in a tuple, so that they stay submodules of the decoder layer only


def init_adapters(model: nn.Module, seed: int) -> None:
    """Initialize all adapters in place. As for all weights, the draws depend only on the seed and the name."""
    for name, adapter in adapters_of(model):
        adapter.init_adapter(f"{seed}/{name}")


def adapters_of(model: nn.Module) -> Iterator[tuple[str, LoraLinear | StackedAdapter]]:
    """Yield the name and the module of each adapter in a model."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear | StackedAdapter):
            yield name, module


@torch.no_grad()
def load_adapters(model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Copy weights into the adapters of a model, in place.

    Raises:
        RequestError: the model lacks one of the adapters or has it in a different shape, or one is not in the weights.
    """
    adapters = {name: parameter for name, parameter in model.named_parameters() if is_adapter(name)}
    for name, weight in weights:
        parameter = adapters.pop(name, None)
        if parameter is None or parameter.shape != weight.shape:
            has = "no such adapter" if parameter is None else f"shape {tuple(parameter.shape)}"
            raise RequestError(f"the adapter has {name} of shape {tuple(weight.shape)}, but the model has {has}")
        parameter.copy_(weight)
    if adapters:
        first = next(iter(adapters))
        raise RequestError(f"the adapter lacks {first} ({len(adapters)} missing in total): it is of a different model")
