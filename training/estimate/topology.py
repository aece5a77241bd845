"""What of a recipe decides how much a rank holds: sizes of its parameters, how they are spread, in what dtype."""

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
        device: where it computes.
        stage: of ZeRO.
        width: bytes of a number that is computed with.
        bf16: whether that is bfloat16.
        plain: parameters over all ranks that are no routed experts; every rank computes with all of them.
        experts: routed experts' parameters over all ranks.
        local_experts: those that this rank computes with.
        replicated: parameters of each group that is reduced by itself, plain ones and experts; 0: of which no other
            rank has a copy.
        expert_layers: layers with routed experts.
        share: parameters whose master weights and optimiser state this rank keeps.
        bucket: elements of the buffer that gradients are reduced through.
        live: elements that ZeRO-3 keeps gathered at most.
        accumulates: whether an optimiser step has several micro-batches.
        offloads: where the optimiser's state lies.
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
        """Whether DeepSpeed's optimiser for bf16 at stage 1 does the work, with flat fp32 sums and no buffer."""
        return self.stage == 1 and self.bf16 and self.offloads == "none"

    @property
    def offloaded(self) -> bool:
        """Whether master weights and optimiser state lie elsewhere than on the device."""
        return self.offloads != "none" and self.device == "cuda"

    @property
    def half(self) -> bool:
        """Whether fp32 master weights stand beside those that are computed with."""
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
    # The experts of a rank are spread over the ranks that hold the same ones.
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
