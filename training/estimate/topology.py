"""The parameter sizes, partitioning and dtypes that determine a rank's memory."""

from dataclasses import dataclass
from typing import Any, Literal

from configs.schema import Recipe
from configs.schema.finetune import FinetuneSection
from configs.schema.models.deepseek import DeepseekSection
from training.estimate.finetuning import trained_numbers
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
        plain: number of parameters outside routed experts, including adapters. Every rank computes with all of them.
        experts: number of routed-expert parameters over all ranks.
        local_experts: number of routed-expert parameters on this rank.
        replicated: numbers of plain and of expert parameters, whose gradients are reduced separately. 0 if no other
            rank has a copy of them.
        expert_layers: number of layers with routed experts.
        trained: numbers of plain and of expert parameters that this rank computes gradients for.
        trained_tables: number of trained parameters of embeddings, learned positions and the head, over all ranks.
        trains_head: whether the output head is trained.
        share: number of parameters whose master weights and optimizer state this rank keeps.
        stored: number of parameters whose shards this rank keeps at ZeRO stage 3.
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
    trained: tuple[int, int]
    trained_tables: int
    trains_head: bool
    share: int
    stored: int
    bucket: int
    live: int
    accumulates: bool
    offloads: str

    @property
    def local(self) -> int:
        """Number of parameters that the rank uses in its computation."""
        return self.plain + self.local_experts

    @property
    def gradients(self) -> int:
        """Number of parameters that the rank computes gradients for."""
        return sum(self.trained)

    @property
    def frozen(self) -> int:
        """Number of parameters that the rank uses in its computation but does not train."""
        return self.local - self.gradients

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


def topology_of(
    recipe: Recipe, device: Literal["cpu", "cuda"], micro_batch: int, stage: FinetuneSection | None = None
) -> Topology:
    """Determine the topology for training a recipe with this micro-batch size.

    ``stage`` is the fine-tuning stage to estimate, or None for pretraining.
    """
    train, model = recipe.train, recipe.model.backbone_section
    counts = parameters(recipe.model, recipe.vocab_size)
    expert_layers = max(0, model.num_moe_layers)
    expert = 3 * model.hidden_size * model.moe_intermediate_size if isinstance(model, DeepseekSection) else 0
    experts = expert_layers * model.expert_count * expert
    numbers = trained_numbers(recipe, stage) if stage else None
    plain = counts.all - experts + (numbers.adapters if numbers else 0)
    parallel = recipe.expert_parallel if experts else 1
    local = experts // parallel
    trained = (numbers.plain, numbers.experts // parallel) if numbers else (plain, local)
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
        trained=trained,
        trained_tables=numbers.tables if numbers else counts.tables,
        trains_head=numbers.head if numbers else True,
        # A rank's experts are partitioned over the ranks that hold the same experts.
        share=round((trained[0] + trained[1] * parallel) / recipe.ranks) if train.zero_stage else sum(trained),
        stored=round((plain + local * parallel) / recipe.ranks),
        bucket=int(zero.get("reduce_bucket_size", _BUCKET)),
        live=int(zero.get("stage3_max_live_parameters", _LIVE)),
        accumulates=train.global_batch > micro_batch * recipe.ranks,
        offloads=train.offload_optimizer,
    )
