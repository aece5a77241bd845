"""The parameter sizes, partitioning and dtypes that determine a rank's memory."""

from dataclasses import dataclass
from typing import Any, Literal

from configs.schema import Recipe
from configs.schema.models.deepseek import DeepseekSection
from training.estimate.parameters import parameters

#: DeepSpeed 0.19's defaults, in elements (deepspeed/runtime/zero/config.py).
_BUCKET, _LIVE = 500_000_000, 1_000_000_000


@dataclass(frozen=True)
class Topology:
    """One rank's parameters and training setup.

    Attributes:
        device: the kind of device that the rank computes on.
        stage: ZeRO stage.
        width: bytes per element in the compute dtype.
        bf16: whether the compute dtype is bfloat16.
        plain: number of parameters outside routed experts. Every rank computes with all of them.
        experts: number of routed-expert parameters over all ranks.
        local_experts: number of routed-expert parameters on this rank.
        replicated: numbers of plain and of expert parameters, whose gradients are reduced separately. 0 if no other
            rank has a copy of them.
        expert_layers: number of layers with routed experts.
        share: number of parameters whose master weights and optimizer state this rank keeps.
        bucket: size of the gradient reduction buffer in elements.
        live: maximum number of elements that ZeRO-3 keeps gathered.
        accumulates: whether an optimizer step has several micro-batches.
        offloads: where the optimizer state is offloaded to, or ``none``.
    """

    device: Literal["cpu", "cuda"]
    stage: int
    width: int
    bf16: bool
    plain: int
    experts: int
    local_experts: int
    replicated: tuple[int, int]
    expert_layers: int
    share: int
    bucket: int
    live: int
    accumulates: bool
    offloads: str

    @property
    def local(self) -> int:
        """Number of parameters that the rank uses in its computation."""
        return self.plain + self.local_experts

    @property
    def flat_sums(self) -> bool:
        """Whether DeepSpeed's bf16 optimizer runs at stage 1, with flat fp32 gradient sums and no reduction buffer."""
        return self.stage == 1 and self.bf16 and self.offloads == "none"

    @property
    def offloaded(self) -> bool:
        """Whether master weights and optimizer state are stored outside the compute device."""
        return self.offloads != "none" and self.device == "cuda"

    @property
    def half(self) -> bool:
        """Whether the compute weights are 16-bit, with separate fp32 master weights."""
        return self.width == 2


def topology_of(recipe: Recipe, device: Literal["cpu", "cuda"], micro_batch: int) -> Topology:
    """Determine the topology for training a recipe with this micro-batch size."""
    train, model = recipe.train, recipe.model.backbone_section
    counts = parameters(recipe.model, recipe.vocab_size)
    expert_layers = max(0, model.num_moe_layers)
    expert = 3 * model.hidden_size * model.moe_intermediate_size if isinstance(model, DeepseekSection) else 0
    experts = expert_layers * model.expert_count * expert
    plain = counts.all - experts
    parallel = recipe.expert_parallel if experts else 1
    local = experts // parallel
    # A rank's experts are partitioned over the ranks that hold the same experts.
    spread = plain / recipe.ranks + local * parallel / recipe.ranks
    zero: dict[str, Any] = train.deepspeed.get("zero_optimization", {})
    return Topology(
        device=device,
        stage=train.zero_stage,
        width=4 if train.precision == "fp32" else 2,
        bf16=train.precision == "bf16",
        plain=plain,
        experts=experts,
        local_experts=local,
        replicated=(plain if recipe.ranks > 1 else 0, local if recipe.ranks > parallel else 0),
        expert_layers=expert_layers,
        share=round(spread) if train.zero_stage else plain + local,
        bucket=int(zero.get("reduce_bucket_size", _BUCKET)),
        live=int(zero.get("stage3_max_live_parameters", _LIVE)),
        accumulates=train.global_batch > micro_batch * recipe.ranks,
        offloads=train.offload_optimizer,
    )
