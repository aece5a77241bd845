"""Pretraining and what it shares with fine-tuning: batch, optimiser, schedule, precision, parallelism, saving."""

from typing import Any, Literal

from pydantic import Field, model_validator

from configs.schema.base import NonIdentity, Section
from configs.schema.watch import WatchSection

#: Keys that an optimiser goes by, beside its name and weight_decay.
_ADAM_KEYS = frozenset({"beta1", "beta2", "eps"})
_OPTIMIZER_KEYS = {
    "adamw": _ADAM_KEYS,
    "adam": _ADAM_KEYS,
    "sgd": frozenset({"momentum"}),
    "muon": _ADAM_KEYS | {"momentum"},
}


class OptimizerSection(Section):
    name: Literal["adamw", "adam", "sgd", "muon"] = Field(
        "adamw", description="muon: for matrices of the hidden layers and experts, adamw for the rest"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="of adam, adamw, and muon's adamw")
    beta2: float = Field(0.95, ge=0, lt=1, description="likewise")
    eps: float = Field(1e-8, gt=0, description="likewise")
    momentum: float = Field(0.95, ge=0, lt=1, description="of sgd and muon")
    weight_decay: float = Field(
        0.1, ge=0, description="on matrices, apart from the gradient but for adam and sgd; norms and biases have none"
    )

    @model_validator(mode="after")
    def _has_no_key_of_another(self) -> "OptimizerSection":
        # A recipe as it was resolved names every key: what stands at its default asks for nothing.
        asked = {key for key in self.model_fields_set if getattr(self, key) != type(self).model_fields[key].default}
        foreign = asked - _OPTIMIZER_KEYS[self.name] - {"name", "weight_decay"}
        if foreign:
            raise ValueError(f"{min(foreign)} is no key of {self.name}: remove it, or choose another optimizer.name")
        return self


class ScheduleSection(Section):
    kind: Literal["cosine", "wsd", "steps"] = Field(
        "cosine", description="warm-up, then cosine; stable and linear decay; or stable and lower after each of at"
    )
    warmup_steps: int = Field(0, ge=0)
    final_fraction: float = Field(0.1, ge=0, le=1, description="last learning rate over the peak")
    decay_fraction: float = Field(0.2, gt=0, le=1, description="wsd: share of the steps in which it decays")
    at: tuple[float, ...] = Field((0.8, 0.9), description="steps: shares of the steps after which it falls")
    factor: float = Field(0.316, gt=0, le=1, description="steps: what it is multiplied by there")


#: What Millrace tells DeepSpeed itself, from the recipe's keys.
_OWN_DEEPSPEED_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "steps_per_print",
    "zero_optimization.stage",
    "zero_optimization.reduce_scatter",
    "zero_optimization.round_robin_gradients",
    "expert_parallel.enabled",
    "expert_parallel.autoep_size",
    "expert_parallel.preset_model",
    "zero_optimization.offload_optimizer",
    "zero_force_ds_cpu_optimizer",
    "zero_allow_untested_optimizer",
    "data_types",
    "bf16",
    "fp16",
    "optimizer",
    "scheduler",
    "checkpoint",
)


