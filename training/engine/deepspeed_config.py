"""Converts a recipe's train section to a DeepSpeed configuration, in a pure function that does not need torch."""

import os
from pathlib import Path
from typing import Any

from configs.schema.train import TrainSection


def deepspeed_config(
    train: TrainSection, ranks: int, expert_parallel: int | None, global_batch: int, micro_batch: int
) -> dict[str, Any]:
    """Return the configuration for ``deepspeed.initialize``.

    Args:
        train: the train section. Its ``deepspeed`` keys are merged in; the schema rejects keys that are set here.
        ranks: number of processes over all nodes.
        expert_parallel: number of ranks that a layer's experts are sharded across, or None for a model without experts.
        global_batch: samples per optimizer step.
        micro_batch: samples per rank and forward pass.
    """
    config: dict[str, Any] = {
        "train_batch_size": global_batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": global_batch // (micro_batch * ranks),
        "gradient_clipping": 0.0 if clips_in_trainer(train) else train.max_grad_norm,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": train.zero_stage},
    }
    if expert_parallel is not None:
        # The preset describes only the module layout; AutoEP reads the routing options from the model's config.
        config["expert_parallel"] = {
            "enabled": True,
            "autoep_size": expert_parallel,
            "preset_model": "deepseek_v3",
            "use_grouped_mm": True,
            "gate_up_impl": "fused",
            "disable_triton_grouped_mm": True,
        }
    config |= _precision(train.precision)
    # SGD and our Muon are not on DeepSpeed's list of tested optimizers. On CPU, torch's Adam is as fast as DeepSpeed's
    # and needs no compilation.
    config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    if train.offload_optimizer != "none":
        config["zero_optimization"]["offload_optimizer"] = {"device": train.offload_optimizer}
    if train.offload_optimizer == "nvme":
        config["zero_optimization"]["offload_optimizer"]["nvme_path"] = _on_this_node(train.offload_path)
    if train.zero_stage in (1, 2):
        # Stages 1 and 2 require this if there are expert-parallel groups.
        config["zero_optimization"]["reduce_scatter"] = True
    return _merge(config, train.deepspeed)


def clips_in_trainer(train: TrainSection) -> bool:
    """Return whether the trainer, not DeepSpeed, clips gradients (see training/engine/gradients.py)."""
    return train.zero_stage == 0 and train.precision == "fp32"


def _precision(name: str) -> dict[str, Any]:
    """Return the precision options. Gradients are always summed in fp32, over micro-batches and over ranks."""
    if name == "fp32":
        return {}
    sums = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    if name == "fp16":
        return {**sums, "fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}}
    # Without this check, stages 2 and 3 would apply non-finite gradients.
    return {**sums, "bf16": {"enabled": True, "check_grad_overflow": True}}


def _merge(config: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for key, value in extra.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _on_this_node(path: str | None) -> str:
    """Expand a path on this node, because it may contain a variable that is not set on the launch host."""
    return os.path.expandvars(Path(path or "").expanduser())
