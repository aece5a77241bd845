"""What determines the memory of a rank: the sizes of its parameters, their partitioning, and their dtype."""

from dataclasses import dataclass
from typing import Any, Literal

from configs.schema import Recipe
from configs.schema.models.deepseek import DeepseekSection
from training.estimate.parameters import parameters

#: DeepSpeed 0.19's defaults, in elements (deepspeed/runtime/zero/config.py).
_BUCKET, _LIVE = 500_000_000, 1_000_000_000


@dataclass(frozen=True)
class Topology:
    """One rank's view.

    Attributes:
        device: where the rank computes.
        stage: of ZeRO.
        width: bytes per number in the computation.
        bf16: whether the computation is in bfloat16.
        plain: parameters outside routed experts; every rank computes with all of them.
        experts: parameters of the routed experts of all ranks.
        local_experts: parameters of the routed experts of this rank.
        replicated: parameters in each group with a reduction of its own, plain ones and experts; 0: no other rank has a
            copy of them.
        expert_layers: layers with routed experts.
        share: parameters whose master weights and optimizer state this rank keeps.
        bucket: elements of the buffer for the reduction of gradients.
        live: the most elements that ZeRO-3 keeps gathered.
        accumulates: whether an optimizer step has several micro-batches.
        offloads: where the optimizer state is.
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
        """Parameters that a rank computes with."""
        return self.plain + self.local_experts

    @property
    def flat_sums(self) -> bool:
        """Whether this uses DeepSpeed's bf16 optimizer at stage 1, which has flat fp32 sums and no buffer."""
        return self.stage == 1 and self.bf16 and self.offloads == "none"

    @property
    def offloaded(self) -> bool:
        """Whether master weights and optimizer state are not on the device."""
        return self.offloads != "none" and self.device == "cuda"

    @property
    def half(self) -> bool:
        """Whether the computation uses 16-bit weights, with fp32 master weights in addition."""
        return self.width == 2


def topology(recipe: Recipe, device: Literal["cpu", "cuda"], micro_batch: int) -> Topology:
    """The topology of a recipe's training at a micro-batch."""
    train, model = recipe.train, recipe.model.backbone_section
    counts = parameters(recipe.model, recipe.vocab_size)
    expert_layers = max(0, model.num_moe_layers)
    expert = 3 * model.hidden_size * model.moe_intermediate_size if isinstance(model, DeepseekSection) else 0
    experts = expert_layers * model.expert_count * expert
    plain = counts.all - experts
    parallel = recipe.expert_parallel if experts else 1
    local = experts // parallel
    # The experts of a rank are partitioned over the ranks that hold the same ones.
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
