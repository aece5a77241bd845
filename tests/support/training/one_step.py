"""One step of SGD on an engine of one process, for a model of any family."""

from typing import Any

import torch

from benchmarks.engine.setup import alone
from configs.schema.models import ModelSection
from configs.schema.train import OptimizerSection, TrainSection
from tests.support.training.families import LENGTH, built, micro_batch
from training.data.batch import Batch
from training.engine.build import build_engine
from training.engine.deepspeed_config import deepspeed_config
from training.engine.partitions import partitions
from training.objective import Objective
from training.optim.build import build_optimizer

_SAMPLES, _RATE = 8, 0.1


def moved_by_a_step(section: ModelSection, stage: int) -> dict[str, torch.Tensor]:
    """The change of every parameter by the step, flattened, by its name in the engine; run in a separate process."""
    train = TrainSection(
        context_length=LENGTH,
        global_batch_tokens=_SAMPLES * LENGTH,
        steps=1,
        learning_rate=_RATE,
        max_grad_norm=1e9,
        precision="fp32",
        zero_stage=stage,  # type: ignore[arg-type]
        optimizer=OptimizerSection(name="sgd", momentum=0.0, weight_decay=0.0),
    )
    model = built(section).train()
    optimizer = build_optimizer(model, train.optimizer, _RATE, 1, section.rate_scales)
    experts = 1 if section.has_experts else None
    engine = build_engine(model, optimizer, deepspeed_config(train, 1, experts, _SAMPLES, _SAMPLES), alone())
    adopted = any(getattr(module, "_is_autoep_layer", False) for module in engine.module.modules())
    assert adopted == section.has_experts
    before = _weights(engine)
    for group in engine.optimizer.param_groups:
        group["lr"] = _RATE * group["rate_scale"]
    batch = micro_batch(section, samples=_SAMPLES)
    sums = Objective(section, train)(engine, Batch(batch.ids, batch.labels, **batch.more))
    engine.backward(sums["cross_entropy"] / _SAMPLES)
    engine.step()
    moved = {name: weight - before[name] for name, weight in _weights(engine).items()}
    engine.destroy()
    return moved


def _weights(engine: Any) -> dict[str, torch.Tensor]:
    kept = partitions(engine)
    return {
        piece.name: part.master.detach().flatten()[piece.offset : piece.offset + piece.numel].clone()
        for part in [*kept.trained, *kept.frozen]
        for piece in part.slices
    }