def _dotted(tree: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in tree.items():
        keys += _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return keys


class TrainSection(Section):
    context_length: int = Field(gt=1, description="tokens a sample")
    packing: Literal["windows", "best_fit"] = Field(
        "windows", description="samples: windows over concatenated documents, or whole documents packed to fit"
    )
    global_batch_tokens: int = Field(gt=0, description="tokens an optimiser step, whatever the number of ranks")
    steps: int = Field(gt=0, description="optimiser steps")
    learning_rate: float = Field(gt=0, description="peak")
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to this global norm; 0: no clipping")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "bf16", description="what is computed in; weights, their updates and sums of gradients are fp32 in any"
    )
    mask_documents: bool = Field(
        False, description="tokens see their own document only, positions count from its start"
    )
    router_bias_update_rate: float = Field(0.001, ge=0, description="router bias step a global batch (gamma); 0: none")
    sequence_loss: float = Field(0.0, ge=0, description="weight of the sequence-wise balance loss (alpha); V3: 1e-4")
    load_balance_loss: float = Field(0.0, ge=0, description="weight of the classic load-balance loss; Switch: 1e-2")
    router_z_loss: float = Field(0.0, ge=0, description="weight of the router's z-loss; ST-MoE: 1e-3")
    mtp_loss: float = Field(0.3, ge=0, description="weight of multi-token prediction (lambda), over all its depths")

    micro_batch: NonIdentity[int | None] = Field(
        None, gt=0, description="samples a rank at a time; accumulation follows; default: all of a rank's share at once"
    )
    zero_stage: NonIdentity[Literal[0, 1, 2, 3]] = 1
    offload_optimizer: NonIdentity[Literal["none", "cpu", "nvme"]] = Field(
        "none", description="keep optimiser state in host memory (zero_stage 1 to 3), or on disk (3, one process)"
    )
    offload_path: NonIdentity[str | None] = Field(None, description="folder on a fast disk of each node, for nvme")
    expert_parallel: NonIdentity[int | None] = Field(
        None, ge=1, description="ranks that share a layer's experts between them; default: the most that divide both"
    )
    activation_checkpointing: NonIdentity[Literal["none", "selective", "full"]] = Field(
        "none", description="recompute in the backward pass: what is wide and cheap, or whole layers"
    )
    prefetch: NonIdentity[int] = Field(
        2, ge=0, description="global batches read ahead by a thread; 0: read when needed"
    )
    log_every: NonIdentity[int] = Field(1, gt=0)
    eval_every: NonIdentity[int] = Field(0, ge=0, description="steps between validations; 0: at the end only")
    eval_batches: NonIdentity[int] = Field(8, gt=0, description="global batches of a validation during training")
    save_every: NonIdentity[int] = Field(0, ge=0, description="steps between checkpoints; 0: at the end only")
    keep: NonIdentity[int] = Field(2, ge=1, description="newest checkpoints kept")
    keep_every: NonIdentity[int] = Field(
        0, ge=0, description="keep those at multiples of so many steps as well; 0: none"
    )
    keep_best: NonIdentity[int] = Field(0, ge=0, description="keep so many with the lowest validation loss as well")
    watch: WatchSection = WatchSection()
    simulate_crash_at: NonIdentity[int | None] = Field(
        None, gt=0, description="fail after this step without saving, to rehearse a crash"
    )
    deepspeed: dict[str, Any] = Field({}, description="passed to DeepSpeed as it is; our own keys are refused here")

    @model_validator(mode="after")
    def _passes_on_what_is_not_ours(self) -> "TrainSection":
        for key in _dotted(self.deepspeed):
            own = next((own for own in _OWN_DEEPSPEED_KEYS if key == own or key.startswith(own + ".")), None)
            if own is not None:
                raise ValueError(f"deepspeed.{key} follows from the recipe's own keys: remove it")
        return self

    @model_validator(mode="after")
    def _fits(self) -> "TrainSection":
        if self.global_batch_tokens % self.context_length:
            raise ValueError(
                f"global_batch_tokens ({self.global_batch_tokens}) is not a multiple of context_length "
                f"({self.context_length})"
            )
        if self.keep_best and (not self.eval_every or self.save_every % self.eval_every):
            raise ValueError(
                f"keep_best ({self.keep_best}) goes by the validation at the step of a checkpoint: make save_every "
                f"({self.save_every}) a multiple of eval_every ({self.eval_every})"
            )
        self._stage_fits()
        if self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps ({self.schedule.warmup_steps}) must be below steps ({self.steps}): lower it too"
            )
        return self

    def _stage_fits(self) -> None:
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ValueError(
                f"precision ({self.precision}) needs zero_stage 1 to 3, which keep fp32 weights and sums beside it: "
                "zero_stage=1 computes the same as 0 in less memory"
            )
        if self.offload_optimizer == "cpu" and self.zero_stage == 0:
            raise ValueError("offload_optimizer=cpu needs zero_stage 1 to 3")
        if self.offload_optimizer == "nvme" and (self.zero_stage != 3 or self.optimizer.name == "muon"):
            raise ValueError("offload_optimizer=nvme needs zero_stage=3 and another optimizer than muon")
        if (self.offload_optimizer == "nvme") != (self.offload_path is not None):
            raise ValueError("offload_path is the folder of offload_optimizer=nvme: give both or neither")

    @property
    def global_batch(self) -> int:
        """Samples an optimiser step."""
        return self.global_batch_tokens // self.context_length
