"""Routing: choosing each token's experts and their weights, independently of the expert layer.

The single-device gate in :mod:`training.layers.moe` and the expert-parallel gate both pass their logits to a
:class:`Router`. The router is a sibling of the expert layer, not a child, so it survives when that layer is replaced.

Sources: DeepSeek-V3 (arXiv 2412.19437, section 2.1.2), DeepSeek-V2 (arXiv 2405.04434, section 2.2), noisy gating (arXiv
1701.06538), adaptive k (arXiv 2403.07652). Shape suffixes are listed in :mod:`training.layers`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.models.deepseek import DeepseekSection

#: Operations whose results decide a token's experts. If they were recomputed, a near-tie could be broken differently.
#: The gradient would then belong to a different function, and expert-parallel ranks would disagree on what to exchange.
DECIDING_OPERATIONS = [torch.ops.aten.topk.default, torch.ops.aten.cumsum.default]


class Routing(NamedTuple):
    """The experts selected for each token, and their weights.

    Attributes:
        weights: [M, K] in fp32. With adaptive k, 0 in the slots that a token does not use.
        selected: [M, K] int64, expert indices.
    """

    weights: torch.Tensor
    selected: torch.Tensor


class RoutingRecord(NamedTuple):
    """Data from one forward pass, for load balancing.

    Attributes:
        logits: [M, E] in fp32, without noise, attached to the autograd graph.
        counts: [E] int32, tokens per expert; unused slots and padding are not counted.
        padding_mask: [M] bool, False at padding. None if there is no padding.
    """

    logits: torch.Tensor
    counts: torch.Tensor
    padding_mask: torch.Tensor | None = None


class Router(nn.Module):
    """Chooses at most K of E experts for every token, from fp32 logits.

    While ``recording`` is true, each forward pass stores a :class:`RoutingRecord` for :meth:`pop_record`. The record
    covers the tokens where ``padding_mask_M`` is True, or all tokens if the mask is None. Recording is off when the
    backward pass recomputes activations, so no token is counted twice.

    ``load_share`` [E] is set by the load balancer: tokens per expert in the previous global batch, divided by their
    mean.
    """

    def __init__(self, config: DeepseekSection) -> None:
        super().__init__()
        self.experts, self.top_k = config.n_routed_experts, config.num_experts_per_tok
        self.scoring, self.method = config.scoring_func, config.topk_method
        self.groups, self.kept_groups = config.n_group, config.topk_group
        self.normalize, self.scaling = config.norm_topk_prob, config.routed_scaling_factor
        self.adaptive, self.noise_kind = config.adaptive_experts, config.router_noise
        if self.noise_kind is not None and self.noise_kind.kind == "learned":
            self.noise = nn.Linear(config.hidden_size, config.n_routed_experts, bias=False)
        self.recording = False
        self.padding_mask_M: torch.Tensor | None = None
        self.load_share: torch.Tensor | None = None
        self._latest_record: RoutingRecord | None = None
        self._counts: torch.Tensor | None = None

    def forward(self, x_MD: torch.Tensor, logits_ME: torch.Tensor, bias_E: torch.Tensor | None) -> Routing:
        """Route the tokens ``x_MD`` by the gate's logits (fp32) and balancing bias."""
        noisy_ME = self._with_noise(x_MD, logits_ME) if self.training and self.noise_kind else logits_ME
        scores_ME = noisy_ME.sigmoid() if self.scoring == "sigmoid" else noisy_ME.softmax(-1)
        selected_MK = self.select(scores_ME, bias_E)
        weights_MK = scores_ME.gather(1, selected_MK)
        used_MK = None
        if self.adaptive is not None:
            selected_MK, weights_MK, used_MK = self._adapt(scores_ME, selected_MK)
        if self.normalize:
            weights_MK = weights_MK / (weights_MK.sum(-1, keepdim=True) + 1e-20)
        if self.recording:
            self._record(logits_ME, selected_MK, used_MK)
        if self.scaling != 1.0:
            weights_MK = weights_MK * self.scaling
        return Routing(weights_MK, selected_MK)

    @torch.no_grad()
    def select(self, scores_ME: torch.Tensor, bias_E: torch.Tensor | None = None) -> torch.Tensor:
        """Select the top K experts [M, K] by score plus bias. With groups, only the top-scoring groups are considered.

        Experts in other groups are masked with minus infinity. If they were masked with 0, one of them could beat an
        expert whose biased score is negative.
        """
        choice_ME = scores_ME.detach() if bias_E is None else scores_ME.detach() + bias_E
        if self.kept_groups < self.groups:
            choice_MGe = choice_ME.unflatten(1, (self.groups, -1))
            group_scores_MG, best_MG1 = _best_of_group(choice_MGe)
            if self.method == "noaux_tc":
                group_scores_MG = group_scores_MG + _best_of_group(choice_MGe.scatter(-1, best_MG1, float("-inf")))[0]
            kept = group_scores_MG.topk(self.kept_groups, dim=-1, sorted=False).indices
            dropped_MG = torch.ones_like(group_scores_MG, dtype=torch.bool).scatter_(1, kept, False)
            choice_ME = choice_MGe.masked_fill(dropped_MG[..., None], float("-inf")).flatten(1)
        return choice_ME.topk(self.top_k, dim=-1, sorted=False).indices

    def _with_noise(self, x_MD: torch.Tensor, logits_ME: torch.Tensor) -> torch.Tensor:
        assert self.noise_kind is not None
        noise_ME = torch.randn_like(logits_ME) * self.noise_kind.std
        if self.noise_kind.kind == "learned":
            noise_ME = noise_ME * F.softplus(self.noise(x_MD).float())
        return logits_ME + noise_ME

    def _adapt(
        self, scores_ME: torch.Tensor, selected_MK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Keep only as many of the selected experts as needed to reach the target mass. The others get weight 0.

        Probabilities are scores divided by their sum over all experts, which is 1 for softmax scores. Returns the
        experts sorted by score, their scores (0 if unused), and whether each is used, all [M, K].
        """
        assert self.adaptive is not None
        shares_MK = (scores_ME / scores_ME.sum(-1, keepdim=True)).gather(1, selected_MK)
        _, order_MK = shares_MK.topk(self.top_k, dim=-1, sorted=True)
        selected_MK, shares_MK = selected_MK.gather(1, order_MK), shares_MK.gather(1, order_MK)
        mass_MK = shares_MK.detach().cumsum(-1)
        used_MK = F.pad(mass_MK[:, :-1], (1, 0)) < self.adaptive.mass
        used_MK[:, : self.adaptive.minimum] = True
        return selected_MK, scores_ME.gather(1, selected_MK) * used_MK, used_MK

    def _record(self, logits_ME: torch.Tensor, selected_MK: torch.Tensor, used_MK: torch.Tensor | None) -> None:
        used = torch.ones_like(selected_MK) if used_MK is None else used_MK.long()
        if self.padding_mask_M is not None:
            used = used * self.padding_mask_M[:, None]
        counts_E = torch.zeros(self.experts, dtype=torch.int64, device=used.device)
        counts_E.scatter_add_(0, selected_MK.flatten(), used.flatten())
        self._latest_record = RoutingRecord(logits_ME, counts_E.int(), self.padding_mask_M)

    def slots_per_expert(self, selected_MK: torch.Tensor) -> torch.Tensor:
        """Return the number of slots per expert, [E] int32, including unused slots, which ranks also exchange."""
        return tokens_per_expert(selected_MK, self.experts)

    def pop_record(self) -> RoutingRecord | None:
        """Remove and return the latest record, if any, and add its counts to the totals for :meth:`pop_counts`."""
        record, self._latest_record = self._latest_record, None
        if record is not None:
            # MPS does not support fp64.
            counts = record.counts.float() if record.counts.is_mps else record.counts.double()
            self._counts = counts if self._counts is None else self._counts + counts
        return record

    def pop_counts(self) -> torch.Tensor | None:
        """Return tokens per expert [E], in fp64 (fp32 on MPS), over all records popped since the last call.

        Returns None if there were no records.
        """
        counts, self._counts = self._counts, None
        return counts

    def probabilities(self, logits_ME: torch.Tensor) -> torch.Tensor:
        """Return each token's scores divided by their sum [M, E], for the balancing losses."""
        if self.scoring == "softmax":
            return logits_ME.softmax(-1)
        scores_ME = logits_ME.sigmoid()
        return scores_ME / scores_ME.sum(-1, keepdim=True)


def _best_of_group(choice_MGe: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each group's best score [M, G] and its index [M, G, 1]. On many short rows, topk is ten times slower."""
    best, index = choice_MGe.max(-1, keepdim=True)
    return best.squeeze(-1), index


def tokens_per_expert(selected_MK: torch.Tensor, experts: int) -> torch.Tensor:
    """Return the number of slots per expert, [E] int32. Unlike bincount, this causes no host-device synchronization."""
    flat_S = selected_MK.flatten()
    counts_E = torch.zeros(experts, dtype=torch.int32, device=flat_S.device)
    return counts_E.scatter_add_(0, flat_S, torch.ones_like(flat_S, dtype=torch.int32))


def sequence_balance(router: Router, record: RoutingRecord, sequences: int) -> torch.Tensor:
    """Return sum_i f_i P_i, summed over sequences (DeepSeek-V3, equations 17 to 20). It is 1 per sequence at even load.

    f_i is the fraction of the sequence's slots that would go to expert i by score alone (without bias, groups or
    noise), divided by the fraction under an even load. P_i is the mean probability of expert i.
    """
    probability_BTE = router.probabilities(record.logits).unflatten(0, (sequences, -1))
    best_BTK = probability_BTE.detach().topk(router.top_k, dim=-1).indices
    mask_BT1 = torch.ones_like(probability_BTE[..., :1])
    if record.padding_mask is not None:
        mask_BT1 = record.padding_mask.view(mask_BT1.shape).to(mask_BT1.dtype)
    share_BE = torch.zeros_like(probability_BTE[:, 0]).scatter_add(
        1, best_BTK.flatten(1), mask_BT1.expand(best_BTK.shape).flatten(1)
    )
    tokens_B1 = mask_BT1.sum(1)
    share_BE = share_BE * (router.experts / router.top_k) / tokens_B1
    return (share_BE * (probability_BTE * mask_BT1).sum(1) / tokens_B1).sum()


def load_balance(router: Router, record: RoutingRecord, _sequences: int) -> torch.Tensor:
    """Return sum_i f_i p_i, summed over tokens (Switch, arXiv 2101.03961). It is 1 per token at even load.

    p_i is a token's probability for expert i. f_i is ``load_share``, which is measured on the previous global batch.
    The current batch's load is not known until all its micro-batches are done, and a micro-batch's own load would make
    the loss depend on the number of micro-batches.
    """
    probability_ME = _without_padding(router.probabilities(record.logits), record)
    return probability_ME.sum() if router.load_share is None else (probability_ME * router.load_share).sum()


def router_z(_router: Router, record: RoutingRecord, _sequences: int) -> torch.Tensor:
    """Return the squared logsumexp of the logits, summed over tokens (ST-MoE's router z-loss, arXiv 2202.08906)."""
    return _without_padding(record.logits.logsumexp(-1, keepdim=True), record).square().sum()


def _without_padding(x_ME: torch.Tensor, record: RoutingRecord) -> torch.Tensor:
    """Set padding rows to 0."""
    return x_ME if record.padding_mask is None else x_ME * record.padding_mask[:, None]


#: Balancing losses, without coefficients. Arguments: a router, its record of M tokens, and the number of sequences.
BALANCE_LOSSES: dict[str, Callable[[Router, RoutingRecord, int], torch.Tensor]] = {
    "sequence_balance": sequence_balance,
    "load_balance": load_balance,
    "router_z": router_z,
}


@contextmanager
def record_routing(routers: Sequence[Router], padding_mask_M: torch.Tensor | None = None) -> Iterator[None]:
    """Record the routers' forward passes. ``padding_mask_M`` is False at padding, or None if there is no padding."""
    for router in routers:
        router.recording, router.padding_mask_M = True, padding_mask_M
    try:
        yield
    finally:
        for router in routers:
            router.recording, router.padding_mask_M = False, None


def balance_losses(routers: Sequence[Router], names: Sequence[str], sequences: int) -> dict[str, torch.Tensor]:
    """Compute the balancing losses with these names, summed over routers.

    Each loss is computed from the routers' latest records, which cover ``sequences`` sequences each.
    """
    losses: dict[str, torch.Tensor] = {}
    for router in routers:
        if (record := router.pop_record()) is None:
            continue
        for name in names:
            value = BALANCE_LOSSES[name](router, record, sequences)
            losses[name] = losses[name] + value if name in losses else value
    return losses
