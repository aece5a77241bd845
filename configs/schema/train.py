"""Training: batches, optimizer, schedule, losses, precision, parallelism, checkpoints."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from configs.schema.base import NonIdentity, Section
from configs.schema.tracking import EarlyStoppingSection, SamplesSection, WandbSection
from configs.schema.watch import WatchSection

#: Optimizer -> the keys that it reads. All read ``weight_decay``.
_ADAM_KEYS = frozenset({"beta1", "beta2", "eps"})
_OPTIMIZER_KEYS = {
    "adamw": _ADAM_KEYS,
    "adam": _ADAM_KEYS,
    "sgd": frozenset({"momentum"}),
    "muon": _ADAM_KEYS | {"momentum"},
}


class OptimizerSection(Section):
    """The optimizer. Keys that the chosen optimizer does not read are rejected."""

    name: Literal["adamw", "adam", "sgd", "muon"] = Field(
        "adamw",
        description="Which optimizer to use. `muon` updates the matrices of hidden layers and experts, and uses AdamW "
        "for everything else.",
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment (`adam`, `adamw`, `muon`).")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment (`adam`, `adamw`, `muon`).")
    eps: float = Field(
        1e-8, gt=0, description="Added to the denominator for numerical stability (`adam`, `adamw`, `muon`)."
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="Momentum (`sgd`, `muon`).")
    weight_decay: float = Field(
        0.1,
        ge=0,
        description="Weight decay for matrices; norms and biases have none. It is decoupled for `adamw` and `muon`.",
    )

    @model_validator(mode="after")
    def _has_no_key_of_another(self) -> "OptimizerSection":
        # A fully resolved recipe dump sets every key, so defaults do not count as set.
        changed = {key for key in self.model_fields_set if getattr(self, key) != type(self).model_fields[key].default}
        foreign = changed - _OPTIMIZER_KEYS[self.name] - {"name", "weight_decay"}
        if foreign:
            raise ValueError(f"{min(foreign)} is not read by {self.name}: leave it out, or set another optimizer.name")
        return self


class ScheduleSection(Section):
    """The learning-rate schedule. Every kind starts with a linear warmup to the peak rate, `train.learning_rate`."""

    kind: Literal["cosine", "wsd", "steps"] = Field(
        "cosine",
        description="How the rate changes after the warmup. `cosine`: cosine decay to the final rate. `wsd`: "
        "constant, then linear decay to the final rate. `steps`: constant, then multiplied by `factor` at each point "
        "in `at`.",
    )
    warmup_steps: int = Field(0, ge=0, description="Number of warmup steps.")
    final_fraction: float = Field(
        0.1, ge=0, le=1, description="Final learning rate, as a fraction of the peak (`cosine`, `wsd`)."
    )
    decay_fraction: float = Field(
        0.2, gt=0, le=1, description="Fraction of the steps during which the rate decays (`wsd`)."
    )
    at: tuple[float, ...] = Field(
        (0.8, 0.9), description="Points at which the rate drops, as fractions of all steps (`steps`)."
    )
    factor: float = Field(0.316, gt=0, le=1, description="Multiplier at each drop (`steps`).")


#: DeepSpeed keys that Millrace sets from its own keys.
_RESERVED_DEEPSPEED_KEYS = (
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
    """How the model is trained. [training.md](training.md) explains topology, checkpoints and precision."""

    headings: ClassVar[dict[str, str]] = {
        "context_length": "Samples and batches",
        "steps": "Optimization",
        "router_bias_update_rate": "Losses and balancing",
        "micro_batch": "Memory and parallelism",
        "eval_every": "Validation, checkpoints and logging",
        "simulate_crash_at": "Other",
    }

    context_length: int = Field(gt=1, description="Tokens per sample.")
    global_batch_tokens: int = Field(
        gt=0,
        description="Tokens per optimizer step, over all ranks. Must be a multiple of `context_length`.",
    )
    packing: Literal["windows", "best_fit"] = Field(
        "windows",
        description="How documents become samples. `windows`: samples are cut from the concatenated documents. "
        "`best_fit`: complete documents are packed into samples; only documents longer than a sample are cut.",
    )
    mask_documents: bool = Field(
        False,
        description="`true`: tokens attend only to their own document, and positions start at 0 in each document. "
        "`false`: tokens attend to all earlier tokens of the sample.",
    )
    steps: int = Field(gt=0, description="Number of optimizer steps.")
    learning_rate: float = Field(gt=0, description="Peak learning rate.")
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    max_grad_norm: float = Field(1.0, ge=0, description="Clip gradients to this global norm. 0 disables clipping.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "bf16",
        description="Compute precision. Master weights, updates and gradient accumulation are always in fp32. `fp16` "
        "requires GPUs.",
    )
    router_bias_update_rate: float = Field(
        0.001,
        ge=0,
        description="How much a router bias changes per step (gamma). The biases balance the experts without an "
        "auxiliary loss. 0 disables the updates.",
    )
    sequence_loss: float = Field(
        0.0, ge=0, description="Weight of the sequence-wise balance loss (alpha). DeepSeek-V3 uses 1e-4."
    )
    load_balance_loss: float = Field(
        0.0, ge=0, description="Weight of the classic load-balance loss. Switch Transformer uses 1e-2."
    )
    router_z_loss: float = Field(0.0, ge=0, description="Weight of the router z-loss. ST-MoE uses 1e-3.")
    mtp_loss: float = Field(
        0.3, ge=0, description="Weight of the multi-token prediction loss (lambda), shared by all depths."
    )

    micro_batch: NonIdentity[int | None] = Field(
        None,
        gt=0,
        description="Samples per rank in one forward pass. It determines the number of gradient accumulation steps. "
        "Defaults to the rank's entire portion of the global batch, without accumulation.",
    )
    activation_checkpointing: NonIdentity[Literal["none", "selective", "full"]] = Field(
        "none",
        description="What the backward pass recomputes to save memory. `selective`: wide, cheap operations. "
        "`full`: complete layers.",
    )
    zero_stage: NonIdentity[Literal[0, 1, 2, 3]] = Field(
        1,
        description="What ZeRO shards across ranks: nothing (0), optimizer state (1), also gradients (2), or also "
        "weights (3).",
    )
    expert_parallel: NonIdentity[int | None] = Field(
        None,
        ge=1,
        description="Number of ranks across which a layer's experts are sharded. Must divide both the number of ranks "
        "and the number of experts. Defaults to the largest valid number.",
    )
    offload_optimizer: NonIdentity[Literal["none", "cpu", "nvme"]] = Field(
        "none",
        description="Keep optimizer state in host memory (`cpu`, ZeRO 1 to 3) or on disk (`nvme`, ZeRO 3 with one "
        "process).",
    )
    offload_path: NonIdentity[str | None] = Field(
        None, description="Folder on a fast local disk of each node, for `nvme`."
    )
    prefetch: NonIdentity[int] = Field(
        2, ge=0, description="Number of global batches to prefetch in a background thread. 0 disables prefetching."
    )
    eval_every: NonIdentity[int] = Field(
        0,
        ge=0,
        description="Steps between validations. With 0, validation runs only after the last step. With "
        "`early_stopping`, a changed value defines another run.",
    )
    eval_batches: NonIdentity[int] = Field(
        8,
        gt=0,
        description="Number of global batches in each validation during training. With `early_stopping`, a changed "
        "value defines another run.",
    )
    early_stopping: EarlyStoppingSection | None = Field(
        None,
        description="By default, training does not end early. Requires `eval_every`. Fine-tuning reads "
        "`finetune.early_stopping` instead.",
    )
    save_every: NonIdentity[int] = Field(
        0,
        ge=0,
        description="Steps between checkpoints. With 0, a checkpoint is written only after the last step or on a "
        "signal.",
    )
    keep: NonIdentity[int] = Field(2, ge=1, description="Number of newest checkpoints to keep.")
    keep_every: NonIdentity[int] = Field(
        0, ge=0, description="Also keep checkpoints at multiples of this many steps. 0 disables this."
    )
    keep_best: NonIdentity[int] = Field(
        0,
        ge=0,
        description="Also keep this many checkpoints with the lowest validation loss. Requires `save_every` to be a "
        "multiple of `eval_every`.",
    )
    log_every: NonIdentity[int] = Field(1, gt=0, description="Steps between records in `metrics.jsonl`.")
    samples: NonIdentity[SamplesSection | None] = Field(
        None, description="Without this section, no prompts are completed."
    )
    wandb: NonIdentity[WandbSection | None] = Field(None, description="Without this section, nothing is logged to W&B.")
    watch: WatchSection = WatchSection()
    simulate_crash_at: NonIdentity[int | None] = Field(
        None,
        gt=0,
        description="Exit after this step without saving, to test crash recovery. By default, no crash is simulated.",
    )
    deepspeed: dict[str, Any] = Field(
        {},
        description="Additional DeepSpeed configuration, passed through unchanged. Keys that Millrace sets itself are "
        "rejected.",
    )

    @model_validator(mode="after")
    def _deepspeed_keys_are_not_ours(self) -> "TrainSection":
        for key in _dotted(self.deepspeed):
            if any(key == reserved or key.startswith(f"{reserved}.") for reserved in _RESERVED_DEEPSPEED_KEYS):
                raise ValueError(f"deepspeed.{key} is set from the recipe's own keys: remove it")
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
                f"keep_best ({self.keep_best}) needs a validation at every checkpoint: make save_every "
                f"({self.save_every}) a multiple of eval_every ({self.eval_every})"
            )
        if self.early_stopping and not self.eval_every:
            raise ValueError("early_stopping needs validations: set eval_every")
        self._stage_fits()
        if self.schedule.warmup_steps >= self.steps:
            raise ValueError(
                f"schedule.warmup_steps ({self.schedule.warmup_steps}) must be below steps ({self.steps}): lower it too"
            )
        return self

    def _stage_fits(self) -> None:
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ValueError(
                f"precision ({self.precision}) needs zero_stage 1 to 3, which keep fp32 master weights: zero_stage=1 "
                "computes the same as 0 in less memory"
            )
        if self.offload_optimizer == "cpu" and self.zero_stage == 0:
            raise ValueError("offload_optimizer=cpu needs zero_stage 1 to 3")
        if self.offload_optimizer == "nvme" and (self.zero_stage != 3 or self.optimizer.name == "muon"):
            raise ValueError("offload_optimizer=nvme needs zero_stage=3 and does not work with muon")
        if (self.offload_optimizer == "nvme") != (self.offload_path is not None):
            raise ValueError("offload_path is the folder for offload_optimizer=nvme: set both or neither")

    def identity(self) -> dict[str, Any]:
        """Return the keys that define the run. Without early stopping, its key is left out, as in older runs."""
        identity = super().identity()
        if self.early_stopping is None:
            del identity["early_stopping"]
            return identity
        # Validations only observe the training, unless they end it.
        return {**identity, "eval_every": self.eval_every, "eval_batches": self.eval_batches}

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step."""
        return self.global_batch_tokens // self.context_length
