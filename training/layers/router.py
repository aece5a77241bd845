"""Which experts a token goes to, and with what weight: every choice of gate, in one module that any expert layer uses.

The single-device gate of :mod:`training.layers.moe` and the gate under expert parallelism both hand their logits to a
:class:`Router`. It stands beside the expert layer and not in it, so that what replaces the layer leaves it alone.
Sources: DeepSeek-V3 (arXiv 2412.19437, section 2.1.2), DeepSeek-V2 (arXiv 2405.04434, section 2.2), noisy gating (arXiv
1701.06538), adaptive k (arXiv 2403.07652).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from configs.schema.models.deepseek import DeepseekSection

#: Operations whose results decide where a token goes. Computed again, a near-tie could fall the other way: the gradient
#: would then be another function's, and under expert parallelism the ranks' exchanges would no longer match.
DECIDING_OPERATIONS = [torch.ops.aten.topk.default, torch.ops.aten.cumsum.default]


class Routing(NamedTuple):
    """Where tokens go.

    Attributes:
        weights: [M, K] in fp32; under adaptive k zero in the slots that a token does not use.
        selected: [M, K] int64, indices of experts.
    """

    weights: torch.Tensor
    selected: torch.Tensor


class Decision(NamedTuple):
    """What balancing needs to know of a forward pass.

    Attributes:
        logits: [M, E] in fp32, without noise, in the graph.
        counts: [E] int32, tokens of each expert; unused slots and padding are not counted.
        there: [M] bool, tokens that are no padding; None: all.
    """

    logits: torch.Tensor
    counts: torch.Tensor
    there: torch.Tensor | None = None


class Router(nn.Module):
    """Chooses at most K of E experts for every token from fp32 logits.

    While ``recording`` is true a forward leaves its :class:`Decision` to be taken, of the tokens that are ``there_M``
    (None: all). Recomputation happens in the backward pass, when nothing records, so nothing counts twice.

    ``load_share`` [E], set by whoever balances: each expert's tokens in the global batch before, over the mean.
    """

    def __init__(self, config: DeepseekSection) -> None:
        super().__init__()
        self.experts, self.top_k = config.n_routed_experts, config.num_experts_per_tok
        self.scoring, self.method = config.scoring_func, config.topk_method
        self.groups, self.kept_groups = config.n_group, config.topk_group
        self.normalise, self.scaling = config.norm_topk_prob, config.routed_scaling_factor
        self.adaptive, self.noise_kind = config.adaptive_experts, config.router_noise
        if self.noise_kind is not None and self.noise_kind.kind == "learned":
            self.noise = nn.Linear(config.hidden_size, config.n_routed_experts, bias=False)
        self.recording = False
        self.there_M: torch.Tensor | None = None
        self.load_share: torch.Tensor | None = None
        self._decision: Decision | None = None
        self._counts: torch.Tensor | None = None

    def forward(self, x_MD: torch.Tensor, logits_ME: torch.Tensor, bias_E: torch.Tensor | None) -> Routing:
        """Route the tokens ``x_MD`` by their gate's logits (fp32) and its balancing bias."""
        noisy_ME = self._with_noise(x_MD, logits_ME) if self.training and self.noise_kind else logits_ME
        scores_ME = noisy_ME.sigmoid() if self.scoring == "sigmoid" else noisy_ME.softmax(-1)
        selected_MK = self.select(scores_ME, bias_E)
        weights_MK = scores_ME.gather(1, selected_MK)
        used_MK = None
        if self.adaptive is not None:
            selected_MK, weights_MK, used_MK = self._adapt(scores_ME, selected_MK)
        if self.normalise:
            weights_MK = weights_MK / (weights_MK.sum(-1, keepdim=True) + 1e-20)
        if self.recording:
            self._record(logits_ME, selected_MK, used_MK)
        if self.scaling != 1.0:
            weights_MK = weights_MK * self.scaling
        return Routing(weights_MK, selected_MK)

    @torch.no_grad()
    def select(self, scores_ME: torch.Tensor, bias_E: torch.Tensor | None = None) -> torch.Tensor:
        """The K best experts [M, K] by score plus bias, in V3 and V2 within the groups that score highest.

        Experts of other groups are masked with minus infinity: with zero, one of them could beat a kept expert whose
        biased score is negative.
        """
        choice_ME = scores_ME.detach() if bias_E is None else scores_ME.detach() + bias_E
        if self.kept_groups < self.groups:
            choice_MGe = choice_ME.unflatten(1, (self.groups, -1))
            group_scores_MG, best_MG1 = _best(choice_MGe)
            if self.method == "noaux_tc":
                group_scores_MG = group_scores_MG + _best(choice_MGe.scatter(-1, best_MG1, float("-inf")))[0]
            kept = group_scores_MG.topk(self.kept_groups, dim=-1, sorted=False).indices
            dropped_MG = torch.ones_like(group_scores_MG, dtype=torch.bool).scatter_(1, kept, False)
            choice_ME = choice_MGe.masked_fill(dropped_MG[..., None], float("-inf")).flatten(1)
        return choice_ME.topk(self.top_k, dim=-1, sorted=False).indices

    def _with_noise(self, x_MD: torch.Tensor, logits_ME: torch.Tensor) -> torch.Tensor:
        assert self.noise_kind is not None
        drawn_ME = torch.randn_like(logits_ME) * self.noise_kind.std
        if self.noise_kind.kind == "learned":
            drawn_ME = drawn_ME * F.softplus(self.noise(x_MD).float())
        return logits_ME + drawn_ME

    def _adapt(
        self, scores_ME: torch.Tensor, selected_MK: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the selected, the fewest whose probabilities reach the mass: all in order of score, the others' weight 0.

        Probabilities are the scores over their sum, which for softmax they are already.
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
        if self.there_M is not None:
            used = used * self.there_M[:, None]
        counts_E = torch.zeros(self.experts, dtype=torch.int64, device=used.device)
        counts_E.scatter_add_(0, selected_MK.flatten(), used.flatten())
        self._decision = Decision(logits_ME, counts_E.int(), self.there_M)

    def slots_per_expert(self, selected_MK: torch.Tensor) -> torch.Tensor:
        """[E] int32, unused slots included: what an exchange between ranks goes by."""
        return tokens_per_expert(selected_MK, self.experts)

    def take(self) -> Decision | None:
        """What was recorded last, once; its counts are added up for :meth:`take_counts`."""
        decision, self._decision = self._decision, None
        if decision is not None:
            # MPS has no fp64.
            counts = decision.counts.float() if decision.counts.is_mps else decision.counts.double()
            self._counts = counts if self._counts is None else self._counts + counts
        return decision

    def take_counts(self) -> torch.Tensor | None:
        """Tokens of each expert [E] in fp64 (MPS: fp32) over all that was taken since the last call; None: nothing."""
        counts, self._counts = self._counts, None
        return counts

    def probabilities(self, logits_ME: torch.Tensor) -> torch.Tensor:
        """A token's scores over their sum [M, E], which balancing losses are of."""
        if self.scoring == "softmax":
            return logits_ME.softmax(-1)
        scores_ME = logits_ME.sigmoid()
        return scores_ME / scores_ME.sum(-1, keepdim=True)


def _best(choice_MGe: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each group's best [M, G] and its place [M, G, 1]; a topk of many short rows takes ten times as long."""
    best, place = choice_MGe.max(-1, keepdim=True)
    return best.squeeze(-1), place


def tokens_per_expert(selected_MK: torch.Tensor, experts: int) -> torch.Tensor:
    """How many slots chose each expert, [E] in int32; unlike bincount it does not wait for the device."""
    flat_S = selected_MK.flatten()
    counts_E = torch.zeros(experts, dtype=torch.int32, device=flat_S.device)
    return counts_E.scatter_add_(0, flat_S, torch.ones_like(flat_S, dtype=torch.int32))


def sequence_balance(router: Router, decision: Decision, sequences: int) -> torch.Tensor:
    """Sum over the sequences of sum_i f_i P_i (DeepSeek-V3, equations 17 to 20); 1 a sequence where even.

    f_i is the share of the sequence's slots that would choose expert i by its score alone, without bias, groups and
    noise, over the even one, and P_i its mean probability.
    """
    probability_BTE = router.probabilities(decision.logits).unflatten(0, (sequences, -1))
    best_BTK = probability_BTE.detach().topk(router.top_k, dim=-1).indices
    there_BT1 = torch.ones_like(probability_BTE[..., :1])
    if decision.there is not None:
        there_BT1 = decision.there.view(there_BT1.shape).to(there_BT1.dtype)
    share_BE = torch.zeros_like(probability_BTE[:, 0]).scatter_add(
        1, best_BTK.flatten(1), there_BT1.expand(best_BTK.shape).flatten(1)
    )
    tokens_B1 = there_BT1.sum(1)
    share_BE = share_BE * (router.experts / router.top_k) / tokens_B1
    return (share_BE * (probability_BTE * there_BT1).sum(1) / tokens_B1).sum()


def load_balance(router: Router, decision: Decision, _sequences: int) -> torch.Tensor:
    """Sum over the tokens of sum_i f_i p_i (Switch, arXiv 2101.03961); 1 a token where even.

    f_i is ``load_share``, that of the global batch before: the present one's is not known until all its micro-batches
    are through, and taken from one of them it would depend on how many there are.
    """
    probability_ME = _of_those_there(router.probabilities(decision.logits), decision)
    return probability_ME.sum() if router.load_share is None else (probability_ME * router.load_share).sum()


def router_z(_router: Router, decision: Decision, _sequences: int) -> torch.Tensor:
    """Sum over the tokens of logsumexp(logits) squared (ST-MoE, arXiv 2202.08906)."""
    return _of_those_there(decision.logits.logsumexp(-1, keepdim=True), decision).square().sum()


def _of_those_there(x_ME: torch.Tensor, decision: Decision) -> torch.Tensor:
    """Rows of padding set to 0."""
    return x_ME if decision.there is None else x_ME * decision.there[:, None]


#: Balancing losses before their coefficients, of a router's decision over the M tokens of so many sequences.
BALANCE_LOSSES: dict[str, Callable[[Router, Decision, int], torch.Tensor]] = {
    "sequence_balance": sequence_balance,
    "load_balance": load_balance,
    "router_z": router_z,
}


@contextmanager
def recorded(routers: Sequence[Router], there_M: torch.Tensor | None = None) -> Iterator[None]:
    """Within it the routers leave their decisions to be taken; ``there_M``: which tokens are no padding, None: all."""
    for router in routers:
        router.recording, router.there_M = True, there_M
    try:
        yield
    finally:
        for router in routers:
            router.recording, router.there_M = False, None


def balance_losses(routers: Sequence[Router], names: Sequence[str], sequences: int) -> dict[str, torch.Tensor]:
    """The balancing losses of those names, summed over the routers; takes what they recorded of so many sequences."""
    losses: dict[str, torch.Tensor] = {}
    for router in routers:
        if (decision := router.take()) is None:
            continue
        for name in names:
            value = BALANCE_LOSSES[name](router, decision, sequences)
            losses[name] = losses[name] + value if name in losses else value
    return losses
