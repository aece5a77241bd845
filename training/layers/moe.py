"""DeepSeekMoE: fine-grained routed experts behind a sigmoid gate, beside shared ones (arXiv 2412.19437, section 2.1.2).

``MixtureOfExperts`` has the children and the call ([B, T, D] -> [B, T, D]) by which DeepSpeed's AutoEP knows a
DeepSeek-V3 layer and replaces it with its expert-parallel one; the gate's result has the form of AutoEP's router, so
what watches one can watch the other.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.model import ModelSection
from training.layers.feed_forward import FeedForward

Routing = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Gate(nn.Module):
    """Chooses K of E experts for every token, in fp32 whatever the dtype of the model.

    ``e_score_correction_bias`` [E] steers the choice, is never part of a weight, takes no gradient, and stays fp32
    when the module is cast: a balancing step of 1e-3 would be lost in bf16.
    """

    e_score_correction_bias: torch.Tensor

    def __init__(self, config: ModelSection) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.groups, self.kept_groups = config.n_group, config.topk_group
        self.normalise, self.scaling = config.norm_topk_prob, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32))

    def forward(self, x_MD: torch.Tensor) -> Routing:
        """Weights [M, K] in fp32, expert indices [M, K], and tokens per expert [E] in int32."""
        scores_ME = F.linear(x_MD.float(), self.weight.float()).sigmoid()
        selected_MK = self.select(scores_ME)
        weights_MK = scores_ME.gather(1, selected_MK)
        if self.normalise:
            weights_MK = weights_MK / (weights_MK.sum(-1, keepdim=True) + 1e-20)
        return weights_MK * self.scaling, selected_MK, tokens_per_expert(selected_MK, scores_ME.shape[1])

    @torch.no_grad()
    def select(self, scores_ME: torch.Tensor) -> torch.Tensor:
        """The K best experts [M, K] by biased score, within the groups whose best two experts score highest.

        Experts of other groups are masked with minus infinity: with zero, one of them could beat a kept expert whose
        biased score is negative.
        """
        choice_ME = scores_ME + self.e_score_correction_bias
        if self.kept_groups < self.groups:
            choice_MGe = choice_ME.unflatten(1, (self.groups, -1))
            group_scores_MG = choice_MGe.topk(2, dim=-1).values.sum(-1)
            kept = group_scores_MG.topk(self.kept_groups, dim=-1, sorted=False).indices
            dropped_MG = torch.ones_like(group_scores_MG, dtype=torch.bool).scatter_(1, kept, False)
            choice_ME = choice_MGe.masked_fill(dropped_MG[..., None], float("-inf")).flatten(1)
        return choice_ME.topk(self.top_k, dim=-1, sorted=False).indices

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Gate":
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        if self.e_score_correction_bias.dtype != torch.float32:
            self.e_score_correction_bias = bias.to(self.e_score_correction_bias.device)
        return self


class Experts(nn.Module):
    """The routed experts' SwiGLU weights, stacked: ``gate_up_proj`` [E, 2F, D] and ``down_proj`` [E, D, F]."""

    def __init__(self, config: ModelSection) -> None:
        super().__init__()
        experts, hidden, width = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))

    def forward(self, x_SD: torch.Tensor, counts_E: torch.Tensor, weights_S: torch.Tensor) -> torch.Tensor:
        """[S, D] -> [S, D], where the first ``counts_E[0]`` rows go to expert 0, the next to expert 1, and so on.

        Each row's result is multiplied by its weight (fp32).
        """
        run = grouped_experts if fits_grouped_mm(x_SD, self.down_proj) else looped_experts
        return run(x_SD, counts_E, weights_S, self.gate_up_proj, self.down_proj)


class MixtureOfExperts(nn.Module):
    """Sum of the selected experts, each times its gate weight, and of the shared expert."""

    def __init__(self, config: ModelSection) -> None:
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        self.shared_experts = (
            FeedForward(config.hidden_size, config.n_shared_experts * config.moe_intermediate_size)
            if config.n_shared_experts
            else None
        )

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        x_MD = x_BTD.flatten(0, 1)
        weights_MK, selected_MK, counts_E = self.gate(x_MD)
        slots_S = selected_MK.flatten().argsort(stable=True)  # slot s of the sorted rows is (token, k) = divmod(s, K)
        rows_SD = x_MD.index_select(0, slots_S // selected_MK.shape[1])
        out_SD = self.experts(rows_SD, counts_E, weights_MK.flatten()[slots_S])
        # Gathered back and summed in order: adding rows into place would depend on the order a GPU happens to run.
        y_MD = out_SD.index_select(0, slots_S.argsort()).unflatten(0, selected_MK.shape).sum(1)
        y_BTD = y_MD.view_as(x_BTD)
        return y_BTD if self.shared_experts is None else y_BTD + self.shared_experts(x_BTD)


def tokens_per_expert(selected_MK: torch.Tensor, experts: int) -> torch.Tensor:
    """How many slots chose each expert, [E] in int32; unlike bincount it does not wait for the device."""
    flat_S = selected_MK.flatten()
    counts_E = torch.zeros(experts, dtype=torch.int32, device=flat_S.device)
    return counts_E.scatter_add_(0, flat_S, torch.ones_like(flat_S, dtype=torch.int32))


def fits_grouped_mm(x_SD: torch.Tensor, down_EDF: torch.Tensor) -> bool:
    """Whether the grouped product takes these shapes: it wants every row to be a multiple of 16 bytes."""
    return all(size * x_SD.element_size() % 16 == 0 for size in down_EDF.shape[1:])


def grouped_experts(
    x_SD: torch.Tensor,
    counts_E: torch.Tensor,
    weights_S: torch.Tensor,
    gate_up_E2FD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor:
    """Weighted SwiGLU of every expert on its own rows, as two grouped matrix products."""
    ends_E = counts_E.cumsum(0, dtype=torch.int32)
    gate_up = F.grouped_mm(x_SD, gate_up_E2FD.transpose(1, 2), offs=ends_E)
    return F.grouped_mm(weighted_swiglu(gate_up, weights_S), down_EDF.transpose(1, 2), offs=ends_E)


def looped_experts(
    x_SD: torch.Tensor,
    counts_E: torch.Tensor,
    weights_S: torch.Tensor,
    gate_up_E2FD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor:
    """The reference for :func:`grouped_experts`, an expert at a time."""
    sizes = counts_E.tolist()
    pieces = zip(x_SD.split(sizes), weights_S.split(sizes), gate_up_E2FD.unbind(), down_EDF.unbind(), strict=True)
    return torch.cat([F.linear(weighted_swiglu(F.linear(x, up), w), down) for x, w, up, down in pieces])


def weighted_swiglu(gate_up_S2F: torch.Tensor, weights_S: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up * weight, [S, F]: the gate weight goes in where rows are narrowest, before the last product."""
    gate, up = gate_up_S2F.chunk(2, dim=-1)
    return (F.silu(gate) * up * weights_S[:, None]).to(gate_up_S2F.dtype)
