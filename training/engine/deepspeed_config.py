"""A recipe's train section as DeepSpeed's configuration; a pure function, no torch."""

import os
from pathlib import Path
from typing import Any

from configs.schema.train import TrainSection


def deepspeed_config(
    train: TrainSection, ranks: int, expert_parallel: int | None, global_batch: int, micro_batch: int
) -> dict[str, Any]:
    """The configuration for ``deepspeed.initialize``.

    Args:
        train: the section; its ``deepspeed`` keys, which the schema keeps apart from ours, are added.
        ranks: processes over all nodes.
        expert_parallel: ranks that share a layer's experts, or None for a model without any.
        global_batch: samples an optimiser step.
        micro_batch: samples a rank at a time.
    """
    own: dict[str, Any] = {
        "train_batch_size": global_batch,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": global_batch // (micro_batch * ranks),
        "gradient_clipping": 0.0 if clips_itself(train) else train.max_grad_norm,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": train.zero_stage},
    }
    if expert_parallel is not None:
        # The preset names the module layout; the routing it describes is read from the model's own config.
        own["expert_parallel"] = {
            "enabled": True,
            "autoep_size": expert_parallel,
            "preset_model": "deepseek_v3",
            "use_grouped_mm": True,
            "gate_up_impl": "fused",
            "disable_triton_grouped_mm": True,
        }
    own |= _precision(train.precision)
    # DeepSpeed's lists of optimisers leave out sgd and ours; torch's own on CPU is as fast as DeepSpeed's, and built.
    own |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    if train.offload_optimizer != "none":
        own["zero_optimization"]["offload_optimizer"] = {"device": train.offload_optimizer}
    if train.offload_optimizer == "nvme":
        own["zero_optimization"]["offload_optimizer"]["nvme_path"] = _on_this_node(train.offload_path)
    if train.zero_stage in (1, 2):
        # With expert groups DeepSpeed's stages 1 and 2 require it.
        own["zero_optimization"]["reduce_scatter"] = True
    return _merge(own, train.deepspeed)


def clips_itself(train: TrainSection) -> bool:
    """Whether the loop clips instead of DeepSpeed (see training/engine/gradients.py)."""
    return train.zero_stage == 0 and train.precision == "fp32"


def _precision(name: str) -> dict[str, Any]:
    """Gradients are summed, over micro-batches and over ranks, in fp32, whatever is computed in."""
    if name == "fp32":
        return {}
    sums = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    if name == "fp16":
        return {**sums, "fp16": {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}}
    # Without the check stages 2 and 3 would take a step along a gradient that is no number.
    return {**sums, "bf16": {"enabled": True, "check_grad_overflow": True}}


def _merge(own: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = dict(own)
    for key, value in extra.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _on_this_node(path: str | None) -> str:
    """A folder of each node, whose disk may be named by a variable that only the nodes have."""
    return os.path.expandvars(Path(path or "").expanduser())
