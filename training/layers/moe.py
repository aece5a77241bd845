"""DeepSeekMoE: fine-grained routed experts behind a gate, and shared experts (arXiv 2412.19437, section 2.1.2).

DeepSpeed's AutoEP recognizes ``MixtureOfExperts`` as a DeepSeek-V3 layer by the names of its children and by its
signature, [B, T, D] -> [B, T, D], and replaces it with its expert-parallel layer.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.models.deepseek import DeepseekSection
from training.layers import cpu
from training.layers.feed_forward import FeedForward
from training.layers.grouped_experts import grouped_experts, weighted_swiglu
from training.layers.router import Router, Routing


class Gate(nn.Module):
    """Computes each token's expert logits, always in fp32, and routes the tokens accordingly.

    ``e_score_correction_bias`` [E] is None if the routing method has no bias. It affects which experts are chosen but
    not their weights, and has no gradient. This buffer stays in fp32 when the module is cast, because bf16 would round
    away a balancing step of 1e-3.
    """

    e_score_correction_bias: torch.Tensor | None

    def __init__(self, config: DeepseekSection, router: Router) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32) if config.has_router_bias else None
        self.register_buffer("e_score_correction_bias", bias)
        self._router = (router,)  # in a tuple, to keep the router a submodule of the decoder layer, not of the gate

    @property
    def router(self) -> Router:
        return self._router[0]

    def forward(self, x_MD: torch.Tensor) -> Routing:
        logits_ME = F.linear(x_MD.float(), self.weight.float())
        return self.router(x_MD, logits_ME, self.e_score_correction_bias)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Gate":
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        cast = self.e_score_correction_bias
        if bias is not None and cast is not None and cast.dtype != torch.float32:
            self.e_score_correction_bias = bias.to(cast.device)
        return self


class Experts(nn.Module):
    """Stacked SwiGLU weights of the routed experts: ``gate_up_proj`` [E, 2F, D] and ``down_proj`` [E, D, F]."""

    def __init__(self, config: DeepseekSection) -> None:
        super().__init__()
        experts, hidden, width = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))
        self.activation = weighted_swiglu
        #: The stacks' adapters by name, or empty without adapters (see training/layers/adapters/).
        self.adapters: tuple[nn.ModuleDict, ...] = ()

    def forward(self, x_MD: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Sum the outputs of each token's experts, scaled by their gate weights (fp32): [M, D] -> [M, D]."""
        for adapters in self.adapters:
            return grouped_experts(x_MD, routing, self.gate_up_proj, self.down_proj, self.activation, adapters)
        out = cpu.experts.routed_experts(x_MD, *routing, self.gate_up_proj, self.down_proj)
        if out is not None:
            return out
        return grouped_experts(x_MD, routing, self.gate_up_proj, self.down_proj, self.activation)


class MixtureOfExperts(nn.Module):
    """Sums the selected experts' outputs, scaled by their gate weights, and adds the shared experts' output."""

    def __init__(self, config: DeepseekSection, router: Router) -> None:
        super().__init__()
        self.gate = Gate(config, router)
        self.experts = Experts(config)
        width = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = FeedForward(config.hidden_size, width, config.mlp_bias) if width else None

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Map [B, T, D] -> [B, T, D]."""
        x_MD = x_BTD.flatten(0, 1)
        y_BTD = self.experts(x_MD, self.gate(x_MD)).view_as(x_BTD)
        return y_BTD if self.shared_experts is None else y_BTD + self.shared_experts(x_BTD)
